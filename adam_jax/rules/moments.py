"""Running statistics: how each is updated with a gradient, and how it is read."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from adam_jax.rules.base import DecayRate, Moment, Slot, Slots, static


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ema:
    """The average of the gradient: mu ← mu + (1-b)(g - mu), read as mu / (1 - b^t).

    Attributes:
      rate: b.
      bias_correction: False reads mu as it is.
    """

    rate: DecayRate
    bias_correction: bool = static(default=True)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("mu"),)

    def scalars(self, count: Any) -> Any:
        return self.rate.correction(count) if self.bias_correction else ()

    def step(
        self, g: jax.Array, old: Slots, scalars: Any, new: Slots
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        del new
        mu = self.rate.average(old["mu"], g)
        return (mu / scalars if self.bias_correction else mu), {"mu": mu}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NesterovEma:
    """The average of the gradient, read one step ahead: b·mu / (1 - b^(t+1)) + (1-b)·g / (1 - b^t).

    Dozat 2016, algorithm 2, with one constant b instead of its schedule of them, as in Optax.

    Attributes:
      rate: b.
      bias_correction: False reads b·mu + (1-b)·g.
    """

    rate: DecayRate
    bias_correction: bool = static(default=True)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("mu"),)

    def scalars(self, count: Any) -> Any:
        if not self.bias_correction:
            return ()
        return self.rate.correction(count, ahead=1), self.rate.correction(count)

    def step(
        self, g: jax.Array, old: Slots, scalars: Any, new: Slots
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        del new
        mu = self.rate.average(old["mu"], g)
        if not self.bias_correction:
            return self.rate.average(mu, g), {"mu": mu}
        ahead, now = scalars
        mu_hat = mu / ahead
        return mu_hat + self.rate.complement * (g / now - mu_hat), {"mu": mu}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EmaOfSquares:
    """The average of |g|²: nu ← nu + (1-b)(|g|² - nu), read as nu / (1 - b^t).

    Attributes:
      rate: b.
      bias_correction: False reads nu as it is.
    """

    rate: DecayRate
    bias_correction: bool = static(default=True)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("nu", magnitude=True),)

    def scalars(self, count: Any) -> Any:
        return self.rate.correction(count) if self.bias_correction else ()

    def step(
        self, g: jax.Array, old: Slots, scalars: Any, new: Slots
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        del new
        nu = self.rate.average(old["nu"], abs_squared(g))
        return (nu / scalars if self.bias_correction else nu), {"nu": nu}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RunningMax:
    """The largest value that another statistic was ever read with: nu_max ← max(nu_max, read).

    Whether the statistic is debiased before the maximum is taken is the inner moment's own setting.
    Reddi, Kale & Kumar 2018 (AMSGrad), algorithm 2, has no bias correction at all.
    """

    inner: Moment

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (*self.inner.slots, Slot("nu_max", magnitude=True))

    def scalars(self, count: Any) -> Any:
        return self.inner.scalars(count)

    def step(
        self, g: jax.Array, old: Slots, scalars: Any, new: Slots
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        read, renewed = self.inner.step(g, old, scalars, new)
        nu_max = jnp.maximum(old["nu_max"], read)
        return nu_max, renewed | {"nu_max": nu_max}


def abs_squared(g: jax.Array) -> jax.Array:
    """|g|², real also for complex g; g·g where g is real, so that its gradient at zero is zero."""
    if jnp.iscomplexobj(g):
        return jnp.real(g) * jnp.real(g) + jnp.imag(g) * jnp.imag(g)
    return g * g
