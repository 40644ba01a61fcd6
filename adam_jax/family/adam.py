"""Adam and AdamW.

Kingma & Ba 2015, Adam: A Method for Stochastic Optimization, https://arxiv.org/abs/1412.6980
Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization, https://arxiv.org/abs/1711.05101
"""

import optax
from jax.typing import ArrayLike

from adam_jax.core.masks import MaskLike
from adam_jax.core.transformation import Transformation, scale_by_rule
from adam_jax.family.alias import alias
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.rates import DecayRateLike, Schedule, decay_rate
from adam_jax.rules.adam import Ema, MomentRule, NesterovEma, Root
from adam_jax.validation import named_arguments


def scale_by_adam(
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
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

    u and the arguments are those of `adamw`, which explains all else. The state is
    `optax.ScaleByAdamState(count, mu, nu)`.

    Example:
      Adam's first step has size 1 at any scale of the gradient:

      >>> import jax.numpy as jnp
      >>> tx = scale_by_adam()
      >>> params = jnp.zeros(3)
      >>> updates, state = tx.update(jnp.array([1e-3, 2.0, -1e4]), tx.init(params))
      >>> print(updates.round(4))
      [ 1.  1. -1.]
    """
    rate = decay_rate("b2", b2)
    first = Ema("mu", decay_rate("b1", b1), bias_correction=bias_correction)
    second = Ema("nu", rate, magnitude=True, bias_correction=bias_correction)
    direction = Root.of(eps, eps_root, eps_hat, rate if bias_correction else None)
    rule = MomentRule(NesterovEma(first) if nesterov else first, second, direction)
    return scale_by_rule(rule, optax.ScaleByAdamState, mu_dtype, nu_dtype, "scale_by_adam")


@named_arguments
def adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    *,
    nesterov: bool = False,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    eps_hat: ArrayLike | None = None,
    bias_correction: bool = True,
    l2: ArrayLike | Schedule | None = None,
) -> Transformation:
    """Adam: each step divides the averaged gradient by the root of its averaged square.

        θ ← θ - α_t·u

    Args:
      l2: λ₂, coupled weight decay, per optimizer step: a number, or a schedule. λ₂·θ is added to
        the gradient before the moments, like `weight_decay` in PyTorch's Adam. None omits it and
        its entry in the state.

    u and the other arguments are those of `adamw`, which explains all else. The state is a tuple:
    `optax.ScaleByAdamState(count, mu, nu)`, then an entry for the learning rate: empty, or the
    count of a schedule. Optax's `adam` has the same state. With `l2`, its entry comes first, and
    `update` needs `params`.

    Example:
      `step` combines `update` and `optax.apply_updates`:

      >>> import adam_jax, jax, jax.numpy as jnp
      >>> tx = adam_jax.adam(learning_rate=0.1)
      >>> params = {"w": jnp.array([3.0, -2.0])}
      >>> state = tx.init(params)
      >>> for _ in range(200):
      ...     grads = jax.grad(lambda p: jnp.sum((p["w"] - 1.0) ** 2))(params)
      ...     params, state = adam_jax.step(tx, grads, state, params)
      >>> print(params["w"].round(2))
      [1. 1.]
    """
    return alias("adam", scale_by_adam, **locals())


@named_arguments
def adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    weight_decay: ArrayLike | Schedule = 1e-4,
    mask: MaskLike = None,
    *,
    weight_decay_mask: MaskLike = None,
    nesterov: bool = False,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    eps_hat: ArrayLike | None = None,
    bias_correction: bool = True,
    scale_decay: bool = True,
) -> Transformation:
    """AdamW: Adam with decoupled weight decay.

        mu ← b1·mu + (1-b1)·g            mû = mu / (1 - b1ᵗ)
        nu ← b2·nu + (1-b2)·|g|²         nû = nu / (1 - b2ᵗ)
        u  = mû / (√(nû + eps_root) + eps + eps_hat / √(1 - b2ᵗ))
        θ  ← θ - α_t·(u + λ_t·θ)

    All arithmetic is in float32 (float64 for float64 leaves), regardless of the dtypes of gradient,
    parameter and state. Only the update is rounded: to the gradient's dtype, or to the parameter's
    if that is wider.

    Args:
      learning_rate: α, per optimizer step: a number (negative for ascent), or a schedule, a
        function of the number of completed optimizer steps (0 at the first).
      b1: decay rate of the first moment, per optimizer step, 0 ≤ b1 < 1: a number, or a schedule.
        With a schedule, b1ᵗ is the product of the rates of all steps. The state keeps it: it is a
        `ScheduledRatesState` around the one below.
      b2: decay rate of the second moment, likewise.
      eps: ε, added outside the root, in units of the gradient; ≥ 0.
      eps_root: added inside the root, in units of the gradient squared; ≥ 0.
      mu_dtype: storage format of mu: a floating-point dtype of at least 16 bits, `jnp.int8`,
        `jnp.int4`, a `Quantized`, `stochastic(dtype)` or `by_path({...})`. None is the parameter's
        dtype. The default is the parameter's dtype, but at least float32.
      weight_decay: λ, decoupled weight decay, per optimizer step: a number (0.0 turns it off;
        negative values grow the weights), or a schedule.
      mask: the leaves that decay: a tree of booleans like the parameters, a prefix of one, or a
        function from the parameters to one, such as `decay_mask`. None decays all leaves.
      weight_decay_mask: Optax's newer name for `mask`; pass only one of the two.
      nesterov: True looks one step ahead: mû becomes b1·mu / (1 - b1ᵗ⁺¹) + (1-b1)·g / (1 - b1ᵗ)
        (Dozat 2016).
      nu_dtype: storage format of nu: any form of mu_dtype, `Factored()`, `BlockMeans(axes)` or
        `AdamMini()`; not float16. For bfloat16 write `stochastic(jnp.bfloat16)`: rounded to
        nearest, nu stops changing.
      eps_hat: ε̂ of Kingma & Ba, section 2, added to the root of the uncorrected nu, in units of
        the gradient; ≥ 0. Keras and TensorFlow call it epsilon. Use it with eps=0.0. None omits it,
        also from `with_hyperparams` and `optax.inject_hyperparams`.
      bias_correction: False reads mu and nu uncorrected: mû = mu, nû = nu.
      scale_decay: False subtracts λ_t·θ instead of α_t·λ_t·θ (fully decoupled). The decay's entry
        in the state is then the last.

    Returns:
      A transformation whose state is a tuple: `optax.ScaleByAdamState(count, mu, nu)`, then one
      entry for weight decay and one for the learning rate: each is empty, or the count of a
      schedule. Optax's `adamw` has the same state. `update` needs `params`.

    Example:
      Vectors and scalars do not decay:

      >>> import adam_jax
      >>> tx = adam_jax.adamw(1e-3, weight_decay=0.1, mask=adam_jax.decay_mask)

    Raises:
      ValueError: on construction, for a number out of range or a dtype that cannot store a moment;
        in `init` and `update`, for a leaf dtype without arithmetic (8-bit floats), a gradient that
        does not match the state, or missing `params`.

    Differs from Optax in: averages are computed as old + (1-b)(new - old) and bias corrections with
    expm1, with 1-b from float64, so results stay within a few ulp of the exact algorithm (Optax: 76
    to 81); scheduled decay rates are corrected by their product (`optax.inject_hyperparams` takes
    b_tᵗ); nu is real for complex gradients; 16-bit parameters get float32 moments; a callable
    `mask` gets the parameters in `update` too.
    Differs from PyTorch in: the two parts of a complex gradient share one |g|²; its `AdamW` decays
    θ before the step, which is the same up to rounding, and its default is 1e-2.

    Reference: Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019, algorithm 2.
    """
    return alias("adamw", scale_by_adam, **locals())
