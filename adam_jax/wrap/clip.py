"""Clipping by the norm of the whole gradient."""

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
        """Nothing to remember."""
        del params
        return optax.EmptyState()

    def run(self, updates: Updates, state: State, params: Params, call: Call) -> Result:
        """Multiplies every leaf by the same factor."""
        norm = global_norm(updates, self.layers)
        # Multiplied, since for a division XLA:CPU stores the clipped gradient before it goes on; by
        # two factors, as 1 / norm may be less than float32's smallest number.
        limit = jnp.asarray(self.max_norm, norm.value.dtype)
        passes = (norm.value <= jnp.maximum(limit, 0) / norm.unit) | (limit == jnp.inf)
        factors = 1 / norm.unit, jnp.where(passes, norm.unit, limit / norm.value)

        clipped = call.or_zeros(unrounded(updates).then(*factors))
        return (applied(clipped.tree, params) if call.apply else clipped), state


def clip_by_global_norm(max_norm: jax.typing.ArrayLike) -> Transformation:
    """Shortens gradients whose norm, that of all leaves together, is above max_norm.

        g ← g·min(1, max_norm / ‖g‖)

    Put before Adam in a `chain` it costs one pass over the gradient, and no copy of it.

    Args:
      max_norm: the largest norm that passes as it is, in units of the gradient. Infinity turns
        clipping off, 0 makes every gradient zero, and below 0 they are turned around as well.

    Returns:
      A transformation without state, as Optax's. With a NaN in the gradient all of it is NaN; with
      an infinity it is NaN there and 0 elsewhere: `skip_nonfinite` goes around. With an infinite
      max_norm both stay where they are.

    Raises:
      ValueError: max_norm is NaN or not a number.

    Differs from Optax in: the gradient is multiplied by the factor, and not divided by the norm;
    where Optax makes NaN of all of it, a gradient of zero passes as it is for max_norm ≤ 0, and any
    gradient for an infinite one.
    Differs from PyTorch (`clip_grad_norm_`) in: no 1e-6 is added to the norm.

    Reference: Pascanu et al. 2013, On the difficulty of training recurrent neural networks
    (https://arxiv.org/abs/1211.5063), algorithm 1.
    """
    instead = "the usual value is 1.0; jnp.inf turns clipping off"
    max_norm = check_number("max_norm", max_norm, -math.inf, closed=True, instead=instead)
    return Transformation.around(ClipByGlobalNorm(max_norm))
