"""Adan: Xie et al. 2022, Adaptive Nesterov Momentum Algorithm.

https://arxiv.org/abs/2208.06677
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_jax.alias import alias
from adam_jax.engine.transformation import Transformation, scale_by_rule
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.rules.base import (
    Average,
    DecayRate,
    DecayRateLike,
    Direction,
    MemberRule,
    Slot,
    Slots,
    after_first,
)
from adam_jax.rules.directions import Root
from adam_jax.rules.pytrees import frozen_pytree
from adam_jax.rules.squares import abs_squared, bounded
from adam_jax.validation import check_number


@frozen_pytree
class Adan(MemberRule):
    """Averages of the gradient, of its change, and of the square of the gradient looked ahead."""

    b1: DecayRate
    b2: DecayRate
    b3: DecayRate
    change_weight: Any
    direction: Direction

    @property
    def slots(self) -> tuple[Slot, ...]:
        m, v = Slot("m", rate=self.b1.complement), Slot("v", rate=self.b2.complement)
        return (m, v, Slot("n", magnitude=True, rate=self.b3.complement), Slot("g"))

    def scalars(self, count: Any) -> Any:
        debiasing = self.b1.debiasing(count), self.b3.debiasing(count)
        weight = self.b2.complement if self.change_weight is None else self.change_weight
        # One product per sum, see NesterovEma: m̂ + w·v̂ = (m + ratio·v)·m_debiasing.
        ratio = weight * self.b1.correction(count) * self.b2.debiasing(count)
        return debiasing, ratio, after_first(count), weight, self.direction.scalars(count)

    def renewed(
        self, slot: str, g: jax.Array, old: Slots, new: Slots, scalars: Any
    ) -> jax.Array | Average:
        _, _, later, weight, _ = scalars
        if slot == "g":
            # Always g: what may be the old gradient XLA:CPU writes in its place, else beside it.
            return jnp.where(later >= 0, g, old["g"])
        if slot == "m":
            return Average(self.b1, g)
        change = later * (g - old["g"])  # Nothing to compare the first gradient with.
        if slot == "v":
            return Average(self.b2, change)
        return Average(self.b3, abs_squared(bounded(g + weight * change, times=4)))

    def update(
        self, g: jax.Array, old: Slots, new: Slots, scalars: Any, param: jax.Array | None
    ) -> jax.Array:
        (m_debiasing, n_debiasing), ratio, _, _, direction = scalars
        first = (new["m"] + ratio * new["v"]) * m_debiasing
        return self.direction.combine(first, new["n"] * n_debiasing, direction)

    def normalised(self, g: jax.Array, old: Slots, new: Slots, scalars: Any) -> jax.Array:
        return self.update(g, old, new, scalars, None)

    def eps_dominates(self, new: Slots, scalars: Any) -> None:
        return None

    def with_direction(self, make: Callable[[bool], Direction]) -> "Adan":
        return dataclasses.replace(self, direction=self.direction.replaced(make))


def scale_by_adan(
    b1: DecayRateLike = 0.98,
    b2: DecayRateLike = 0.92,
    b3: DecayRateLike = 0.99,
    eps: jax.typing.ArrayLike = 1e-8,
    eps_root: jax.typing.ArrayLike = 0.0,
    *,
    change_weight: jax.typing.ArrayLike | None = None,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
) -> Transformation:
    """Nesterov momentum from the change of the gradient, not from a gradient elsewhere.

        m ← b1·m + (1-b1)·g              v ← b2·v + (1-b2)·(g - g_old)
        n ← b3·n + (1-b3)·|g + w·(g - g_old)|²
        u = (m̂ + w·v̂) / (√(n̂ + eps_root) + eps)

    Args:
      b1: decay rate of the gradient's average; Optax's rates are one minus the paper's β.
      b2: decay rate of the average of the gradient's change.
      b3: decay rate of the average of squares.
      eps: see `scale_by_adam`, as eps_root.
      change_weight: w, the weight of the gradient's change; None is 1-b2, as in Optax. The paper's
        is its 1-β2, which is b2 here: 0.92.
      mu_dtype: how m, v and the last gradient are stored.
      nu_dtype: how n is stored.

    Returns:
      A transformation whose state is `optax.ScaleByAdanState(m, v, n, g, t)`.

    Reference: Xie et al. 2022, algorithm 1.
    """
    rates = DecayRate.of("b1", b1), DecayRate.of("b2", b2), DecayRate.of("b3", b3)
    if change_weight is not None:
        instead = "the paper's is b2, None is 1 - b2"
        change_weight = check_number("change_weight", change_weight, instead=instead)
    rule = Adan(*rates, change_weight, Root.of(eps, eps_root))
    return scale_by_rule(rule, optax.ScaleByAdanState, mu_dtype, nu_dtype)


adan = alias("adan", scale_by_adan, weight_decay=0.0, eps_root=1e-8)
