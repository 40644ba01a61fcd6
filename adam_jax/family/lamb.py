"""LAMB: You et al. 2020, Large Batch Optimization for Deep Learning: Training BERT in 76 Minutes.

https://arxiv.org/abs/1904.00962
"""

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from adam_jax.core.masks import MaskLike
from adam_jax.core.member import Stage
from adam_jax.core.transformation import Decay, Transformation, optimizer
from adam_jax.family.adam import scale_by_adam
from adam_jax.formats.dense import AT_LEAST_FLOAT32
from adam_jax.formats.policy import SlotDType
from adam_jax.numerics import DecayRateLike, exact, squared
from adam_jax.pytrees import frozen_pytree
from adam_jax.rules.base import Rule, View
from adam_jax.rules.hyperparameters import Schedule


# Optax's trust ratio is a closure, and a separate pass over update and parameter. A stage compares
# by value and runs in the pass that computes the update.
@frozen_pytree
class ScaleByTrustRatio(Rule):
    """u·‖θ‖/‖u‖ per leaf; u where one of the two norms is zero (You et al. 2020, algorithm 2)."""

    elementwise = True
    reads_sums = True
    needs_params = True

    def update(self, leaf: View) -> Array:
        params, updates = leaf.sum(squared(leaf.param)), leaf.sum(squared(leaf.g))
        moves = (params > 0) & (updates > 0)
        # Otherwise XLA:CPU multiplies by rsqrt, whose bits differ between one number and several.
        norm = exact(jnp.sqrt(jnp.where(moves, updates, 1)))
        return jnp.sqrt(jnp.where(moves, params, 1)) / norm * leaf.g


TRUST_RATIO = Stage(ScaleByTrustRatio(), optax.EmptyState)


def lamb(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike = 0.9,
    b2: DecayRateLike = 0.999,
    eps: ArrayLike = 1e-6,
    eps_root: ArrayLike = 0.0,
    weight_decay: ArrayLike | Schedule = 0.0,
    mask: MaskLike = None,
    *,
    weight_decay_mask: MaskLike = None,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    scale_decay: bool = True,
) -> Transformation:
    """LAMB: Adam with each leaf's update rescaled to the norm of the leaf.

        mu ← b1·mu + (1-b1)·g            mû = mu / (1 - b1ᵗ)
        nu ← b2·nu + (1-b2)·|g|²         nû = nu / (1 - b2ᵗ)
        u  = mû / (√(nû + eps_root) + eps) + λ_t·θ
        θ  ← θ - α_t·u·‖θ‖ / ‖u‖         for each leaf; θ - α_t·u if one of the norms is 0

    All arithmetic is in float32 (float64 for float64 leaves), regardless of the dtypes of gradient,
    parameter and state. Only the update is rounded.

    Args:
      learning_rate: α, per optimizer step: a number (negative for ascent), or a schedule, a
        function of the number of completed optimizer steps (0 at the first).
      b1: decay rate of the first moment, per optimizer step, 0 ≤ b1 < 1.
      b2: decay rate of the second moment, per optimizer step, 0 ≤ b2 < 1.
      eps: ε, added outside the root, in units of the gradient; ≥ 0.
      eps_root: added inside the root, in units of the gradient squared; ≥ 0.
      weight_decay: λ, decoupled weight decay, per optimizer step: a number (0.0 turns it off;
        negative values grow the weights), or a schedule.
      mask: the leaves that decay: a tree of booleans like the parameters, a prefix of one, or a
        function from the parameters to one, such as `decay_mask`. None decays all leaves.
      weight_decay_mask: Optax's newer name for `mask`; pass only one of the two.
      mu_dtype: storage format of mu: a floating-point dtype of at least 16 bits, `jnp.int8`,
        `jnp.int4`, a `Quantized`, `stochastic(dtype)` or `by_path({...})`. None is the parameter's
        dtype. The default is the parameter's dtype, but at least float32.
      nu_dtype: storage format of nu: any form of mu_dtype, `Factored()`, `BlockMeans(axes)` or
        `AdamMini()`; not float16. For bfloat16 write `stochastic(jnp.bfloat16)`: rounded to
        nearest, nu stops changing.
      scale_decay: False removes λ_t·θ from u and subtracts it from θ directly, not scaled by α_t
        and the norms (fully decoupled). The decay's entry in the state is then the last.

    Returns:
      A transformation whose state is a tuple: `optax.ScaleByAdamState(count, mu, nu)`, then three
      entries, for weight decay, the norms and the learning rate: each is empty, or the count of a
      schedule. Optax's `lamb` has the same state. `update` needs `params`.

    Raises:
      ValueError: on construction, for a number out of range or a dtype that cannot store a moment;
        in `init` and `update`, for a leaf dtype without arithmetic (8-bit floats), a gradient that
        does not match the state, or missing `params`.

    Differs from Optax in: rounding, which is within a few ulp of the exact algorithm; moments of
    16-bit parameters are float32; nu of a complex gradient is real; a callable `mask` gets the
    parameters in `update` too.
    Differs from Keras in: it decays θ before the step, and rescales the update without λ_t·θ.

    Reference: You et al. 2020, algorithm 2.
    """
    scaled = scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nu_dtype=nu_dtype)
    decay = Decay(weight_decay, mask, weight_decay_mask, scale_decay)
    return optimizer(scaled, learning_rate, decay=decay, before_learning_rate=(TRUST_RATIO,))
