"""AdamW on one array: two moments, the direction computed from them, weight decay, learning rate.

Adam is `MomentRule(Ema(b1), EmaOfSquares(b2), Root(eps))`: two running statistics, read with bias
correction, and a direction computed from them (Kingma & Ba 2015, algorithm 1). Other members
replace one of the moments or the direction (`variants.py`). AMSGrad, for example, has
`RunningMax(EmaOfSquares(b2))` as its second moment.

Decoupled weight decay and the learning rate are rules without slots: they map one array to another.
AdamW is therefore three rules in sequence on one leaf, in one pass.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from adam_jax._types import Count, Leaf, Number, Scalars
from adam_jax.rules.arithmetic import DecayRate, abs_squared, safe_divide, safe_sqrt
from adam_jax.rules.base import Average, Direction, MemberRule, Moment, Renewed, Rule, Slots
from adam_jax.rules.hyperparameters import Hyperparameter
from adam_jax.rules.pytrees import frozen_pytree, static
from adam_jax.rules.units import Unit, in_units_of
from adam_jax.slots import Slot
from adam_jax.validation import check_number
from adam_jax.xla.products import no_product


@frozen_pytree
class MomentRule(MemberRule):
    """A member of the regular family, as data: two moments and the direction computed from them.

    Attributes:
      first: the running statistic of the gradient.
      second: the running statistic of its magnitude; it may read the new slots of `first`.
      direction: how the two become an update.
    """

    elementwise = True

    first: Moment
    second: Moment
    direction: Direction

    def __post_init__(self) -> None:
        parts = (self.first, self.second)
        names = [slot.name for part in parts for slot in getattr(part, "slots", ())]
        if len(set(names)) != len(names):
            raise ValueError(
                f"first and second have slots of the same name: {names}; rename one of them."
            )

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (*self.first.slots, *self.second.slots)

    def scalars(self, count: Count) -> Scalars:
        return self.first.scalars(count), self.second.scalars(count), self.direction.scalars(count)

    def renewed(self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Renewed:
        if any(own.name == slot for own in self.first.slots):
            return self.first.renewed(slot, g, old, new, scalars[0])
        return self.second.renewed(slot, g, old, new, scalars[1])

    def update(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Array:
        first, second = self.first.read(g, new, scalars[0]), self.second.read(g, new, scalars[1])
        return self.direction.combine(first, second, scalars[2])

    def normalised(self, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Array:
        return self.direction.normalised(g, self.second.read(g, new, scalars[1]), scalars[2])

    def with_direction(self, make: Callable[[bool], Direction]) -> "MomentRule":
        second = self.second
        if hasattr(second, "eps"):  # Adamax and AdaBelief add ε to the accumulator.
            second = dataclasses.replace(second, eps=0.0)  # pyright: ignore[reportArgumentType]
        return MomentRule(self.first, second, self.direction.replaced(make))

    def looking_ahead(self) -> "MomentRule":
        return dataclasses.replace(self, first=self.first.looking_ahead())


@frozen_pytree
class CorrectedMoment(Moment):
    """One accumulator x, read as x / (1 - b^t).

    Attributes:
      slot: its name.
      magnitude: whether it is never negative; see `Slot`.
      rate: b.
      bias_correction: False reads x uncorrected.
      start: the initial value of x.
    """

    slot = "nu"
    magnitude = True

    rate: DecayRate
    bias_correction: bool = static(default=True)
    start: Number = 0.0

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot(self.slot, self.magnitude, self.start, self.rate.complement),)

    def scalars(self, count: Count) -> Scalars:
        """1 / (1 - b^t)."""
        return self.rate.debiasing(count) if self.bias_correction else ()

    def read(self, g: Array, new: Slots, scalars: Scalars) -> Array:
        x = new[self.slot]
        return x * scalars if self.bias_correction else x


@frozen_pytree
class Ema(CorrectedMoment):
    """The average of the gradient, mu ← mu + (1-b)(g - mu); of |g|² if it is a magnitude."""

    slot = "mu"
    magnitude = False

    def renewed(self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Average:
        return Average(self.rate, abs_squared(g) if self.magnitude else g)

    def looking_ahead(self) -> Moment:
        return NesterovEma(self)


@frozen_pytree
class EmaOfSquares(Ema):
    """The average of |g|²: nu ← nu + (1-b)(|g|² - nu)."""

    slot = "nu"
    magnitude = True


@frozen_pytree
class AheadEma(Moment):
    """The average of the gradient, read one step ahead as (g + r·mu)·s, with r and s per step.

    In a sum of two products, XLA contracts one product into a fused multiply-add, and the
    surrounding loop determines which. The bits on 8 devices would then differ from those on 1.

    Attributes:
      ema: the average.
    """

    ema: Ema

    @property
    def slots(self) -> tuple[Slot, ...]:
        return self.ema.slots

    def renewed(self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Average:
        return Average(self.ema.rate, g)

    def read(self, g: Array, new: Slots, scalars: Scalars) -> Array:
        if not self.ema.bias_correction:
            return self.ema.rate.average(new["mu"], g)
        ratio, of_g = scalars
        return (g + ratio * new["mu"]) * of_g


@frozen_pytree
class NesterovEma(AheadEma):
    """mu read as b·mu / (1 - b^(t+1)) + (1-b)·g / (1 - b^t).

    Dozat 2016, algorithm 2, with a constant b instead of its schedule, as in Optax.
    """

    def scalars(self, count: Count) -> Scalars:
        if not self.ema.bias_correction:
            return ()
        rate = self.ema.rate
        of_g = rate.complement / rate.correction(count)
        return (1 - rate.complement) / rate.correction(count, ahead=1) / of_g, of_g


@frozen_pytree
class Root(Direction):
    """first / (√(second + eps_root) + eps + eps_hat / √(1 - b^t)).

    Kingma & Ba 2015, algorithm 1, for eps_root = eps_hat = 0.

    Attributes:
      eps: ε of the paper, added to √nû.
      eps_root: Optax's second ε, inside the root; None omits it, so that XLA need not simplify it
        away in each leaf.
      eps_hat: ε̂ of the paper's section 2 (Keras, TensorFlow), added to the root of the
        *uncorrected* moment: √nu + ε̂ is √(1 - b^t) times √nû + ε̂ / √(1 - b^t).
      rate: b of the second moment; None without bias correction or without eps_hat.
    """

    eps: Number = in_units_of(Unit.GRADIENT)
    eps_root: Number = in_units_of(Unit.GRADIENT_SQUARED, default=None)
    eps_hat: Number = in_units_of(Unit.GRADIENT, default=0.0)
    rate: DecayRate | None = None

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
        return cls(eps, None if without_root else eps_root, eps_hat, None if without_hat else rate)

    def scalars(self, count: Count) -> Scalars:
        if self.rate is None:
            return self.eps + self.eps_hat
        return self.eps + self.eps_hat / jnp.sqrt(self.rate.correction(count))

    def combine(self, first: Array, second: Array, scalars: Scalars) -> Array:
        return safe_divide(first, self.root(second) + scalars)

    def normalised(self, g: Array, second: Array, scalars: Scalars) -> Array:
        return self.combine(g, second, scalars)

    def replaced(self, make: Callable[[bool], Direction]) -> Direction:
        return make(True)

    def root(self, second: Array) -> Array:
        """√(second + eps_root)."""
        if self.eps_root is None:
            return safe_sqrt(second)
        # The bias correction is a product, which XLA:CPU would contract with the sum in some loops.
        return safe_sqrt(no_product(second) + self.eps_root)


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

    weight_decay: Hyperparameter = in_units_of(Unit.WEIGHT_DECAY)
    downhill: bool = static(default=False)
    cautious: bool = static(default=False)

    def scalars(self, count: Count) -> Scalars:
        weight_decay = self.weight_decay.at(count)
        return -weight_decay if self.downhill else weight_decay

    def update(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Array:
        # Either may be a product, and XLA:CPU contracts one of them with the sum.
        decayed = no_product(g) + no_product(scalars * param)
        if not self.cautious:
            return decayed
        agreement = jnp.real(g * jnp.conj(param))
        # After the learning rate, u has the opposite sign.
        agree = agreement <= 0 if self.downhill else agreement >= 0
        return jnp.where(agree, decayed, g)

    def cautious_decay(self) -> "AddDecayedWeights":
        return dataclasses.replace(self, cautious=True)


@frozen_pytree
class ScaleByLearningRate(Rule):
    """-α·u, or α·u if the sign is kept."""

    elementwise = True

    learning_rate: Hyperparameter = in_units_of(Unit.LEARNING_RATE)
    flip_sign: bool = static(default=True)

    def scalars(self, count: Count) -> Scalars:
        learning_rate = self.learning_rate.at(count)
        return -learning_rate if self.flip_sign else learning_rate

    def update(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Array:
        return scalars * g
