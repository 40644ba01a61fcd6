"""Rules that wrap a member's rule: they change its update and keep its slots."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from adam_jax._types import Count, Leaf, Number, PyTree, Scalars
from adam_jax.rules.arithmetic import DecayRate, after_first, safe_sqrt, sum_of_squares
from adam_jax.rules.base import Direction, MemberRule, Renewed, Rule, Slots
from adam_jax.rules.pytrees import frozen_pytree
from adam_jax.slots import Slot
from adam_jax.xla.products import no_product
from adam_jax.xla.sign import sign


@frozen_pytree
class ModifiedRule(MemberRule):
    """A member's rule with a different update."""

    inner: MemberRule

    @property
    def slots(self) -> tuple[Slot, ...]:
        return self.inner.slots

    @property
    def needs_params(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.needs_params

    @property
    def first(self) -> PyTree:
        return getattr(self.inner, "first", None)

    @property
    def second(self) -> PyTree:
        return getattr(self.inner, "second", None)

    def scalars(self, count: Count) -> Scalars:
        return self.inner.scalars(count)

    def renewed(self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Renewed:
        return self.inner.renewed(slot, g, old, new, scalars)

    def normalised(self, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Array:
        return self.inner.normalised(g, old, new, scalars)

    def with_direction(self, make: Callable[[bool], Direction]) -> "ModifiedRule":
        return dataclasses.replace(self, inner=self.inner.with_direction(make))

    def looking_ahead(self) -> "ModifiedRule":
        return dataclasses.replace(self, inner=self.inner.looking_ahead())


class ElementwiseModifier(ModifiedRule):
    """One whose update of each element depends on that element and the scalars alone."""

    @property
    def elementwise(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.elementwise


@frozen_pytree
class Cautious(ElementwiseModifier):
    """u where it has the sign of g, divided by the share of such elements; 0 elsewhere."""

    reduces = True

    def of_leaf(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Scalars:
        inner = self.inner.leaf_scalars(g, old, new, scalars, param)
        u = self.inner.update(g, old, new, inner, param)
        share = jnp.sum(_aligned(u, g), dtype=jnp.real(u).dtype) / max(u.size, 1)
        return inner, 1 / jnp.maximum(share, LEAST_SHARE)

    def update(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Array:
        inner, factor = scalars
        u = self.inner.update(g, old, new, inner, param)
        return jnp.where(_aligned(u, g), u * factor, 0)


def _aligned(u: Array, g: Array) -> Array:
    return jnp.real(u * jnp.conj(g)) > 0


# As in the authors' code. Their algorithm's d / (count + 1) would halve the step of a scalar.
LEAST_SHARE = 1e-3


@frozen_pytree
class Grams(ElementwiseModifier):
    """The magnitude of u with the sign of g."""

    @property
    def reduces(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.reduces

    def of_leaf(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Scalars:
        return self.inner.of_leaf(g, old, new, scalars, param)

    def update(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Array:
        return no_product(sign(g) * jnp.abs(self.inner.update(g, old, new, scalars, param)))


@frozen_pytree
class ClipUpdateRms(ElementwiseModifier):
    """u / max(1, RMS / threshold), with the RMS of the gradient divided as u is."""

    reduces = True

    threshold: Number

    def of_leaf(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Scalars:
        measured = self.inner.normalised(g, old, new, scalars)
        rms = safe_sqrt(sum_of_squares(measured) / max(measured.size, 1))
        inner = self.inner.leaf_scalars(g, old, new, scalars, param)
        return inner, 1 / jnp.maximum(1, rms / self.threshold)

    def update(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Array:
        inner, factor = scalars
        return no_product(self.inner.update(g, old, new, inner, param) * factor)


@frozen_pytree
class AmplifySlowGradients(Rule):
    """g + factor·slow; slow is an average of g that starts at the first gradient."""

    elementwise = True

    rate: DecayRate
    factor: Number

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("slow", rate=self.rate.complement),)

    def scalars(self, count: Count) -> Scalars:
        return after_first(count)

    def renewed(self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Array:
        return jnp.where(scalars > 0, self.rate.average(old["slow"], g), g)

    def update(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Array:
        return g + self.factor * new["slow"]
