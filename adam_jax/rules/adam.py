"""AdamW on one array: two moments, the direction computed from them, weight decay, learning rate.

Adam is `MomentRule(Ema("mu", b1), Ema("nu", b2, magnitude=True), Root(eps))`: two running
statistics, read with bias correction, and a direction computed from them (Kingma & Ba 2015,
algorithm 1). Other members replace one of the moments or the direction. AdamW is three rules in
sequence on one leaf, in one pass: this one, `AddDecayedWeights` and `ScaleByLearningRate`.

A moment is a callable: it renews its slots from a new term and returns the statistic as read. One
that is the second moment of a `MomentRule` also has `read`.
"""

import abc
import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from adam_jax._types import Count, Number
from adam_jax.numerics import divide, exact, root, squared
from adam_jax.pytrees import frozen_pytree, static
from adam_jax.rates import DecayRate
from adam_jax.rules.base import MemberRule, Rule, View
from adam_jax.rules.hyperparameters import Unit, in_units_of
from adam_jax.slots import Slot
from adam_jax.validation import check_number


@frozen_pytree
class MomentRule(MemberRule):
    """A member of the regular family, as data: two moments and the direction computed from them.

    Attributes:
      first: the running statistic of the gradient.
      second: the running statistic of its square; it may read the new slots of `first`.
      direction: how the two become an update.
    """

    elementwise = True

    first: Any
    second: Any
    direction: "Direction"

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (*self.first.slots, *self.second.slots)

    @property
    def squares(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.direction.squared

    @property
    def ends_in_product(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.direction.ends_in_product

    def update(self, leaf: View) -> Array:
        return self.direction(*self.moments(leaf))

    def moments(self, leaf: View) -> tuple[Array, Array]:
        """The two moments, renewed and as read."""
        mu = self.first(leaf, leaf.g)
        return mu, self.second(leaf, squared(leaf.g))

    def normalised(self, leaf: View, u: Array) -> Array:
        return self.direction(leaf.g, self.second.read(leaf))


@frozen_pytree
class Ema:
    """The average x ← b·x + (1-b)·term of gradients or of their squares, read as x / (1 - bᵗ).

    Attributes:
      slot: its name.
      rate: b.
      magnitude: the term is a square.
      bias_correction: False reads x uncorrected.
      initial_accumulator_value: of x.
      of_x: 1 / (1 - bᵗ).
    """

    slot: str = static()
    rate: DecayRate = dataclasses.field()
    magnitude: bool = static(default=False)
    bias_correction: bool = static(default=True)
    initial_accumulator_value: Number = 0.0
    of_x: Number = None

    @property
    def slots(self) -> tuple[Slot, ...]:
        start = self.initial_accumulator_value
        return (Slot(self.slot, self.magnitude, start, self.rate.complement),)

    def at(self, count: Count) -> "Ema":
        if not self.bias_correction:
            return self
        return dataclasses.replace(self, of_x=self.rate.debiasing(count))

    def __call__(self, leaf: View, term: Array) -> Array:
        leaf.average(self.slot, self.rate, term)
        return self.read(leaf)

    def read(self, leaf: View) -> Array:
        """The average, with bias correction."""
        x = leaf.new[self.slot]
        return x * self.of_x if self.bias_correction else x


class AroundEma:
    """A moment whose average is of another term, moves in another way, or is read in another way.

    Attributes:
      ema: the average.
    """

    ema: Ema

    @property
    def slots(self) -> tuple[Slot, ...]:
        return self.ema.slots

    def read(self, leaf: View) -> Array:
        """The average, with bias correction."""
        return self.ema.read(leaf)


@frozen_pytree
class AheadEma(AroundEma):
    """The average of the gradient, read one step ahead as (g + of_mu·mu)·of_both.

    In a sum of two products XLA contracts one of them into a fused multiply-add, and the loop
    around it determines which. The bits on 8 devices would then differ from those on 1.

    Attributes:
      ema: the average.
      of_mu: the weight of mu relative to that of g.
      of_both: the weight of g.
    """

    ema: Ema
    of_mu: Number = None
    of_both: Number = None

    def __call__(self, leaf: View, term: Array) -> Array:
        mu = leaf.average("mu", self.ema.rate, term)
        if not self.ema.bias_correction:
            return self.ema.rate.average(mu, term)
        return (term + self.of_mu * mu) * self.of_both


@frozen_pytree
class NesterovEma(AheadEma):
    """mu read as b'·mu / (1 - Π') + (1-b)·g / (1 - Π), with b' and Π' of the next step.

    Dozat 2016, algorithm 2.
    """

    def at(self, count: Count) -> "NesterovEma":
        rate = self.ema.rate
        following = rate.following or rate
        of_g = rate.complement / rate.correction(count)
        of_mu = (1 - following.complement) / rate.correction(count, ahead=1) / of_g
        return dataclasses.replace(self, of_mu=of_mu, of_both=of_g)


class Direction(abc.ABC):
    """How the first moment, or the gradient, is divided by the second: a `frozen_pytree`.

    Attributes:
      squared: whether the second moment is a square.
      ends_in_product: see `Rule`.
    """

    squared: bool = True
    ends_in_product: bool = True

    @abc.abstractmethod
    def __call__(self, first: Array, second: Array) -> Array:
        """The update of one leaf."""


@frozen_pytree
class Root(Direction):
    """first / (√(second + eps_root) + eps + eps_hat / √(1 - bᵗ)).

    Kingma & Ba 2015, algorithm 1, for eps_root = eps_hat = 0.

    Attributes:
      eps: ε of the paper, added to √nû.
      eps_root: Optax's second ε, inside the root; None omits it, so that XLA need not simplify it
        away in each leaf.
      eps_hat: ε̂ of the paper's section 2 (Keras, TensorFlow), added to the root of the
        *uncorrected* moment: √nu + ε̂ is √(1 - bᵗ) times √nû + ε̂ / √(1 - bᵗ).
      rate: b of the second moment; None without bias correction or without eps_hat.
      above_zero: eps is a number above zero, so that nothing is divided by zero.
      every_eps: the sum of eps and the corrected eps_hat.
    """

    eps: Number = in_units_of(Unit.GRADIENT)
    eps_root: Number = in_units_of(Unit.GRADIENT_SQUARED, default=None)
    eps_hat: Number = in_units_of(Unit.GRADIENT, default=0.0)
    rate: DecayRate | None = None
    above_zero: bool = static(default=False)
    every_eps: Number = None
    ends_in_product = False

    @classmethod
    def of(
        cls,
        eps: Number,
        eps_root: Number = 0.0,
        eps_hat: Number = None,
        rate: DecayRate | None = None,
    ) -> "Root":
        """Checks that all numbers are finite and not negative. eps_hat=None omits ε̂."""
        eps = check_number("eps", eps, instead="the usual value is 1e-8")
        eps_root = check_number("eps_root", eps_root, instead="0.0 leaves it out")
        eps_hat = 0.0 if eps_hat is None else eps_hat
        eps_hat = check_number("eps_hat", eps_hat, instead="None leaves it out")
        without_root = isinstance(eps_root, float) and eps_root == 0.0
        without_hat = isinstance(eps_hat, float) and eps_hat == 0.0
        eps_root, rate = None if without_root else eps_root, None if without_hat else rate
        return cls(eps, eps_root, eps_hat, rate, isinstance(eps, float) and eps > 1e-30)

    def at(self, count: Count) -> "Root":
        if self.rate is None:
            return dataclasses.replace(self, every_eps=self.eps + self.eps_hat)
        hat = self.eps_hat / jnp.sqrt(self.rate.correction(count))
        return dataclasses.replace(self, every_eps=self.eps + hat)

    def __call__(self, first: Array, second: Array) -> Array:
        if self.eps_root is not None:
            # The bias correction is a product, which XLA:CPU contracts with the sum in some loops.
            second = exact(second) + self.eps_root
        return divide(first, root(second) + self.every_eps, self.above_zero)


@frozen_pytree
class AddDecayedWeights(Rule):
    """u + λ·θ: decoupled weight decay if u is an update, L2 if u is still the gradient.

    Loshchilov & Hutter 2019, algorithm 2, lines 12 and 6.

    Attributes:
      weight_decay: λ.
      downhill: u - λ·θ instead, for an update after the learning rate, which has the opposite sign.
      cautious: decay only where u and θ have the same sign; u elsewhere.
    """

    elementwise = True
    needs_params = True

    weight_decay: Number = in_units_of(Unit.WEIGHT_DECAY)
    downhill: bool = static(default=False)
    cautious: bool = static(default=False)

    def update(self, leaf: View) -> Array:
        u, weight_decay = leaf.g, -self.weight_decay if self.downhill else self.weight_decay
        # Of two products, XLA:CPU contracts one with the sum, and not always the same.
        decayed = exact(weight_decay * leaf.param) + (exact(u) if leaf.g_is_product else u)
        if not self.cautious:
            return decayed
        agreement = jnp.real(u * jnp.conj(leaf.param))
        # After the learning rate, u has the opposite sign.
        agree = agreement <= 0 if self.downhill else agreement >= 0
        return jnp.where(agree, decayed, u)


@frozen_pytree
class ScaleByLearningRate(Rule):
    """-α·u, or α·u if the sign is kept."""

    elementwise = True

    learning_rate: Number = in_units_of(Unit.LEARNING_RATE)
    flip_sign: bool = static(default=True)

    def at(self, count: Count) -> "ScaleByLearningRate":
        return ScaleByLearningRate(-self.learning_rate, False) if self.flip_sign else self

    def update(self, leaf: View) -> Array:
        return self.learning_rate * leaf.g
