"""Adam and AdamW. The arguments that all members share are documented here.

Kingma & Ba 2015, Adam: A Method for Stochastic Optimization, https://arxiv.org/abs/1412.6980
Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization, https://arxiv.org/abs/1711.05101
"""

from typing import Any, NamedTuple

import jax
import optax

from adam_jax.compose import learning_rate_link, weight_decay_link
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType, check_slot_dtype
from adam_jax.rules.base import DecayRate, MomentRule
from adam_jax.rules.directions import Root
from adam_jax.rules.moments import Ema, EmaOfSquares, NesterovEma
from adam_jax.rules.scaling import CorrectBias, Schedule
from adam_jax.transform import Link, Transformation

ArrayLike = jax.typing.ArrayLike


class ScaleByBiasCorrectionState(NamedTuple):
    """State of `scale_by_bias_correction`: the optimizer steps completed, int32."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


def adam_link(
    b1: ArrayLike,
    b2: ArrayLike,
    eps: ArrayLike,
    eps_root: ArrayLike,
    mu_dtype: SlotDType,
    nu_dtype: SlotDType,
    nesterov: bool,
    bias_correction: bool,
) -> Link:
    """Adam's rule over Optax's own state."""
    first = (NesterovEma if nesterov else Ema)(DecayRate.of("b1", b1), bias_correction)
    second = EmaOfSquares(DecayRate.of("b2", b2), bias_correction)
    rule = MomentRule(first, second, Root.of(eps, eps_root))
    dtypes = (check_slot_dtype("mu_dtype", mu_dtype), check_slot_dtype("nu_dtype", nu_dtype))
    return Link(rule, optax.ScaleByAdamState, dtypes)


def scale_by_adam(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    *,
    nesterov: bool = False,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    bias_correction: bool = True,
) -> Transformation:
    """Divides the averaged gradient by the root of its averaged square.

        mu ← b1·mu + (1-b1)·g            mû = mu / (1 - b1ᵗ)
        nu ← b2·nu + (1-b2)·|g|²         nû = nu / (1 - b2ᵗ)
        u  = mû / (√(nû + eps_root) + eps)

    Everything is computed in float32 (float64 for float64 leaves), whatever the dtypes of the
    gradient, the parameter and the state; only u is rounded, to the gradient's dtype (or the
    parameter's, if that is given and wider).

    Args:
      b1: decay rate of the first moment, per optimizer step, 0 ≤ b1 < 1.
      b2: decay rate of the second moment, per optimizer step, 0 ≤ b2 < 1.
      eps: ε, added outside the root, in units of the gradient; ≥ 0.
      eps_root: added inside the root, in units of the gradient squared; ≥ 0.
      mu_dtype: how mu is stored: a floating-point dtype; None, the parameter's own; by default the
        parameter's own or float32, whichever is wider.
      nesterov: read mu one step ahead: b1·mu / (1-b1ᵗ⁺¹) + (1-b1)·g / (1-b1ᵗ) (Dozat 2016).
      nu_dtype: how nu is stored, likewise. bfloat16 lets nu stand still: see `AT_LEAST_FLOAT32`.
      bias_correction: False reads mu and nu as they are; see `scale_by_bias_correction`.

    Returns:
      A transformation whose state is `optax.ScaleByAdamState(count, mu, nu)`.

    Raises:
      ValueError: here, for a number outside its range or a dtype that cannot store a moment; in
        `init` and `update`, for integer leaves, and for gradients unlike the state.

    Example:
      The first step of Adam has the size 1 whatever the gradient's scale:

      >>> import jax.numpy as jnp
      >>> tx = scale_by_adam()
      >>> params = jnp.zeros(3)
      >>> updates, state = tx.update(jnp.array([1e-3, 2.0, -1e4]), tx.init(params))
      >>> print(updates.round(4))
      [ 1.  1. -1.]

    Differs from Optax in: the averages are formed as old + (1-b)(new - old) and the corrections by
    expm1, with 1-b from float64, so that the result stays within a few ulp of the exact algorithm
    (Optax: 76 to 81); nu is real for complex gradients; 16-bit parameters get float32 moments.
    Differs from PyTorch in: |g|² of a complex gradient is shared by its two parts.

    Reference: Kingma & Ba 2015, algorithm 1.
    """
    link = adam_link(b1, b2, eps, eps_root, mu_dtype, nu_dtype, nesterov, bias_correction)
    return Transformation.of(link, chained=False)


def scale_by_bias_correction(b1: ArrayLike = 0.9, b2: ArrayLike = 0.999) -> Transformation:
    """Applies both bias corrections as one number: u ← u·√(1 - b2ᵗ) / (1 - b1ᵗ).

    After `scale_by_adam(b1, b2, eps, bias_correction=False)` this is the more efficient form that
    the paper names at the end of its section 2. Its ε stands beside √nu instead of √nû
    ("epsilon-hat"), so the two forms are equal for eps = 0, and for eps > 0 from the step on at
    which 1 - b2ᵗ is one.

    Args:
      b1: decay rate of the first moment, 0 ≤ b1 < 1.
      b2: decay rate of the second moment, 0 ≤ b2 < 1.

    Returns:
      A transformation whose state is the step count.

    Raises:
      ValueError: a decay rate outside its range.

    Reference: Kingma & Ba 2015, section 2, last paragraph. Keras and TensorFlow compute this form.
    """
    rule = CorrectBias(DecayRate.of("b1", b1), DecayRate.of("b2", b2))
    return Transformation.of(Link(rule, ScaleByBiasCorrectionState), chained=False)


def adam(
    learning_rate: ArrayLike | Schedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    *,
    nesterov: bool = False,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    bias_correction: bool = True,
) -> Transformation:
    """Adam: θ ← θ - α_t·mû / (√(nû + eps_root) + eps).

    Args:
      learning_rate: α, per optimizer step: a number ≥ 0, or a function of the number of optimizer
        steps completed so far (0 at the first).
      b1: see `scale_by_adam`, as all that follow.
      b2: decay rate of the second moment.
      eps: ε outside the root.
      eps_root: ε inside the root.
      mu_dtype: how mu is stored.
      nesterov: read mu one step ahead (NAdam).
      nu_dtype: how nu is stored.
      bias_correction: False reads mu and nu as they are.

    Returns:
      A transformation with the state of `optax.adam`: `(ScaleByAdamState, EmptyState)`, or with a
      schedule `(ScaleByAdamState, ScaleByScheduleState)`.

    Raises:
      ValueError: see `scale_by_adam`; a learning rate that is negative, infinite or NaN.

    Example:
      >>> import adam_jax, jax, jax.numpy as jnp
      >>> tx = adam_jax.adam(learning_rate=0.1)
      >>> params = {"w": jnp.array([3.0, -2.0])}
      >>> state = tx.init(params)
      >>> for _ in range(200):
      ...     grads = jax.grad(lambda p: jnp.sum((p["w"] - 1.0) ** 2))(params)
      ...     params, state = adam_jax.step(tx, grads, state, params)
      >>> print(params["w"].round(2))
      [1. 1.]

    Reference: Kingma & Ba 2015, algorithm 1.
    """
    link = adam_link(b1, b2, eps, eps_root, mu_dtype, nu_dtype, nesterov, bias_correction)
    return Transformation.of(link, learning_rate_link(learning_rate))


def adamw(
    learning_rate: ArrayLike | Schedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    weight_decay: ArrayLike | Schedule = 1e-4,
    mask: Any = None,
    *,
    nesterov: bool = False,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    bias_correction: bool = True,
) -> Transformation:
    """Adam with decoupled weight decay: θ ← θ - α_t·(mû / (√(nû + eps_root) + eps) + λ_t·θ).

    Args:
      learning_rate: α, per optimizer step; see `adam`.
      b1: see `scale_by_adam`, as the next four.
      b2: decay rate of the second moment.
      eps: ε outside the root.
      eps_root: ε inside the root.
      mu_dtype: how mu is stored.
      weight_decay: λ, multiplied by the learning rate: a number ≥ 0, or a function of the optimizer
        steps completed so far.
      mask: the leaves that decay: a tree of booleans like the parameters (or a prefix of that), or
        a function that makes one from the parameters. None decays all.
      nesterov: read mu one step ahead (NAdamW).
      nu_dtype: how nu is stored.
      bias_correction: False reads mu and nu as they are.

    Returns:
      A transformation with the state of `optax.adamw`, a tuple of three. `update` needs `params`.

    Raises:
      ValueError: see `adam`; a weight decay that is negative, infinite or NaN; `params` missing.

    Differs from Optax in: a callable mask is asked about the parameters in `update` too.
    Differs from PyTorch in: the decay is added to the update, not applied to θ before it, which is
    the same but for rounding; PyTorch's default λ is 1e-2.

    Reference: Loshchilov & Hutter 2019, algorithm 2.
    """
    link = adam_link(b1, b2, eps, eps_root, mu_dtype, nu_dtype, nesterov, bias_correction)
    return Transformation.of(
        link, weight_decay_link(weight_decay, mask), learning_rate_link(learning_rate)
    )
