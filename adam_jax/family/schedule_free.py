"""Schedule-free AdamW: Defazio et al. 2024, The Road Less Scheduled.

https://arxiv.org/abs/2405.15682
"""

from typing import Any

import jax
import optax
from optax import contrib

from adam_jax.alias import alias
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.rules.base import DecayRate, DecayRateLike, MomentRule
from adam_jax.rules.directions import Root
from adam_jax.rules.moments import EmaOfSquares, Newest
from adam_jax.transform import Transformation, scale_by_rule

ArrayLike = jax.typing.ArrayLike

# Optax exports the function that keeps this state, not its type.
_RMS_STATE = type(jax.eval_shape(optax.scale_by_rms(bias_correction=True).init, ()))


def _adam_without_momentum(
    b2: DecayRateLike, eps: ArrayLike, *, nu_dtype: SlotDType
) -> Transformation:
    """Adam with b1 = 0, which need not store mu.

    Args:
      b2: see `scale_by_adam`.
    """
    rule = MomentRule(Newest(), EmaOfSquares(DecayRate.of("b2", b2)), Root.of(eps))
    return scale_by_rule(rule, _RMS_STATE, None, nu_dtype)


_adamw_without_momentum = alias("schedule_free_adamw", _adam_without_momentum, weight_decay=0.0)


def schedule_free_adamw(
    learning_rate: ArrayLike = 0.0025,
    warmup_steps: int | None = None,
    b1: ArrayLike = 0.9,
    b2: DecayRateLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 0.0,
    weight_lr_power: ArrayLike = 2.0,
    state_dtype: jax.typing.DTypeLike | None = None,
    *,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
) -> optax.GradientTransformationExtraArgs:
    """Optax's schedule-free wrapper over AdamW without momentum.

        z ← z - α_t·adamw(g(y))     x ← (1 - c_t)·x + c_t·z     y = (1-b1)·z + b1·x

    The parameters are y; evaluate at x, `optax.contrib.schedule_free_eval_params(state, params)`.

    Args:
      learning_rate: α, per optimizer step; see `adam`.
      warmup_steps: the learning rate grows from 0 to α in that many steps; None for no warm-up.
      b1: weight of x in y, 0 < b1 < 1.
      b2: see `scale_by_adam`, as eps and nu_dtype.
      eps: ε.
      weight_decay: λ, decoupled, at y.
      weight_lr_power: c_t weighs z by the largest learning rate so far to this power.
      state_dtype: of z; None for the parameters' own.

    Returns:
      A transformation whose state is Optax's `ScheduleFreeState` around that of `adamw`.

    Raises:
      ValueError: see `adamw`.

    Reference: Defazio et al. 2024, algorithm 1.
    """
    rate: Any = learning_rate
    if warmup_steps is not None:
        rate = optax.warmup_constant_schedule(0.0, learning_rate, warmup_steps)
    inner = _adamw_without_momentum(rate, b2, eps, weight_decay, nu_dtype=nu_dtype)
    return contrib.schedule_free(inner, rate, b1, weight_lr_power, state_dtype)
