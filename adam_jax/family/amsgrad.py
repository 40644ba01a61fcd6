"""AMSGrad: Reddi, Kale & Kumar 2018, On the Convergence of Adam and Beyond.

https://openreview.net/forum?id=ryQu7f-RZ
"""

import jax
import optax

from adam_jax.alias import alias
from adam_jax.engine.transformation import Transformation, scale_by_rule
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.rules.base import DecayRate, DecayRateLike, MomentRule
from adam_jax.rules.directions import Root
from adam_jax.rules.moments import Ema, EmaOfSquares, RunningMax


def scale_by_amsgrad(
    b1: DecayRateLike = 0.9,
    b2: DecayRateLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    eps_root: jax.typing.ArrayLike = 0.0,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    max_before_correction: bool = False,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    eps_hat: jax.typing.ArrayLike | None = None,
) -> Transformation:
    """Adam whose denominator never shrinks: it divides by the largest nû so far.

        nu_max ← max(nu_max, nû)         u = mû / (√(nu_max + eps_root) + eps)

    Args:
      b1: see `scale_by_adam`, as all that is not here.
      bias_correction_mu: False reads mu as it is, as the paper does.
      bias_correction_nu: False takes the maximum of nu as it is, as the paper does.
      max_before_correction: nu_max ← max(nu_max, nu), divided by 1 - b2ᵗ when it is read, as in
        PyTorch and Keras. A first gradient that is large then weighs for a while, not for ever.

    Returns:
      A transformation whose state is `optax.ScaleByAmsgradState(count, mu, nu, nu_max)`.

    Reference: Reddi, Kale & Kumar 2018, algorithm 2, which has no bias correction.
    """
    rate = DecayRate.of("b2", b2)
    corrected_after = max_before_correction and bias_correction_nu
    nu = EmaOfSquares(rate, bias_correction_nu and not max_before_correction)
    rule = MomentRule(
        Ema(DecayRate.of("b1", b1), bias_correction_mu),
        RunningMax(nu, rate if corrected_after else None),
        Root.of(eps, eps_root, eps_hat, rate if bias_correction_nu else None),
    )
    return scale_by_rule(rule, optax.ScaleByAmsgradState, mu_dtype, nu_dtype)


amsgrad = alias("amsgrad", scale_by_amsgrad)
amsgradw = alias("amsgradw", scale_by_amsgrad, weight_decay=1e-4)
