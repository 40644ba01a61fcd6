"""Running statistics: how each is renewed with a gradient, and how it is read."""

import abc
import dataclasses

import jax.numpy as jnp
from jax import Array

from adam_jax._types import Count, Number, Scalars
from adam_jax.rules.base import Average, Moment, Slot, Slots
from adam_jax.rules.pytrees import frozen_pytree, static
from adam_jax.rules.rates import DecayRate
from adam_jax.rules.squares import abs_squared, bounded


@frozen_pytree
class CorrectedMoment(Moment):
    """One accumulator x, read as x / (1 - b^t).

    Attributes:
      rate: b.
      bias_correction: False reads x as it is.
      start: what x is before the first step.
    """

    averaged = True

    rate: DecayRate
    bias_correction: bool = static(default=True)
    start: Number = 0.0

    def scalars(self, count: Count) -> Scalars:
        """1 / (1 - b^t)."""
        return self.rate.debiasing(count) if self.bias_correction else ()

    def read(self, g: Array, new: Slots, scalars: Scalars) -> Array:
        (slot,) = self.slots
        x = new[slot.name]
        return x * scalars if self.bias_correction else x

    @abc.abstractmethod
    def renewed(
        self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars
    ) -> Array | Average:
        """See `Moment.renewed`."""


@frozen_pytree
class Ema(CorrectedMoment):
    """The average of the gradient: mu ← mu + (1-b)(g - mu)."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("mu", start=self.start, rate=self.rate.complement),)

    def renewed(self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Average:
        return Average(self.rate, g)

    def looking_ahead(self) -> Moment:
        return NesterovEma(self)


@frozen_pytree
class Newest(Moment):
    """The gradient itself: no average, nothing remembered."""

    slots = ()

    def scalars(self, count: Count) -> Scalars:
        return ()

    def renewed(self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Array:
        raise KeyError(slot)

    def read(self, g: Array, new: Slots, scalars: Scalars) -> Array:
        return g


@frozen_pytree
class EmaOfSquares(CorrectedMoment):
    """The average of |g|²: nu ← nu + (1-b)(|g|² - nu)."""

    statistic = "average of squares"

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("nu", magnitude=True, start=self.start, rate=self.rate.complement),)

    def renewed(self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Average:
        return Average(self.rate, abs_squared(g))


@frozen_pytree
class NesterovEma(Moment):
    """The average of the gradient, read one step ahead: b·mu / (1 - b^(t+1)) + (1-b)·g / (1 - b^t).

    Dozat 2016, algorithm 2, with one constant b instead of its schedule of them, as in Optax.

    Computed as (g + r·mu)·s. Of a sum of two products XLA contracts one into a fused multiply-add,
    and which one depends on the loop around it: on 8 devices it would have other bits than on 1.

    Attributes:
      ema: the average.
    """

    ema: Ema

    @property
    def slots(self) -> tuple[Slot, ...]:
        return self.ema.slots

    def scalars(self, count: Count) -> Scalars:
        if not self.ema.bias_correction:
            return ()
        rate = self.ema.rate
        of_g = rate.complement / rate.correction(count)
        return (1 - rate.complement) / rate.correction(count, ahead=1) / of_g, of_g

    def renewed(self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Average:
        return Average(self.ema.rate, g)

    def read(self, g: Array, new: Slots, scalars: Scalars) -> Array:
        if not self.ema.bias_correction:
            return self.ema.rate.average(new["mu"], g)
        ratio, of_g = scalars
        return (g + ratio * new["mu"]) * of_g


@frozen_pytree
class RunningMax(Moment):
    """The largest value that another statistic was ever read with: nu_max ← max(nu_max, read).

    Attributes:
      inner: the statistic; its `bias_correction` says whether it is debiased before the maximum.
      correct_max: the rate by whose 1 - b^t the maximum is divided as it is read; None for none.
    """

    inner: CorrectedMoment
    correct_max: DecayRate | None = None

    @property
    def statistic(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return f"largest {'corrected ' * self.inner.bias_correction}average of squares"

    @property
    def slots(self) -> tuple[Slot, ...]:
        read = (dataclasses.replace(slot, maximum=True) for slot in self.inner.slots)
        return (*read, Slot("nu_max", magnitude=True, rate=1.0, maximum=True))

    def scalars(self, count: Count) -> Scalars:
        after = () if self.correct_max is None else self.correct_max.debiasing(count)
        return self.inner.scalars(count), after

    def renewed(
        self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars
    ) -> Array | Average:
        if slot == "nu_max":
            return jnp.maximum(old["nu_max"], self.inner.read(g, new, scalars[0]))
        return self.inner.renewed(slot, g, old, new, scalars[0])

    def read(self, g: Array, new: Slots, scalars: Scalars) -> Array:
        return new["nu_max"] if self.correct_max is None else new["nu_max"] * scalars[1]


@frozen_pytree
class DecayingMax(Moment):
    """The largest |g| + eps, forgotten at the rate b: nu ← max(b·nu, |g| + eps)."""

    statistic = "largest gradient"

    rate: DecayRate
    eps: Number

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
    """The average of |g - mu|², with mu as the first moment has just renewed it, plus a constant.

    Attributes:
      eps: added to the average in every step, and left in it.
    """

    eps: Number = 0.0

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("nu", magnitude=True, rate=self.rate.complement),)

    def renewed(self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Average:
        # Through the average, whose weight of a new term is 1-b: eps / (1-b) comes out as eps.
        surprise = abs_squared(bounded(g - new["mu"], times=4))
        return Average(self.rate, surprise + self.eps / self.rate.complement)


@frozen_pytree
class YogiSquares(CorrectedMoment):
    """|g|² followed in steps of its own size: nu ← nu - (1-b)·sign(nu - |g|²)·|g|²."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("nu", magnitude=True, start=self.start, rate=self.rate.complement),)

    def renewed(self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Array:
        # Selected last: XLA fuses a product into a sum, but not through a sign in every loop.
        x, square = old["nu"], abs_squared(g)
        step = self.rate.complement * square
        return jnp.where(square > x, x + step, jnp.where(square < x, x - step, x))
