"""Adamax, Adam with the infinity norm: Kingma & Ba 2015, section 7.1.

https://arxiv.org/abs/1412.6980
"""

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from adam_jax._types import Number
from adam_jax.core.masks import MaskLike
from adam_jax.core.transformation import Decay, Transformation, optimizer, scale_by_rule
from adam_jax.formats.dense import AT_LEAST_FLOAT32
from adam_jax.formats.policy import SlotDType
from adam_jax.numerics import DecayRate, DecayRateLike, divide
from adam_jax.pytrees import frozen_pytree
from adam_jax.rules.adam import Ema, MomentRule, Quotient
from adam_jax.rules.base import View
from adam_jax.rules.hyperparameters import Schedule
from adam_jax.rules.units import Unit, in_units_of
from adam_jax.slots import Slot
from adam_jax.validation import check_number


@frozen_pytree
class DecayingMax:
    """A maximum of |g| + eps that decays at the rate b: nu ← max(b·nu, |g| + eps)."""

    rate: DecayRate
    eps: Number = in_units_of(Unit.GRADIENT)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("nu", magnitude=True, rate=self.rate.complement, maximum=True),)

    def __call__(self, leaf: View, term: Array) -> Array:
        decayed = leaf.old["nu"] - self.rate.complement * leaf.old["nu"]
        return leaf.renew("nu", jnp.maximum(decayed, jnp.abs(leaf.g) + self.eps))

    def read(self, leaf: View) -> Array:
        return leaf.new["nu"]


@frozen_pytree
class Ratio(Quotient):
    """first / second, for a second moment that is a magnitude, not a square; 0 where both are 0."""

    squared = False
    ends_in_product = False

    def __call__(self, first: Array, second: Array) -> Array:
        return divide(first, second)


def scale_by_adamax(
    b1: DecayRateLike = 0.9,
    b2: DecayRateLike = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
) -> Transformation:
    """Divides the averaged gradient by a decaying maximum of gradient magnitudes.

        mu ← b1·mu + (1-b1)·g            mû = mu / (1 - b1ᵗ)
        nu ← max(b2·nu, |g| + eps)       u  = mû / nu

    The arguments are those of `adamaxw`, which lists errors, differences and sources.

    Returns:
      A transformation whose state is `optax.ScaleByAdamState(count, mu, nu)`.
    """
    nu = DecayingMax(DecayRate.of("b2", b2), check_number("eps", eps, instead="1e-8 is usual"))
    rule = MomentRule(Ema("mu", DecayRate.of("b1", b1)), nu, Ratio())
    return scale_by_rule(rule, optax.ScaleByAdamState, mu_dtype, nu_dtype)


def adamax(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike = 0.9,
    b2: DecayRateLike = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    l2: ArrayLike | Schedule | None = None,
) -> Transformation:
    """Adamax: Adam with the infinity norm instead of the averaged square.

        mu ← b1·mu + (1-b1)·g            mû = mu / (1 - b1ᵗ)
        nu ← max(b2·nu, |g| + eps)       u  = mû / nu
        θ  ← θ - α_t·u

    Args:
      l2: λ₂, coupled weight decay, per optimizer step: a number, or a schedule. λ₂·θ is added to
        the gradient before the moments, like `weight_decay` in PyTorch's Adamax. None omits it and
        its entry in the state.

    The other arguments are those of `adamaxw`, which lists errors, differences and sources.

    Returns:
      A transformation whose state is a tuple: `optax.ScaleByAdamState(count, mu, nu)`, then an
      entry for the learning rate: empty, or the count of a schedule. Optax's `adamax` has the same
      state. With `l2`, its entry comes first, and `update` needs `params`.
    """
    scaled = scale_by_adamax(b1, b2, eps, mu_dtype=mu_dtype, nu_dtype=nu_dtype)
    return optimizer(scaled, learning_rate, l2=l2)


def adamaxw(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike = 0.9,
    b2: DecayRateLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike | Schedule = 1e-4,
    mask: MaskLike = None,
    *,
    weight_decay_mask: MaskLike = None,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    scale_decay: bool = True,
) -> Transformation:
    """Adamax with decoupled weight decay.

        mu ← b1·mu + (1-b1)·g            mû = mu / (1 - b1ᵗ)
        nu ← max(b2·nu, |g| + eps)       u  = mû / nu
        θ  ← θ - α_t·(u + λ_t·θ)

    All arithmetic is in float32 (float64 for float64 leaves), regardless of the dtypes of gradient,
    parameter and state. Only the update is rounded.

    Args:
      learning_rate: α, per optimizer step: a number (negative for ascent), or a schedule, a
        function of the number of completed optimizer steps (0 at the first).
      b1: decay rate of the first moment, per optimizer step, 0 ≤ b1 < 1.
      b2: decay rate of the largest gradient, per optimizer step, 0 ≤ b2 < 1.
      eps: added to |g|, in units of the gradient; ≥ 0.
      weight_decay: λ, decoupled weight decay, per optimizer step: a number (0.0 turns it off;
        negative values grow the weights), or a schedule.
      mask: the leaves that decay: a tree of booleans like the parameters, a prefix of one, or a
        function from the parameters to one, such as `decay_mask`. None decays all leaves.
      weight_decay_mask: Optax's newer name for `mask`; pass only one of the two.
      mu_dtype: storage format of mu: a floating-point dtype of at least 16 bits, `jnp.int8`,
        `jnp.int4`, a `Quantized`, `stochastic(dtype)` or `by_path({...})`. None is the parameter's
        dtype. The default is the parameter's dtype, but at least float32.
      nu_dtype: storage format of nu: any form of mu_dtype, `Factored()`, `BlockMeans(axes)` or
        `AdamMini()`; not float16, not `jnp.int4`. For bfloat16 write `stochastic(jnp.bfloat16)`:
        rounded to nearest, nu does not decay.
      scale_decay: False subtracts λ_t·θ instead of α_t·λ_t·θ (fully decoupled). The decay's entry
        in the state is then the last.

    Returns:
      A transformation whose state is a tuple: `optax.ScaleByAdamState(count, mu, nu)`, then one
      entry for weight decay and one for the learning rate: each is empty, or the count of a
      schedule. Optax's `adamaxw` has the same state. `update` needs `params`.

    Raises:
      ValueError: on construction, for a number out of range or a dtype that cannot store a moment;
        in `init` and `update`, for a leaf dtype without arithmetic (8-bit floats), a gradient that
        does not match the state, or missing `params`.

    Differs from Optax in: rounding, which is within a few ulp of the exact algorithm; moments of
    16-bit parameters are float32; nu of a complex gradient is real; a callable `mask` gets the
    parameters in `update` too.
    Differs from Keras in: it adds ε to nu when reading it, not to |g|.

    Reference: Kingma & Ba 2015, section 7.1, algorithm 2, which has no ε; Loshchilov & Hutter 2019,
    algorithm 2.
    """
    scaled = scale_by_adamax(b1, b2, eps, mu_dtype=mu_dtype, nu_dtype=nu_dtype)
    decay = Decay(weight_decay, mask, weight_decay_mask, scale_decay)
    return optimizer(scaled, learning_rate, decay=decay)
