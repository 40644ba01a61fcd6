"""Gradient clipping by the global norm."""

import math

import jax
import jax.numpy as jnp
import optax

from adam_jax._types import Number, Params, Result, State, Updates
from adam_jax.engine.call import Body, Call
from adam_jax.engine.layers import Layers
from adam_jax.engine.leafwise import global_norm
from adam_jax.engine.transformation import Transformation
from adam_jax.engine.unrounded import applied, unrounded
from adam_jax.rules.pytrees import frozen_pytree, static
from adam_jax.validation import check_number


@frozen_pytree
class ClipByGlobalNorm(Body):
    """The body of `clip_by_global_norm`."""

    max_norm: Number
    layers: Layers = static(default=Layers())

    def init(self, params: Params) -> optax.EmptyState:
        """The empty state."""
        del params
        return optax.EmptyState()

    def run(self, updates: Updates, state: State, params: Params, call: Call) -> Result:
        """Multiplies every leaf by the same factor."""
        norm = global_norm(updates, self.layers)
        # Multiply, since XLA:CPU would store the clipped gradient after a division. Use two
        # factors, since 1 / norm may be less than float32's smallest number.
        limit = jnp.asarray(self.max_norm, norm.value.dtype)
        passes = (norm.value <= jnp.maximum(limit, 0) / norm.unit) | (limit == jnp.inf)
        factors = 1 / norm.unit, jnp.where(passes, norm.unit, limit / norm.value)

        clipped = call.or_zeros(unrounded(updates).then(*factors))
        return (applied(clipped.tree, params) if call.apply else clipped), state


def clip_by_global_norm(max_norm: jax.typing.ArrayLike) -> Transformation:
    """Scales the gradient down to max_norm if its global norm, over all leaves, is larger.

        g ← g·min(1, max_norm / ‖g‖)

    Before Adam in a `chain` it costs one pass over the gradient and no copy of it.

    Args:
      max_norm: the largest norm that passes unchanged, in units of the gradient. Infinity turns
        clipping off, 0 makes every gradient zero, and a negative value also flips its sign.

    Returns:
      A transformation without state, as in Optax. A NaN in the gradient makes all of it NaN. An
      infinity becomes NaN, and all other elements 0. To skip such steps, wrap the chain in
      `skip_nonfinite`. With an infinite max_norm NaN and infinity pass through unchanged.

    Raises:
      ValueError: max_norm is NaN or not a number.

    Differs from Optax in: the gradient is multiplied by the factor, not divided by the norm; a zero
    gradient passes unchanged for max_norm ≤ 0, and so does any gradient for an infinite max_norm,
    where Optax makes all of it NaN.
    Differs from PyTorch (`clip_grad_norm_`) in: no 1e-6 is added to the norm.

    Reference: Pascanu et al. 2013, On the difficulty of training recurrent neural networks
    (https://arxiv.org/abs/1211.5063), algorithm 1.
    """
    instead = "the usual value is 1.0; jnp.inf turns clipping off"
    max_norm = check_number("max_norm", max_norm, -math.inf, closed=True, instead=instead)
    return Transformation.around(ClipByGlobalNorm(max_norm))
