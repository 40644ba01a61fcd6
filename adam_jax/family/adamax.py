"""Adamax, Adam with the infinity norm: Kingma & Ba 2015, section 7.1.

https://arxiv.org/abs/1412.6980
"""

import jax
import optax

from adam_jax.alias import alias
from adam_jax.engine.transformation import Transformation, scale_by_rule
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.rules.base import DecayRate, DecayRateLike, MomentRule
from adam_jax.rules.directions import Ratio
from adam_jax.rules.moments import DecayingMax, Ema
from adam_jax.validation import check_number


def scale_by_adamax(
    b1: DecayRateLike = 0.9,
    b2: DecayRateLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    *,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
) -> Transformation:
    """Divides the averaged gradient by the largest one in memory.

        nu ← max(b2·nu, |g| + eps)       u = mû / nu

    Args:
      b1: see `scale_by_adam`, as the dtypes.
      b2: decay rate of the largest gradient.
      eps: added to |g|, in units of the gradient; ≥ 0.

    Returns:
      A transformation whose state is `optax.ScaleByAdamState(count, mu, nu)`.

    Reference: Kingma & Ba 2015, algorithm 2, which has no ε.
    """
    nu = DecayingMax(DecayRate.of("b2", b2), check_number("eps", eps, instead="1e-8 is usual"))
    rule = MomentRule(Ema(DecayRate.of("b1", b1)), nu, Ratio())
    return scale_by_rule(rule, optax.ScaleByAdamState, mu_dtype, nu_dtype)


adamax = alias("adamax", scale_by_adamax)
adamaxw = alias("adamaxw", scale_by_adamax, weight_decay=1e-4)
