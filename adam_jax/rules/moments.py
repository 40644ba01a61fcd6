"""Running statistics: how each is updated with a gradient, and how it is read."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from adam_jax.rules.base import DecayRate, Moment, Slot, Slots
from adam_jax.rules.pytrees import frozen_pytree, static
from adam_jax.rules.squares import abs_squared, bounded


@frozen_pytree
class Average(Moment):
    """An average x ← x + (1-b)(term - x), read as x / (1 - b^t).

    Attributes:
      rate: b.
      bias_correction: False reads x as it is.
      start: what x is before the first step.
    """

    rate: DecayRate
    bias_correction: bool = static(default=True)
    start: Any = 0.0

    @abc.abstractmethod
    def term(self, g: jax.Array, new: Mapping[str, jax.Array]) -> jax.Array:
        """What is averaged."""

    def renewed(self, old: Slots, name: str, term: jax.Array) -> jax.Array:
        """The average with another term in it."""
        return old.average(name, self.rate, term)

    def scalars(self, count: Any) -> Any:
        """1 / (1 - b^t)."""
        return self.rate.debiasing(count) if self.bias_correction else ()

    def step(
        self, g: jax.Array, old: Slots, scalars: Any, new: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `Moment.step`."""
        (slot,) = self.slots
        x = self.renewed(old, slot.name, self.term(g, new))
        return (x * scalars if self.bias_correction else x), {slot.name: x}


@frozen_pytree
class Ema(Average):
    """The average of the gradient: mu ← mu + (1-b)(g - mu)."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("mu", start=self.start, rate=self.rate.complement),)

    def term(self, g: jax.Array, new: Mapping[str, jax.Array]) -> jax.Array:
        del new
        return g


@frozen_pytree
class Newest(Moment):
    """The gradient itself: no average, nothing remembered."""

    slots = ()

    def step(
        self, g: jax.Array, old: Slots, scalars: Any, new: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        del old, scalars, new
        return g, {}


@frozen_pytree
class EmaOfSquares(Average):
    """The average of |g|²: nu ← nu + (1-b)(|g|² - nu)."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("nu", magnitude=True, start=self.start, rate=self.rate.complement),)

    def term(self, g: jax.Array, new: Mapping[str, jax.Array]) -> jax.Array:
        del new
        return abs_squared(g)


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

    def scalars(self, count: Any) -> Any:
        if not self.ema.bias_correction:
            return ()
        rate = self.ema.rate
        of_g = rate.complement / rate.correction(count)
        return (1 - rate.complement) / rate.correction(count, ahead=1) / of_g, of_g

    def step(
        self, g: jax.Array, old: Slots, scalars: Any, new: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        rate = self.ema.rate
        mu = old.average("mu", rate, self.ema.term(g, new))
        if not self.ema.bias_correction:
            return rate.average(mu, g), {"mu": mu}
        ratio, of_g = scalars
        return (g + ratio * mu) * of_g, {"mu": mu}


@frozen_pytree
class RunningMax(Moment):
    """The largest value that another statistic was ever read with: nu_max ← max(nu_max, read).

    Attributes:
      inner: the statistic; its `bias_correction` says whether it is debiased before the maximum.
      correct_max: the rate by whose 1 - b^t the maximum is divided as it is read; None for none.
    """

    inner: Moment
    correct_max: DecayRate | None = None

    @property
    def slots(self) -> tuple[Slot, ...]:
        read = (dataclasses.replace(slot, maximum=True) for slot in self.inner.slots)
        return (*read, Slot("nu_max", magnitude=True, rate=1.0, maximum=True))

    def scalars(self, count: Any) -> Any:
        after = () if self.correct_max is None else self.correct_max.debiasing(count)
        return self.inner.scalars(count), after

    def step(
        self, g: jax.Array, old: Slots, scalars: Any, new: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        inner_scalars, after = scalars
        read, renewed = self.inner.step(g, old, inner_scalars, new)
        nu_max = old.renew("nu_max", jnp.maximum(old["nu_max"], read))
        read = nu_max if self.correct_max is None else nu_max * after
        return read, renewed | {"nu_max": nu_max}


@frozen_pytree
class DecayingMax(Moment):
    """The largest |g| + eps, forgotten at the rate b: nu ← max(b·nu, |g| + eps)."""

    rate: DecayRate
    eps: Any

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("nu", magnitude=True, rate=self.rate.complement, maximum=True),)

    def step(
        self, g: jax.Array, old: Slots, scalars: Any, new: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        del scalars, new
        decayed = old["nu"] - self.rate.complement * old["nu"]
        nu = old.renew("nu", jnp.maximum(decayed, jnp.abs(g) + self.eps))
        return nu, {"nu": nu}


@frozen_pytree
class EmaOfSurprise(Average):
    """The average of |g - mu|², with mu as the first moment has just renewed it, plus a constant.

    Attributes:
      eps: added to the average in every step, and left in it.
    """

    eps: Any = 0.0

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("nu", magnitude=True, rate=self.rate.complement),)

    def term(self, g: jax.Array, new: Mapping[str, jax.Array]) -> jax.Array:
        # Through the average, whose weight of a new term is 1-b: eps / (1-b) comes out as eps.
        return abs_squared(bounded(g - new["mu"], times=4)) + self.eps / self.rate.complement


@frozen_pytree
class YogiSquares(EmaOfSquares):
    """|g|² followed in steps of its own size: nu ← nu - (1-b)·sign(nu - |g|²)·|g|²."""

    def renewed(self, old: Slots, name: str, term: jax.Array) -> jax.Array:
        # Selected last: XLA fuses a product into a sum, but not through a sign in every loop.
        x, step = old[name], self.rate.complement * term
        return old.renew(name, jnp.where(term > x, x + step, jnp.where(term < x, x - step, x)))
