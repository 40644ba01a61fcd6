"""LAMB: You et al. 2020, Large Batch Optimization for Deep Learning: Training BERT in 76 Minutes.

https://arxiv.org/abs/1904.00962
"""

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from adam_jax.core.masks import MaskLike
from adam_jax.core.member import Stage
from adam_jax.core.transformation import Transformation
from adam_jax.family.adam import scale_by_adam
from adam_jax.family.alias import alias
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.numerics import exact, squared
from adam_jax.pytrees import frozen_pytree
from adam_jax.rates import DecayRateLike, Schedule
from adam_jax.rules.base import Rule, View
from adam_jax.validation import named_arguments


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


@named_arguments
def lamb(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
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

    Args:
      scale_decay: False removes λ_t·θ from u and subtracts it from θ directly, not scaled by α_t
        and the norms (fully decoupled). The decay's entry in the state is then the last.

    The other arguments, the arithmetic, the errors and the differences from Optax are those of
    `adamw`. The state is that of `adamw` and, before the entry of the learning rate, an empty one
    for the norms, as in Optax.

    Differs from Keras in: it decays θ before the step, and rescales the update without λ_t·θ.

    Reference: You et al. 2020, algorithm 2.
    """
    return alias("lamb", scale_by_adam, before_learning_rate=(TRUST_RATIO,), **locals())
