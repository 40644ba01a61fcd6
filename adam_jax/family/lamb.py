"""LAMB: You et al. 2020, Large Batch Optimization for Deep Learning: Training BERT in 76 Minutes.

https://arxiv.org/abs/1904.00962
"""

import jax
import optax

from adam_jax.alias import alias
from adam_jax.engine.stage import Stage
from adam_jax.engine.transformation import Transformation
from adam_jax.family.adam import scale_by_adam
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.rules.base import DecayRateLike
from adam_jax.rules.scaling import ScaleByTrustRatio


def _scale_by_adam(
    b1: DecayRateLike = 0.9,
    b2: DecayRateLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-6,
    eps_root: jax.typing.ArrayLike = 0.0,
    *,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
) -> Transformation:
    """Adam, each leaf's update as large as the leaf itself, times the learning rate.

        u = mû / (√(nû + eps_root) + eps)

    A leaf whose norm, or whose update's, is zero keeps û.

    Args:
      b1: see `scale_by_adam`, as all that is not here.

    Reference: You et al. 2020, algorithm 2.
    """
    return scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nu_dtype=nu_dtype)


# Optax's trust ratio is a closure and a pass of its own over update and parameter; as a stage it
# compares by value and runs where the update is.
_TRUST_RATIO = Stage(ScaleByTrustRatio(), optax.EmptyState)

lamb = alias(
    "lamb",
    _scale_by_adam,
    weight_decay=0.0,
    before_learning_rate=(_TRUST_RATIO,),
    update="θ ← θ - α_t·û·‖θ‖ / ‖û‖,  û = u + λ_t·θ",
)
