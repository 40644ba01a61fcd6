"""AMSGrad: Reddi, Kale & Kumar 2018, On the Convergence of Adam and Beyond.

https://openreview.net/forum?id=ryQu7f-RZ
"""

import dataclasses

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from adam_jax._types import Count, Number
from adam_jax.core.masks import MaskLike
from adam_jax.core.transformation import Decay, Transformation, optimizer, scale_by_rule
from adam_jax.formats.dense import AT_LEAST_FLOAT32
from adam_jax.formats.policy import SlotDType
from adam_jax.numerics import DecayRate, DecayRateLike
from adam_jax.pytrees import frozen_pytree
from adam_jax.rules.adam import Ema, MomentRule, Root
from adam_jax.rules.base import View
from adam_jax.rules.hyperparameters import Schedule
from adam_jax.slots import Slot


@frozen_pytree
class RunningMax:
    """The running maximum of the average as read: nu_max ← max(nu_max, read).

    Attributes:
      ema: the average; its `bias_correction` decides whether it is corrected before the maximum.
      correct_max: the rate b whose 1 - bᵗ divides the maximum on reading; None for no correction.
      of_max: 1 / (1 - bᵗ).
    """

    ema: Ema
    correct_max: DecayRate | None = None
    of_max: Number = None

    @property
    def slots(self) -> tuple[Slot, ...]:
        (nu,) = self.ema.slots
        nu_max = Slot("nu_max", magnitude=True, rate=1.0, maximum=True)
        return dataclasses.replace(nu, maximum=True), nu_max

    def at(self, count: Count) -> "RunningMax":
        if self.correct_max is None:
            return self
        return dataclasses.replace(self, of_max=self.correct_max.debiasing(count))

    def __call__(self, leaf: View, term: Array) -> Array:
        leaf.renew("nu_max", jnp.maximum(leaf.old["nu_max"], self.ema(leaf, term)))
        return self.read(leaf)

    def read(self, leaf: View) -> Array:
        nu_max = leaf.new["nu_max"]
        return nu_max if self.of_max is None else nu_max * self.of_max


def scale_by_amsgrad(
    b1: DecayRateLike = 0.9,
    b2: DecayRateLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    max_before_correction: bool = False,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    eps_hat: ArrayLike | None = None,
) -> Transformation:
    """Adam whose denominator never shrinks: it divides by the largest nû so far.

        mu ← b1·mu + (1-b1)·g            mû = mu / (1 - b1ᵗ)
        nu ← b2·nu + (1-b2)·|g|²         nû = nu / (1 - b2ᵗ)
        nu_max ← max(nu_max, nû)
        u  = mû / (√(nu_max + eps_root) + eps + eps_hat / √(1 - b2ᵗ))

    The arguments are those of `amsgradw`, which lists errors, differences and sources.

    Returns:
      A transformation whose state is `optax.ScaleByAmsgradState(count, mu, nu, nu_max)`.
    """
    rate = DecayRate.of("b2", b2)
    corrected_after = max_before_correction and bias_correction_nu
    corrected_before = bias_correction_nu and not max_before_correction
    nu = Ema("nu", rate, magnitude=True, bias_correction=corrected_before)
    rule = MomentRule(
        Ema("mu", DecayRate.of("b1", b1), bias_correction=bias_correction_mu),
        RunningMax(nu, rate if corrected_after else None),
        Root.of(eps, eps_root, eps_hat, rate if bias_correction_nu else None),
    )
    return scale_by_rule(rule, optax.ScaleByAmsgradState, mu_dtype, nu_dtype)


def amsgrad(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike = 0.9,
    b2: DecayRateLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    max_before_correction: bool = False,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    eps_hat: ArrayLike | None = None,
    l2: ArrayLike | Schedule | None = None,
) -> Transformation:
    """AMSGrad: Adam whose denominator never shrinks.

        mu ← b1·mu + (1-b1)·g            mû = mu / (1 - b1ᵗ)
        nu ← b2·nu + (1-b2)·|g|²         nû = nu / (1 - b2ᵗ)
        nu_max ← max(nu_max, nû)
        u  = mû / (√(nu_max + eps_root) + eps + eps_hat / √(1 - b2ᵗ))
        θ  ← θ - α_t·u

    Args:
      l2: λ₂, coupled weight decay, per optimizer step: a number, or a schedule. λ₂·θ is added to
        the gradient before the moments, like `weight_decay` in PyTorch's Adam. None omits it and
        its entry in the state.

    The other arguments are those of `amsgradw`, which lists errors, differences and sources.

    Returns:
      A transformation whose state is a tuple: `optax.ScaleByAmsgradState(count, mu, nu, nu_max)`,
      then an entry for the learning rate: empty, or the count of a schedule. Optax's `amsgrad` has
      the same state. With `l2`, its entry comes first, and `update` needs `params`.

    PyTorch has it as `Adam(amsgrad=True)`.
    """
    positional = (b1, b2, eps, eps_root, mu_dtype, bias_correction_mu, bias_correction_nu)
    scaled = scale_by_amsgrad(
        *positional, max_before_correction=max_before_correction, nu_dtype=nu_dtype, eps_hat=eps_hat
    )
    return optimizer(scaled, learning_rate, l2=l2)


def amsgradw(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike = 0.9,
    b2: DecayRateLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    weight_decay: ArrayLike | Schedule = 1e-4,
    mask: MaskLike = None,
    *,
    weight_decay_mask: MaskLike = None,
    max_before_correction: bool = False,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    eps_hat: ArrayLike | None = None,
    scale_decay: bool = True,
) -> Transformation:
    """AMSGrad with decoupled weight decay.

        mu ← b1·mu + (1-b1)·g            mû = mu / (1 - b1ᵗ)
        nu ← b2·nu + (1-b2)·|g|²         nû = nu / (1 - b2ᵗ)
        nu_max ← max(nu_max, nû)
        u  = mû / (√(nu_max + eps_root) + eps + eps_hat / √(1 - b2ᵗ))
        θ  ← θ - α_t·(u + λ_t·θ)

    All arithmetic is in float32 (float64 for float64 leaves), regardless of the dtypes of gradient,
    parameter and state. Only the update is rounded.

    Args:
      learning_rate: α, per optimizer step: a number (negative for ascent), or a schedule, a
        function of the number of completed optimizer steps (0 at the first).
      b1: decay rate of the first moment, per optimizer step, 0 ≤ b1 < 1.
      b2: decay rate of the second moment, per optimizer step, 0 ≤ b2 < 1.
      eps: ε, added outside the root, in units of the gradient; ≥ 0. The paper has none.
      eps_root: added inside the root, in units of the gradient squared; ≥ 0.
      mu_dtype: storage format of mu: a floating-point dtype of at least 16 bits, `jnp.int8`,
        `jnp.int4`, a `Quantized`, `stochastic(dtype)` or `by_path({...})`. None is the parameter's
        dtype. The default is the parameter's dtype, but at least float32.
      bias_correction_mu: False reads mu uncorrected, mû = mu, as the paper does.
      bias_correction_nu: False takes the maximum of nu uncorrected, as the paper does.
      weight_decay: λ, decoupled weight decay, per optimizer step: a number (0.0 turns it off;
        negative values grow the weights), or a schedule.
      mask: the leaves that decay: a tree of booleans like the parameters, a prefix of one, or a
        function from the parameters to one, such as `decay_mask`. None decays all leaves.
      weight_decay_mask: Optax's newer name for `mask`; pass only one of the two.
      max_before_correction: True: nu_max ← max(nu_max, nu), divided by 1 - b2ᵗ when it is read, as
        in PyTorch and Keras. The weight of a large first gradient then fades, instead of lasting
        forever.
      nu_dtype: storage format of nu and nu_max: any form of mu_dtype, `Factored()`,
        `BlockMeans(axes)` or `AdamMini()`; not float16, not `jnp.int4`. For bfloat16 write
        `stochastic(jnp.bfloat16)`: rounded to nearest, nu stops changing.
      eps_hat: ε̂ of Kingma & Ba, section 2, added to the root of the uncorrected nu, in units of
        the gradient; ≥ 0. Keras and TensorFlow call it epsilon. Use it with eps=0.0. None omits it,
        also from `with_hyperparams` and `optax.inject_hyperparams`.
      scale_decay: False subtracts λ_t·θ instead of α_t·λ_t·θ (fully decoupled). The decay's entry
        in the state is then the last.

    Returns:
      A transformation whose state is a tuple: `optax.ScaleByAmsgradState(count, mu, nu, nu_max)`,
      then one entry for weight decay and one for the learning rate: each is empty, or the count of
      a schedule. `update` needs `params`.

    Raises:
      ValueError: on construction, for a number out of range or a dtype that cannot store a moment;
        in `init` and `update`, for a leaf dtype without arithmetic (8-bit floats), a gradient that
        does not match the state, or missing `params`.

    Optax has no such alias. `amsgrad` differs from Optax's in: rounding, within a few ulp of the
    exact algorithm; moments of 16-bit parameters are float32; nu of a complex gradient is real.
    Differs from PyTorch in: here the maximum is taken of the corrected nu, unless
    max_before_correction is True; the two parts of a complex gradient share one |g|²; it is
    `AdamW(amsgrad=True)`, whose default weight_decay is 1e-2.

    Reference: Reddi, Kale & Kumar 2018, algorithm 2, which has no bias correction; Loshchilov &
    Hutter 2019, algorithm 2.
    """
    positional = (b1, b2, eps, eps_root, mu_dtype, bias_correction_mu, bias_correction_nu)
    scaled = scale_by_amsgrad(
        *positional, max_before_correction=max_before_correction, nu_dtype=nu_dtype, eps_hat=eps_hat
    )
    decay = Decay(weight_decay, mask, weight_decay_mask, scale_decay)
    return optimizer(scaled, learning_rate, decay=decay)
