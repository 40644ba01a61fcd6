"""AdaBelief: Zhuang et al. 2020, Adapting Stepsizes by the Belief in Observed Gradients.

https://arxiv.org/abs/2010.07468
"""

import optax
from jax import Array
from jax.typing import ArrayLike

from adam_jax._types import Number
from adam_jax.core.masks import MaskLike
from adam_jax.core.transformation import Decay, Transformation, optimizer, scale_by_rule
from adam_jax.formats.dense import AT_LEAST_FLOAT32
from adam_jax.formats.policy import SlotDType
from adam_jax.numerics import DecayRate, DecayRateLike, bounded, squared
from adam_jax.pytrees import frozen_pytree
from adam_jax.rules.adam import AroundEma, Ema, MomentRule, NesterovEma, Root
from adam_jax.rules.base import View
from adam_jax.rules.hyperparameters import Schedule
from adam_jax.rules.units import Unit, in_units_of
from adam_jax.validation import check_number


@frozen_pytree
class EmaOfSurprise(AroundEma):
    """The average of |g - mu|² plus a constant, with mu already updated in this step.

    Attributes:
      eps: added to the average in every step; it accumulates.
    """

    ema: Ema
    eps: Number = in_units_of(Unit.GRADIENT_SQUARED)

    def __call__(self, leaf: View, term: Array) -> Array:
        # The average weights a new term by 1-b, so eps / (1-b) adds exactly eps.
        surprise = squared(bounded(leaf.g - leaf.new["mu"], times=4))
        return self.ema(leaf, surprise + self.eps / self.ema.rate.complement)


def scale_by_belief(
    b1: DecayRateLike = 0.9,
    b2: DecayRateLike = 0.999,
    eps: ArrayLike = 1e-16,
    eps_root: ArrayLike = 1e-16,
    *,
    nesterov: bool = False,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
) -> Transformation:
    """Divides the averaged gradient by the size of the gradients' deviation from it.

        mu ← b1·mu + (1-b1)·g                           mû = mu / (1 - b1ᵗ)
        nu ← b2·nu + (1-b2)·|g - mu|² + eps_root        nû = nu / (1 - b2ᵗ)
        u  = mû / (√nû + eps)

    The arguments are those of `adabelief`, which lists errors, differences and sources.

    Returns:
      A transformation whose state is `optax.ScaleByBeliefState(count, mu, nu)`.
    """
    first = Ema("mu", DecayRate.of("b1", b1))
    each = check_number("eps_root", eps_root, instead="the usual value is 1e-16")
    second = EmaOfSurprise(Ema("nu", DecayRate.of("b2", b2), magnitude=True), each)
    rule = MomentRule(NesterovEma(first) if nesterov else first, second, Root.of(eps))
    return scale_by_rule(rule, optax.ScaleByBeliefState, mu_dtype, nu_dtype)


def adabelief(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike = 0.9,
    b2: DecayRateLike = 0.999,
    eps: ArrayLike = 1e-16,
    eps_root: ArrayLike = 1e-16,
    *,
    nesterov: bool = False,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    l2: ArrayLike | Schedule | None = None,
    weight_decay: ArrayLike | Schedule | None = None,
    weight_decay_mask: MaskLike = None,
) -> Transformation:
    """AdaBelief: divides the averaged gradient by the size of the gradients' deviation from it.

        mu ← b1·mu + (1-b1)·g                           mû = mu / (1 - b1ᵗ)
        nu ← b2·nu + (1-b2)·|g - mu|² + eps_root        nû = nu / (1 - b2ᵗ)
        u  = mû / (√nû + eps)
        θ  ← θ - α_t·u, with weight_decay θ - α_t·(u + λ_t·θ)

    All arithmetic is in float32 (float64 for float64 leaves), regardless of the dtypes of gradient,
    parameter and state. Only the update is rounded.

    Args:
      learning_rate: α, per optimizer step: a number (negative for ascent), or a schedule, a
        function of the number of completed optimizer steps (0 at the first).
      b1: decay rate of the first moment, per optimizer step, 0 ≤ b1 < 1.
      b2: decay rate of the second moment, per optimizer step, 0 ≤ b2 < 1.
      eps: ε, added outside the root, in units of the gradient; ≥ 0.
      eps_root: added to nu in every step, in units of the gradient squared; ≥ 0. It accumulates in
        nu, up to eps_root / (1-b2).
      nesterov: True looks one step ahead: mû becomes b1·mu / (1 - b1ᵗ⁺¹) + (1-b1)·g / (1 - b1ᵗ)
        (Dozat 2016).
      mu_dtype: storage format of mu: a floating-point dtype of at least 16 bits, `jnp.int8`,
        `jnp.int4`, a `Quantized`, `stochastic(dtype)` or `by_path({...})`. None is the parameter's
        dtype. The default is the parameter's dtype, but at least float32.
      nu_dtype: storage format of nu: any form of mu_dtype, `Factored()`, `BlockMeans(axes)` or
        `AdamMini()`; not float16. For bfloat16 write `stochastic(jnp.bfloat16)`: rounded to
        nearest, nu stops changing.
      l2: λ₂, coupled weight decay, per optimizer step: a number, or a schedule. λ₂·θ is added to
        the gradient before the moments, like `weight_decay` in PyTorch's Adam. None omits it and
        its entry in the state.
      weight_decay: λ, decoupled weight decay, per optimizer step: a number (negative values grow
        the weights), or a schedule. α_t·λ_t·θ is also subtracted. None omits it and its entry in
        the state.
      weight_decay_mask: the leaves that decay by `weight_decay`: a tree of booleans like the
        parameters, a prefix of one, or a function from the parameters to one, such as `decay_mask`.
        None decays all leaves.

    Returns:
      A transformation whose state is a tuple: `optax.ScaleByBeliefState(count, mu, nu)`, then an
      entry for the learning rate: empty, or the count of a schedule. Optax's `adabelief` has the
      same state. With `l2`, its entry comes first. With `weight_decay`, its entry comes before that
      of the learning rate. With either, `update` needs `params`.

    Raises:
      ValueError: on construction, for a number out of range or a dtype that cannot store a moment;
        in `init` and `update`, for a leaf dtype without arithmetic (8-bit floats), a gradient that
        does not match the state, or missing `params` with weight decay.

    Differs from Optax in: rounding, which is within a few ulp of the exact algorithm; moments of
    16-bit parameters are float32; nu of a complex gradient is real; Optax has `weight_decay` only
    on its main branch (0.2.9.dev), also as a positional argument.

    Reference: Zhuang et al. 2020, algorithm 2, where the two ε are one number.
    """
    positional = (b1, b2, eps, eps_root)
    scaled = scale_by_belief(*positional, nesterov=nesterov, mu_dtype=mu_dtype, nu_dtype=nu_dtype)
    decay = None if weight_decay is None else Decay(weight_decay, weight_decay_mask)
    return optimizer(scaled, learning_rate, l2=l2, decay=decay)
