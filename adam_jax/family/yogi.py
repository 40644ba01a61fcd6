"""Yogi: Zaheer et al. 2018, Adaptive Methods for Nonconvex Optimization.

https://proceedings.neurips.cc/paper/2018/hash/90365351ccc7437a1309dc64e4db32a3-Abstract.html
"""

import jax
import optax

from adam_jax.alias import alias
from adam_jax.engine.transformation import Transformation, scale_by_rule
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.rules.base import DecayRate, DecayRateLike, MomentRule
from adam_jax.rules.directions import Root
from adam_jax.rules.moments import Ema, YogiSquares
from adam_jax.validation import check_number


def scale_by_yogi(
    b1: DecayRateLike = 0.9,
    b2: DecayRateLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-3,
    eps_root: jax.typing.ArrayLike | None = 0.0,
    initial_accumulator_value: jax.typing.ArrayLike | None = 1e-6,
    *,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
) -> Transformation:
    """Adam whose denominator moves by at most (1-b2)·|g|² a step, in either direction.

        nu ← nu - (1-b2)·sign(nu - |g|²)·|g|²        u = mû / (√(nû + eps_root) + eps)

    Args:
      b1: see `scale_by_adam`, as all that is not here.
      eps_root: added inside the root; None is 0.0.
      initial_accumulator_value: of every element of mu and nu, as in Optax; the paper starts nu
        from the squares of a batch's gradient. None is 1e-6. Both are None by default in `yogi`:
        the numbers of `optax.inject_hyperparams(yogi)` are those of Optax's, which has neither.

    Returns:
      A transformation whose state is `optax.ScaleByAdamState(count, mu, nu)`.

    Reference: Zaheer et al. 2018, algorithm 2, which has no bias correction.
    """
    eps_root = 0.0 if eps_root is None else eps_root
    start = 1e-6 if initial_accumulator_value is None else initial_accumulator_value
    instead = "the usual value is 1e-6"
    start = check_number("initial_accumulator_value", start, instead=instead)
    first = Ema(DecayRate.of("b1", b1), start=start)
    second = YogiSquares(DecayRate.of("b2", b2), start=start)
    rule = MomentRule(first, second, Root.of(eps, eps_root))
    return scale_by_rule(rule, optax.ScaleByAdamState, mu_dtype, nu_dtype)


# Optax's yogi has neither.
_OWN = dict.fromkeys(("eps_root", "initial_accumulator_value"))
yogi = alias("yogi", scale_by_yogi, keyword_only=tuple(_OWN), **_OWN)
