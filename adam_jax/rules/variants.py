"""Moments and directions other than Adam's, and other rules without slots."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from adam_jax._types import Count, Leaf, Number, Scalars
from adam_jax.rules.adam import CorrectedMoment
from adam_jax.rules.arithmetic import (
    DecayRate,
    abs_squared,
    bounded,
    safe_divide,
    safe_sqrt,
    sum_of_squares,
)
from adam_jax.rules.base import Average, Direction, Moment, Renewed, Rule, Slots
from adam_jax.rules.pytrees import frozen_pytree, static
from adam_jax.rules.units import Unit, in_units_of
from adam_jax.slots import Slot
from adam_jax.xla.mosaic import arctan2
from adam_jax.xla.products import no_product


@frozen_pytree
class Newest(Moment):
    """The gradient itself, without an average or a slot."""

    slots = ()

    def scalars(self, count: Count) -> Scalars:
        return ()

    def read(self, g: Array, new: Slots, scalars: Scalars) -> Array:
        return g


@frozen_pytree
class RunningMax(Moment):
    """The running maximum of another statistic as read: nu_max ← max(nu_max, read).

    Attributes:
      inner: the statistic; its `bias_correction` decides whether it is corrected before the
        maximum.
      correct_max: the rate b whose 1 - b^t divides the maximum on reading; None for no correction.
    """

    inner: CorrectedMoment
    correct_max: DecayRate | None = None

    @property
    def slots(self) -> tuple[Slot, ...]:
        read = (dataclasses.replace(slot, maximum=True) for slot in self.inner.slots)
        return (*read, Slot("nu_max", magnitude=True, rate=1.0, maximum=True))

    def scalars(self, count: Count) -> Scalars:
        after = () if self.correct_max is None else self.correct_max.debiasing(count)
        return self.inner.scalars(count), after

    def renewed(self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Renewed:
        if slot == "nu_max":
            return jnp.maximum(old["nu_max"], self.inner.read(g, new, scalars[0]))
        return self.inner.renewed(slot, g, old, new, scalars[0])

    def read(self, g: Array, new: Slots, scalars: Scalars) -> Array:
        return new["nu_max"] if self.correct_max is None else new["nu_max"] * scalars[1]


@frozen_pytree
class DecayingMax(Moment):
    """A maximum of |g| + eps that decays at the rate b: nu ← max(b·nu, |g| + eps)."""

    rate: DecayRate
    eps: Number = in_units_of(Unit.GRADIENT)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("nu", magnitude=True, rate=self.rate.complement, maximum=True),)

    def scalars(self, count: Count) -> Scalars:
        return ()

    def renewed(self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Array:
        decayed = old["nu"] - self.rate.complement * old["nu"]
        return jnp.maximum(decayed, jnp.abs(g) + self.eps)

    def read(self, g: Array, new: Slots, scalars: Scalars) -> Array:
        return new["nu"]


@frozen_pytree
class EmaOfSurprise(CorrectedMoment):
    """The average of |g - mu|² plus a constant, with mu already updated in this step.

    Attributes:
      eps: added to the average in every step; it accumulates.
    """

    eps: Number = in_units_of(Unit.GRADIENT_SQUARED, default=0.0)

    def renewed(self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Average:
        # The average weights a new term by 1-b, so eps / (1-b) adds exactly eps.
        surprise = abs_squared(bounded(g - new["mu"], times=4))
        return Average(self.rate, surprise + self.eps / self.rate.complement)


@frozen_pytree
class YogiSquares(CorrectedMoment):
    """Moves toward |g|² by steps of (1-b)·|g|²: nu ← nu - (1-b)·sign(nu - |g|²)·|g|²."""

    def renewed(self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Array:
        # The select is last: XLA fuses a product into a sum, but not through a sign in every loop.
        x, square = old["nu"], abs_squared(g)
        step = self.rate.complement * square
        return jnp.where(square > x, x + step, jnp.where(square < x, x - step, x))


class Quotient(Direction):
    """A direction that divides gradient and first moment alike, without ε added to a root.

    Attributes:
      squared: whether the second moment is a square.
    """

    squared: bool = True

    def scalars(self, count: Count) -> Scalars:
        return ()

    def normalised(self, g: Array, second: Array, scalars: Scalars) -> Array:
        return self.combine(g, second, scalars)

    def replaced(self, make: Callable[[bool], Direction]) -> Direction:
        return make(self.squared)


@frozen_pytree
class Ratio(Quotient):
    """first / second, for a second moment that is a magnitude, not a square; 0 where both are 0."""

    squared = False

    def combine(self, first: Array, second: Array, scalars: Scalars) -> Array:
        return safe_divide(first, second)


@frozen_pytree
class Atan2(Quotient):
    """a·atan2(first, b·√second): close to first / √second where that is small, at most a·π/2.

    Everett et al. 2024, section 4.3 (Adam-atan2): no ε, and the update does not depend on the scale
    of the gradient, down to the smallest numbers.

    Attributes:
      a: the factor outside.
      b: the factor of the root.
      squared: second is a square; False if it is a magnitude, whose root is not taken.
    """

    a: Number
    b: Number
    squared: bool = static(default=True)

    def combine(self, first: Array, second: Array, scalars: Scalars) -> Array:
        root = self.b * (safe_sqrt(second) if self.squared else second)
        if not jnp.iscomplexobj(first):
            return self.a * arctan2(first, root)
        # Only the magnitude of a complex number is divided; its direction is kept.
        size = safe_sqrt(abs_squared(first))
        return self.a * arctan2(size, root) * (first / jnp.where(size > 0, size, 1))


@frozen_pytree
class Identity(Rule):
    """The identity: a stage that Optax's chain has."""

    elementwise = True

    def scalars(self, count: Count) -> Scalars:
        return ()

    def update(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Array:
        return g


@frozen_pytree
class ScaleByTrustRatio(Rule):
    """u·‖θ‖/‖u‖ per leaf; u where one of the two norms is zero (You et al. 2020, algorithm 2)."""

    elementwise = True
    reduces = True
    needs_params = True

    def scalars(self, count: Count) -> Scalars:
        return ()

    def of_leaf(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Scalars:
        params, updates = sum_of_squares(param), sum_of_squares(g)
        moves = (params > 0) & (updates > 0)
        # Otherwise XLA:CPU multiplies by rsqrt, whose bits differ between one number and several.
        norm = no_product(jnp.sqrt(jnp.where(moves, updates, 1)))
        return jnp.sqrt(jnp.where(moves, params, 1)) / norm

    def update(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Array:
        return scalars * g


@frozen_pytree
class CorrectBias(Rule):
    """u·√(1 - b2^t) / (1 - b1^t): both bias corrections as one factor.

    Kingma & Ba 2015, section 2, last paragraph.
    """

    elementwise = True

    b1: DecayRate
    b2: DecayRate

    def scalars(self, count: Count) -> Scalars:
        return jnp.sqrt(self.b2.correction(count)) / self.b1.correction(count)

    def update(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Array:
        return scalars * g
