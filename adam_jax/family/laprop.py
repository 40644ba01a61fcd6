"""LaProp: Ziyin, Wang & Ueda 2020, LaProp: Separating Momentum and Adaptivity in Adam.

https://arxiv.org/abs/2002.04839
"""

from typing import Any, NamedTuple

import optax
from jax import Array
from jax.typing import ArrayLike

from adam_jax._types import Updates
from adam_jax.core.masks import MaskLike
from adam_jax.core.states import register
from adam_jax.core.transformation import Transformation, scale_by_rule
from adam_jax.family.alias import alias
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.numerics import exact, squared
from adam_jax.pytrees import frozen_pytree
from adam_jax.rates import DecayRateLike, Schedule, decay_rate
from adam_jax.rules.adam import Direction, Ema, Root
from adam_jax.rules.base import MemberRule, View
from adam_jax.slots import Slot
from adam_jax.validation import named_arguments


class ScaleByLapropState(NamedTuple):
    """State of `scale_by_laprop`; mu is in units of the update, not of the gradient.

    Attributes:
      count: optimizer steps completed, int32.
      mu: the averages of the divided gradients, a tree like the parameters.
      nu: the averages of |g|², a tree like the parameters.
    """

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Updates
    nu: Updates


register(ScaleByLapropState, slots={"mu": False, "nu": True}, counts=["count"])


@frozen_pytree
class Laprop(MemberRule):
    """The average of gradients, each divided by the root of the current second moment.

    Attributes:
      first: the running statistic of the divided gradient.
      second: the running statistic of the squared gradient, updated before the first.
      direction: how a gradient is divided.
    """

    elementwise = True

    first: Any
    second: Ema
    direction: Direction

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (*self.second.slots, *self.first.slots)

    def update(self, leaf: View) -> Array:
        nu = self.second(leaf, squared(leaf.g))
        return exact(self.first(leaf, self.direction(leaf.g, nu)))

    def normalised(self, leaf: View, u: Array) -> Array:
        return self.direction(leaf.g, self.second.read(leaf))


def scale_by_laprop(
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
    eps: ArrayLike = 1e-15,
    *,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
) -> Transformation:
    """Divides each gradient by the root of the current second moment, then averages.

    u and the arguments are those of `laprop`, which explains all else. The state is
    `ScaleByLapropState(count, mu, nu)`.
    """
    rates = decay_rate("b1", b1), decay_rate("b2", b2)
    rule = Laprop(Ema("mu", rates[0]), Ema("nu", rates[1], magnitude=True), Root.of(eps))
    return scale_by_rule(rule, ScaleByLapropState, mu_dtype, nu_dtype, "scale_by_laprop")


@named_arguments
def laprop(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
    eps: ArrayLike = 1e-15,
    *,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    l2: ArrayLike | Schedule | None = None,
    weight_decay: ArrayLike | Schedule | None = None,
    mask: MaskLike = None,
    weight_decay_mask: MaskLike = None,
    scale_decay: bool = True,
) -> Transformation:
    """LaProp: Adam that divides each gradient first, and then averages.

        nu ← b2·nu + (1-b2)·|g|²         nû = nu / (1 - b2ᵗ)
        mu ← b1·mu + (1-b1)·g / (√nû + eps)
        u  = mu / (1 - b1ᵗ)
        θ  ← θ - α_t·u, with weight_decay θ - α_t·(u + λ_t·θ)

    Adam divides the average. LaProp averages divided gradients, so |u| is at most 1/√(1-b2) for any
    b1.

    Args:
      b1: decay rate of the average of divided gradients, per optimizer step, 0 ≤ b1 < 1. It may be
        larger than b2.
      l2: as in `adam`.
      weight_decay: λ, as in `adamw`. None omits it and its entry in the state.

    The other arguments, the arithmetic and the errors are those of `adamw`. The state is that of
    `adam`, but with `ScaleByLapropState`. `weight_decay` adds its entry before that of the learning
    rate; `update` then needs `params`.

    Optax lacks it.
    Differs from the authors' PyTorch code (and `timm`) in: with a schedule, that code weights each
    divided gradient in mu by the learning rate of its step; the paper does not. With a constant
    learning rate both are the same. Its weight decay is that of `scale_decay=False` and applies
    after the step; `timm` multiplies its own by α_t.

    Reference: Ziyin, Wang & Ueda 2020, algorithm 1; eps is from the authors' code. Loshchilov &
    Hutter 2019, algorithm 2, for the decay.
    """
    return alias("laprop", scale_by_laprop, **locals())
