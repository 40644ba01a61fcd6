"""Adam and AdamW. The arguments that all members share are documented here.

Kingma & Ba 2015, Adam: A Method for Stochastic Optimization, https://arxiv.org/abs/1412.6980
Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization, https://arxiv.org/abs/1711.05101
"""

from typing import NamedTuple

import jax
import optax

from adam_jax.alias import alias
from adam_jax.engine.stage import Stage
from adam_jax.engine.states import register
from adam_jax.engine.transformation import Transformation, scale_by_rule
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.rules.base import DecayRate, DecayRateLike, MomentRule
from adam_jax.rules.directions import Root
from adam_jax.rules.moments import Ema, EmaOfSquares, NesterovEma
from adam_jax.rules.scaling import CorrectBias

ArrayLike = jax.typing.ArrayLike


def scale_by_adam(
    b1: DecayRateLike = 0.9,
    b2: DecayRateLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    *,
    nesterov: bool = False,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    eps_hat: ArrayLike | None = None,
    bias_correction: bool = True,
) -> Transformation:
    """Divides the averaged gradient by the root of its averaged square.

        mu ← b1·mu + (1-b1)·g            mû = mu / (1 - b1ᵗ)
        nu ← b2·nu + (1-b2)·|g|²         nû = nu / (1 - b2ᵗ)
        u  = mû / (√(nû + eps_root) + eps + eps_hat / √(1 - b2ᵗ))

    Everything is computed in float32 (float64 for float64 leaves), whatever the dtypes of the
    gradient, the parameter and the state; only u is rounded, to the gradient's dtype (or the
    parameter's, if that is given and wider).

    Args:
      b1: decay rate of the first moment, per optimizer step, 0 ≤ b1 < 1.
      b2: decay rate of the second moment, per optimizer step, 0 ≤ b2 < 1.
      eps: ε of the paper's algorithm 1, added outside the root, in units of the gradient; ≥ 0.
      eps_root: added inside the root, in units of the gradient squared; ≥ 0.
      mu_dtype: how mu is stored: a floating-point dtype; None, the parameter's own; by default the
        parameter's own or float32, whichever is wider.
      nesterov: read mu one step ahead: b1·mu / (1-b1ᵗ⁺¹) + (1-b1)·g / (1-b1ᵗ) (Dozat 2016).
      nu_dtype: how nu is stored, likewise. bfloat16 lets nu stand still: see `AT_LEAST_FLOAT32`.
      eps_hat: ε̂ of the paper's section 2, beside the root of the uncorrected nu: what Keras and
        TensorFlow call epsilon. Write eps=0.0 with it. None leaves it out, also out of the
        numbers of `with_hyperparams` and `optax.inject_hyperparams`, which then are Optax's.
      bias_correction: False reads mu and nu as they are; see `scale_by_bias_correction`.

    Returns:
      A transformation whose state is `optax.ScaleByAdamState(count, mu, nu)`.

    Example:
      The first step of Adam has the size 1 whatever the gradient's scale:

      >>> import jax.numpy as jnp
      >>> tx = scale_by_adam()
      >>> params = jnp.zeros(3)
      >>> updates, state = tx.update(jnp.array([1e-3, 2.0, -1e4]), tx.init(params))
      >>> print(updates.round(4))
      [ 1.  1. -1.]

      The aliases train; `step` is `update` and `optax.apply_updates`:

      >>> import adam_jax, jax
      >>> tx = adam_jax.adam(learning_rate=0.1)
      >>> params = {"w": jnp.array([3.0, -2.0])}
      >>> state = tx.init(params)
      >>> for _ in range(200):
      ...     grads = jax.grad(lambda p: jnp.sum((p["w"] - 1.0) ** 2))(params)
      ...     params, state = adam_jax.step(tx, grads, state, params)
      >>> print(params["w"].round(2))
      [1. 1.]

    Raises:
      ValueError: here, for a number outside its range or a dtype that cannot store a moment; in
        `init` and `update`, for integer leaves, for gradients unlike the state, for nu in float16,
        and for missing `params` where weights decay.

    Differs from Optax in: the averages are formed as old + (1-b)(new - old) and the corrections by
    expm1, with 1-b from float64, so that the result stays within a few ulp of the exact algorithm
    (Optax: 76 to 81); nu is real for complex gradients; 16-bit parameters get float32 moments; a
    callable `mask` is asked about the parameters in `update` too.
    Differs from PyTorch in: |g|² of a complex gradient is shared by its two parts; its `Adam` has
    weight decay as `l2`; its `AdamW` decays θ before the step, which is the same but for rounding,
    by 1e-2 unless told otherwise.

    Reference: Kingma & Ba 2015, algorithm 1; for `weight_decay` Loshchilov & Hutter 2019,
    algorithm 2.
    """
    first = Ema(DecayRate.of("b1", b1), bias_correction)
    rate = DecayRate.of("b2", b2)
    rule = MomentRule(
        NesterovEma(first) if nesterov else first,
        EmaOfSquares(rate, bias_correction),
        Root.of(eps, eps_root, eps_hat, rate if bias_correction else None),
    )
    return scale_by_rule(rule, optax.ScaleByAdamState, mu_dtype, nu_dtype)


adam = alias("adam", scale_by_adam)
adamw = alias("adamw", scale_by_adam, weight_decay=1e-4)


class ScaleByBiasCorrectionState(NamedTuple):
    """State of `scale_by_bias_correction`: the optimizer steps completed, int32."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]


register(ScaleByBiasCorrectionState, counts=["count"])


def scale_by_bias_correction(b1: DecayRateLike = 0.9, b2: DecayRateLike = 0.999) -> Transformation:
    """Applies both bias corrections as one number: u ← u·√(1 - b2ᵗ) / (1 - b1ᵗ).

    After `scale_by_adam(b1, b2, eps, bias_correction=False)` this is the more efficient form that
    the paper names at the end of its section 2: `scale_by_adam(b1, b2, eps=0.0, eps_hat=eps)`.

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
    return Transformation.of(Stage(rule, ScaleByBiasCorrectionState), chained=False)
