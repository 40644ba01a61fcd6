"""Rules around a member's rule: they change its update, and keep its slots as they are."""

from typing import Any

import jax
import jax.numpy as jnp

from adam_jax.rules.base import DecayRate, MomentRule, Rule, Slot, Slots, after_first
from adam_jax.rules.directions import safe_sqrt
from adam_jax.rules.pytrees import frozen_pytree
from adam_jax.rules.scaling import AddDecayedWeights
from adam_jax.rules.squares import abs_squared


@frozen_pytree
class Wrapped(Rule):
    """A rule with the slots, the scalars and the needs of the one inside."""

    inner: Rule

    @property
    def elementwise(self) -> bool:
        return self.inner.elementwise

    @property
    def slots(self) -> tuple[Slot, ...]:
        return self.inner.slots

    @property
    def needs_params(self) -> bool:
        return self.inner.needs_params

    def scalars(self, count: Any) -> Any:
        return self.inner.scalars(count)


@frozen_pytree
class Cautious(Wrapped):
    """u where it points along g, larger by the share of the elements that do; else 0."""

    @property
    def elementwise(self) -> bool:
        return False

    def step(
        self, g: jax.Array, old: Slots, scalars: Any, param: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        u, new = self.inner.step(g, old, scalars, param)
        aligned = jnp.real(u * jnp.conj(g)) > 0
        share = jnp.sum(aligned, dtype=jnp.real(u).dtype) / max(u.size, 1)
        return jnp.where(aligned, u / jnp.maximum(share, LEAST_SHARE), 0), new


# As in the authors' code: their algorithm's d / (count + 1) halves the step of a scalar.
LEAST_SHARE = 1e-3


@frozen_pytree
class CautiousDecay(Wrapped):
    """u + λ·θ where u and θ point the same way, else u."""

    inner: AddDecayedWeights

    def step(
        self, g: jax.Array, old: Slots, scalars: Any, param: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        decayed, new = self.inner.step(g, old, scalars, param)
        assert param is not None  # needs_params
        agreement = jnp.real(g * jnp.conj(param))
        # Behind the learning rate u has been turned downhill.
        agree = agreement <= 0 if self.inner.downhill else agreement >= 0
        return jnp.where(agree, decayed, g), new


@frozen_pytree
class ClipUpdateRms(Wrapped):
    """u / max(1, RMS / threshold), the RMS that of the gradient divided as u is."""

    threshold: Any

    @property
    def elementwise(self) -> bool:
        return False

    def step(
        self, g: jax.Array, old: Slots, scalars: Any, param: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        if isinstance(self.inner, MomentRule):
            u, measured, new = self.inner.step_unaveraged(g, old, scalars)
        else:
            u, new = self.inner.step(g, old, scalars, param)
            measured = u
        rms = safe_sqrt(jnp.sum(abs_squared(measured)) / max(u.size, 1))
        return u * (1 / jnp.maximum(1, rms / self.threshold)), new


@frozen_pytree
class AmplifySlowGradients(Rule):
    """g + factor·slow, with slow an average of g that starts at the first one."""

    rate: DecayRate
    factor: Any

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("slow", rate=self.rate.complement),)

    def scalars(self, count: Any) -> Any:
        return after_first(count)

    def step(
        self, g: jax.Array, old: Slots, scalars: Any, param: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        del param
        slow = jnp.where(scalars > 0, self.rate.average(old["slow"], g), g)
        slow = old.renew("slow", slow)
        return g + self.factor * slow, {"slow": slow}
