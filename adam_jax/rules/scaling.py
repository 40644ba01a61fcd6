"""Rules without slots: decoupled weight decay, the learning rate, bias correction on its own."""

import abc
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
from jax import Array

from adam_jax._types import Count, Leaf, Number, Scalars
from adam_jax.rules.base import Slots, StatelessRule
from adam_jax.rules.pytrees import frozen_pytree, static
from adam_jax.rules.rates import DecayRate
from adam_jax.rules.squares import abs_squared
from adam_jax.validation import check_number, check_scalar

Schedule = Callable[[Array], jax.typing.ArrayLike]


class Hyperparameter(abc.ABC):
    """A number, for the whole run or for each step."""

    @abc.abstractmethod
    def at(self, count: Count) -> Number:
        """The number after so many completed optimizer steps (0, 1, 2, …)."""


@frozen_pytree
class Constant(Hyperparameter):
    """A hyperparameter that is one number for the whole run."""

    value: Leaf

    def at(self, count: Count) -> Number:
        del count
        return self.value


@frozen_pytree
class Scheduled(Hyperparameter):
    """A hyperparameter that is a function of the optimizer steps completed so far."""

    schedule: Schedule = static()

    def at(self, count: Count) -> Number:
        name = getattr(self.schedule, "__qualname__", repr(self.schedule))
        return check_scalar(
            f"the result of the schedule {name}",
            self.schedule(count),
            instead="return one number, the same for all leaves",
        )


def hyperparameter(argument: str, x: Leaf, low: float = 0.0, *, instead: str) -> Hyperparameter:
    """From what a user writes, a number ≥ low or a schedule."""
    if isinstance(x, Hyperparameter):
        return x
    if callable(x):
        return Scheduled(cast(Schedule, x))
    return Constant(check_number(argument, x, low, instead=instead))


@frozen_pytree
class Identity(StatelessRule):
    """u: a stage that Optax's chain has, and that does nothing."""

    elementwise = True

    def scalars(self, count: Count) -> Scalars:
        return ()

    def update(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Array:
        return g


@frozen_pytree
class AddDecayedWeights(StatelessRule):
    """u + λ·θ: weight decay, decoupled where u is an update, L2 where it is the gradient still.

    Loshchilov & Hutter 2019, algorithm 2, lines 12 and 6.

    Attributes:
      weight_decay: λ.
      downhill: u - λ·θ instead, for an update that the learning rate has turned already.
    """

    elementwise = True

    needs_params = True

    weight_decay: Hyperparameter
    downhill: bool = static(default=False)

    def scalars(self, count: Count) -> Scalars:
        weight_decay = self.weight_decay.at(count)
        return -weight_decay if self.downhill else weight_decay

    def update(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Array:
        assert param is not None  # needs_params
        return g + scalars * param

    def cautious_decay(self) -> "CautiousDecay":
        return CautiousDecay(self)


@frozen_pytree
class CautiousDecay(StatelessRule):
    """u + λ·θ where u and θ point the same way, else u."""

    elementwise = True

    needs_params = True

    inner: AddDecayedWeights

    def scalars(self, count: Count) -> Scalars:
        return self.inner.scalars(count)

    def update(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Array:
        decayed = self.inner.update(g, old, new, scalars, param)
        assert param is not None  # needs_params
        agreement = jnp.real(g * jnp.conj(param))
        # Behind the learning rate u has been turned downhill.
        agree = agreement <= 0 if self.inner.downhill else agreement >= 0
        return jnp.where(agree, decayed, g)


@frozen_pytree
class ScaleByTrustRatio(StatelessRule):
    """u·‖θ‖/‖u‖ per leaf; u where one of the two norms is zero (You et al. 2020, algorithm 2)."""

    needs_params = True

    def scalars(self, count: Count) -> Scalars:
        return ()

    def update(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Array:
        assert param is not None  # needs_params
        params, updates = jnp.sum(abs_squared(param)), jnp.sum(abs_squared(g))
        moves = (params > 0) & (updates > 0)
        ratio = jnp.sqrt(jnp.where(moves, params, 1)) / jnp.sqrt(jnp.where(moves, updates, 1))
        return ratio * g


@frozen_pytree
class ScaleByLearningRate(StatelessRule):
    """-α·u, or α·u where the sign is not to be flipped."""

    elementwise = True

    learning_rate: Hyperparameter
    flip_sign: bool = static(default=True)

    def scalars(self, count: Count) -> Scalars:
        learning_rate = self.learning_rate.at(count)
        return -learning_rate if self.flip_sign else learning_rate

    def update(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Array:
        return scalars * g


@frozen_pytree
class CorrectBias(StatelessRule):
    """u·√(1 - b2^t) / (1 - b1^t): both bias corrections as one number.

    Kingma & Ba 2015, section 2, last paragraph.
    """

    elementwise = True

    b1: DecayRate
    b2: DecayRate

    def scalars(self, count: Count) -> Scalars:
        return jnp.sqrt(self.b2.correction(count)) / self.b1.correction(count)

    def update(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Array:
        return scalars * g
