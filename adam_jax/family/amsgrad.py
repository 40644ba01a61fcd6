"""AMSGrad: Reddi, Kale & Kumar 2018, On the Convergence of Adam and Beyond.

https://openreview.net/forum?id=ryQu7f-RZ
"""

import jax
import optax

from adam_jax.compose import learning_rate_link
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType, check_slot_dtype
from adam_jax.rules.base import DecayRate, MomentRule
from adam_jax.rules.directions import Root
from adam_jax.rules.moments import Ema, EmaOfSquares, RunningMax
from adam_jax.rules.scaling import Schedule
from adam_jax.transform import Link, Transformation

ArrayLike = jax.typing.ArrayLike


def scale_by_amsgrad(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    bias_correction: bool = True,
) -> Transformation:
    """Adam whose denominator never shrinks: it divides by the largest nû so far.

        nu_max ← max(nu_max, nû)         u = mû / (√(nu_max + eps_root) + eps)

    Args:
      b1: see `scale_by_adam`, as the next four.
      b2: decay rate of the second moment.
      eps: ε outside the root.
      eps_root: ε inside the root.
      mu_dtype: how mu is stored.
      bias_correction_mu: False reads mu as it is, as the paper does.
      bias_correction_nu: False takes the maximum of nu as it is, as the paper does. PyTorch does
        too, and divides the maximum by 1 - b2ᵗ afterwards.
      nu_dtype: how nu and nu_max are stored.
      bias_correction: False reads both moments as they are: the paper's algorithm.

    Returns:
      A transformation whose state is `optax.ScaleByAmsgradState(count, mu, nu, nu_max)`.

    Raises:
      ValueError: see `scale_by_adam`.

    Reference: Reddi, Kale & Kumar 2018, algorithm 2.
    """
    link = amsgrad_link(
        b1,
        b2,
        eps,
        eps_root,
        mu_dtype,
        nu_dtype,
        bias_correction_mu,
        bias_correction_nu,
        bias_correction,
    )
    return Transformation.of(link, chained=False)


def amsgrad(
    learning_rate: ArrayLike | Schedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    bias_correction: bool = True,
) -> Transformation:
    """AMSGrad: θ ← θ - α_t·mû / (√(nu_max + eps_root) + eps).

    Args:
      learning_rate: α, per optimizer step; see `adam`.
      b1: see `scale_by_amsgrad`, as all that follow.
      b2: decay rate of the second moment.
      eps: ε outside the root.
      eps_root: ε inside the root.
      mu_dtype: how mu is stored.
      bias_correction_mu: False reads mu as it is.
      bias_correction_nu: False takes the maximum of nu as it is.
      nu_dtype: how nu and nu_max are stored.
      bias_correction: False reads both moments as they are: the paper's algorithm.

    Returns:
      A transformation with the state of `optax.amsgrad`, a tuple of two.

    Raises:
      ValueError: see `adam`.

    Reference: Reddi, Kale & Kumar 2018, algorithm 2.
    """
    link = amsgrad_link(
        b1,
        b2,
        eps,
        eps_root,
        mu_dtype,
        nu_dtype,
        bias_correction_mu,
        bias_correction_nu,
        bias_correction,
    )
    return Transformation.of(link, learning_rate_link(learning_rate))


def amsgrad_link(
    b1: ArrayLike,
    b2: ArrayLike,
    eps: ArrayLike,
    eps_root: ArrayLike,
    mu_dtype: SlotDType,
    nu_dtype: SlotDType,
    bias_correction_mu: bool,
    bias_correction_nu: bool,
    bias_correction: bool,
) -> Link:
    """AMSGrad's rule over Optax's own state."""
    rule = MomentRule(
        Ema(DecayRate.of("b1", b1), bias_correction and bias_correction_mu),
        RunningMax(EmaOfSquares(DecayRate.of("b2", b2), bias_correction and bias_correction_nu)),
        Root.of(eps, eps_root),
    )
    nu_dtype = check_slot_dtype("nu_dtype", nu_dtype)
    dtypes = (check_slot_dtype("mu_dtype", mu_dtype), nu_dtype, nu_dtype)
    return Link(rule, optax.ScaleByAmsgradState, dtypes)
