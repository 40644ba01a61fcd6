"""Adan: Xie et al. 2022, Adaptive Nesterov Momentum Algorithm.

https://arxiv.org/abs/2208.06677
"""

import dataclasses

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from adam_jax._types import Count, Number
from adam_jax.core.masks import MaskLike
from adam_jax.core.transformation import Transformation, scale_by_rule
from adam_jax.family.alias import alias
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.numerics import after_first, bounded, squared
from adam_jax.pytrees import frozen_pytree
from adam_jax.rates import DecayRate, DecayRateLike, Schedule, decay_rate
from adam_jax.rules.adam import Direction, Root
from adam_jax.rules.base import IrregularRule, View
from adam_jax.slots import Slot
from adam_jax.validation import check_number, named_arguments


@frozen_pytree
class Adan(IrregularRule):
    """Averages of the gradient, of its change, and of the squared look-ahead gradient."""

    elementwise = True

    b1: DecayRate
    b2: DecayRate
    b3: DecayRate
    change_weight: Number
    direction: Direction
    of_m: Number = None
    of_n: Number = None
    ratio: Number = None
    later: Number = None

    @property
    def slots(self) -> tuple[Slot, ...]:
        m, v = Slot("m", rate=self.b1.complement), Slot("v", rate=self.b2.complement)
        return (m, v, Slot("n", magnitude=True, rate=self.b3.complement), Slot("g", rate=1.0))

    def at(self, count: Count) -> "Adan":
        weight = self.b2.complement if self.change_weight is None else self.change_weight
        return dataclasses.replace(
            self,
            change_weight=weight,
            of_m=self.b1.debiasing(count),
            of_n=self.b3.debiasing(count),
            # One product per sum, see AheadEma: m̂ + w·v̂ = (m + ratio·v)·of_m.
            ratio=weight * self.b1.correction(count) * self.b2.debiasing(count),
            later=after_first(count),
        )

    def update(self, leaf: View) -> Array:
        g, old = leaf.g, leaf.old["g"]
        change = self.later * (g - old)  # The first gradient has no predecessor.
        ahead = bounded(g + self.change_weight * change, times=4)
        m = leaf.average("m", self.b1, g)
        v = leaf.average("v", self.b2, change)
        n = leaf.average("n", self.b3, squared(ahead))
        # Always g. The select lets XLA:CPU write it over the old gradient, not to a new buffer.
        leaf.renew("g", jnp.where(self.later >= 0, g, old))
        return self.direction((m + self.ratio * v) * self.of_m, n * self.of_n)


def scale_by_adan(
    b1: DecayRateLike | Schedule = 0.98,
    b2: DecayRateLike | Schedule = 0.92,
    b3: DecayRateLike | Schedule = 0.99,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    *,
    change_weight: ArrayLike | None = None,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
) -> Transformation:
    """Nesterov momentum from the gradient's change, without a gradient at another point.

    u and the arguments are those of `adan`, which explains all else. The state is
    `optax.ScaleByAdanState(m, v, n, g, t)`.
    """
    rates = decay_rate("b1", b1), decay_rate("b2", b2), decay_rate("b3", b3)
    if change_weight is not None:
        instead = "the paper's is b2, None is 1 - b2"
        change_weight = check_number("change_weight", change_weight, instead=instead)
    rule = Adan(*rates, change_weight, Root.of(eps, eps_root))
    return scale_by_rule(rule, optax.ScaleByAdanState, mu_dtype, nu_dtype, "scale_by_adan")


@named_arguments
def adan(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike | Schedule = 0.98,
    b2: DecayRateLike | Schedule = 0.92,
    b3: DecayRateLike | Schedule = 0.99,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 1e-8,
    weight_decay: ArrayLike | Schedule = 0.0,
    mask: MaskLike = None,
    *,
    weight_decay_mask: MaskLike = None,
    change_weight: ArrayLike | None = None,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    scale_decay: bool = True,
) -> Transformation:
    """Adan: Adam with Nesterov momentum from the change of the gradient.

        m ← b1·m + (1-b1)·g              v ← b2·v + (1-b2)·(g - g_old)
        n ← b3·n + (1-b3)·|g + w·(g - g_old)|²
        u = (m̂ + w·v̂) / (√(n̂ + eps_root) + eps)
        θ ← θ - α_t·(u + λ_t·θ)

    A hat is the bias correction: m̂ = m / (1 - b1ᵗ), likewise v̂ by b2 and n̂ by b3.

    Args:
      b1: decay rate of the gradient's average, per optimizer step, 0 ≤ b1 < 1. The paper's β1 is
        1-b1, and likewise for b2 and b3.
      b2: decay rate of the average of the gradient's change, per optimizer step, 0 ≤ b2 < 1.
      b3: decay rate of the average of squares, per optimizer step, 0 ≤ b3 < 1.
      change_weight: w ≥ 0, the weight of the gradient's change. None means 1-b2, as in Optax. The
        paper uses its 1-β2, which is b2 here: 0.92.
      mu_dtype: storage format of m, v and the last gradient, as in `adamw`.
      nu_dtype: storage format of n, as in `adamw`.

    The other arguments, the arithmetic, the errors and the differences from Optax are those of
    `adamw`. The state is that of `adamw`, but with `optax.ScaleByAdanState`, as in Optax.

    Reference: Xie et al. 2022, algorithm 1, whose decay is proximal: θ ← (θ - α·u) / (1 + λ·α).
    """
    return alias("adan", scale_by_adan, **locals())
