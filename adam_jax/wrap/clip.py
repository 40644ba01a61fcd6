"""Gradient clipping by the global norm."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax._types import Number, Params, PyTree, State
from adam_jax.core.stacked import Layers, Stack, layer_by_layer
from adam_jax.core.step import Body, Step
from adam_jax.core.transformation import Transformation
from adam_jax.numerics import root, squared
from adam_jax.pytrees import frozen_pytree, static
from adam_jax.validation import check_number


class Norm(NamedTuple):
    """A norm as value·unit; the unit is 1, or a power of two if the sum of squares overflows."""

    value: jax.Array  # Infinite only if an element is.
    unit: jax.Array


def global_norm(step: Step, layers: Layers) -> Norm:
    """‖g‖ over all leaves; layers are summed in the order of separate leaves."""
    return _norms(tuple(step.stacks(layers)), False, step.values)[0]


def leaf_norms(step: Step, layers: Layers) -> list[Norm]:
    """‖g‖ of each leaf that is here, or of each layer of it."""
    return _norms(tuple(step.stacks(layers)), True, step.values)


# Two norms of the same gradients share one pass over them.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _norms(stacks: tuple[Stack, ...], each: bool, leaves: list[jax.Array]) -> list[Norm]:
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.finfo(jnp.result_type(jnp.float32, *leaves)).dtype
    # In this unit, even 2⁴⁰ elements of the largest number have a finite squared norm.
    unit = 2.0 ** (int(jnp.finfo(dtype).maxexp) * 2 // 3)

    def totals(sums: list[jax.Array]) -> list[jax.Array]:
        sums = [jax.lax.convert_element_type(x, dtype) for x in sums]
        return sums if each else [sum(sums, start=jnp.zeros([], dtype))]

    def squares(leaves: list[jax.Array]) -> list[jax.Array]:
        axes = [stack.axes for stack in stacks] if each else [0] * len(leaves)
        pairs = zip(leaves, axes, strict=True)
        return [jnp.sum(squared(x), range(n, x.ndim)) for x, n in pairs]

    def on_cpu(leaves: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        leaves = leaves if each else layer_by_layer(leaves, stacks)
        sums = squares(leaves)
        fits = sum(map(jnp.sum, totals(sums)), start=jnp.zeros([], dtype)) < jnp.inf
        return totals(sums), jax.lax.cond(fits, lambda s, _: totals(s), smaller, sums, leaves)

    def smaller(sums: list[jax.Array], leaves: list[jax.Array]) -> list[jax.Array]:
        # A computed factor for each leaf: XLA:CPU would store a constant as an array of the leaf's
        # size.
        factors = (jnp.where(jnp.max(s) < 0, 1.0, 1 / unit) for s in sums)
        return totals(squares([_times(x, f) for x, f in zip(leaves, factors, strict=True)]))

    # On other platforms a branch would wait for the host: compute both sums by one reduction.
    def elsewhere(leaves: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        both = []
        for x, stack in zip(leaves, stacks, strict=True):
            along = tuple(range(stack.axes if each else 0, x.ndim))
            both.append(added([squared(x), squared(_times(x, 1 / unit))], along))
        return totals([a for a, _ in both]), totals([b for _, b in both])

    found = jax.lax.platform_dependent(leaves, cpu=on_cpu, default=elsewhere)
    norms = []
    for total, in_units in zip(*found, strict=True):
        fits = total < jnp.inf
        value = root(jnp.where(fits, total, in_units))
        norms.append(Norm(value, jnp.where(fits, jnp.ones([], dtype), jnp.asarray(unit, dtype))))
    return norms


def _times(x: jax.Array, factor: Number) -> jax.Array:
    """A real or complex array times a real number."""
    with jax.numpy_dtype_promotion("standard"):
        return x * jnp.asarray(factor, jnp.finfo(x.dtype).dtype)


def added(terms: list[jax.Array], axes: tuple[int, ...] | None = None) -> list[jax.Array]:
    """Several sums in one reduction, of arrays of one shape and dtype, which are not stored."""
    zeros = [np.zeros([], x.dtype) for x in terms]
    return jax.lax.reduce(terms, zeros, _add, tuple(range(terms[0].ndim)) if axes is None else axes)


# Not a lambda: outside jit each new one would be compiled again.
def _add(xs: PyTree, ys: PyTree) -> list[jax.Array]:
    return [x | y if x.dtype == bool else x + y for x, y in zip(xs, ys, strict=True)]


def in_rows(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of a leaf in some 4,096 rows, and the axes of a row.

    By rows, since a sequential sum in float32 stops growing at 2²⁴ equal terms. At most one axis is
    split and none are merged, for which XLA would gather a leaf that is sharded along them.
    """
    rows = 1
    for axis, size in enumerate(shape):
        if rows * size >= 4096 or axis == len(shape) - 1:
            parts = math.gcd(size, 1 << (-(-4096 // max(rows, 1)) - 1).bit_length())
            if parts < size and (rows * parts >= 64 or math.prod(shape[axis + 1 :]) < 64):
                shape = (*shape[:axis], parts, size // parts, *shape[axis + 1 :])
            return shape, tuple(range(axis + 1, len(shape)))
        rows *= size
    return (), ()


@frozen_pytree
class ClipByGlobalNorm(Body):
    """The body of `clip_by_global_norm`."""

    max_norm: Number
    layers: Layers = static(default=Layers())

    def init(self, params: Params) -> optax.EmptyState:
        """The empty state."""
        del params
        return optax.EmptyState()

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        """Multiplies every leaf by the same factor."""
        norm = global_norm(step, self.layers)
        # Multiply, since XLA:CPU would store the clipped gradient after a division. Use two
        # factors, since 1 / norm may be less than float32's smallest number.
        limit = jnp.asarray(self.max_norm, norm.value.dtype)
        passes = (norm.value <= jnp.maximum(limit, 0) / norm.unit) | (limit == jnp.inf)
        divisor = jnp.where(passes, 1, norm.value)  # Not 0.
        factors = 1 / norm.unit, jnp.where(passes, norm.unit, limit / divisor)
        return step.times(*factors, step.ok), state


def clip_by_global_norm(max_norm: jax.typing.ArrayLike) -> Transformation:
    """Scales the gradient down to max_norm if its global norm, over all leaves, is larger.

        g ← g·min(1, max_norm / ‖g‖)

    Before Adam in a `chain` it costs one pass over the gradient and no copy of it.

    Args:
      max_norm: the largest norm that passes unchanged, in units of the gradient. Infinity turns
        clipping off, 0 makes every gradient zero, and a negative value also flips its sign.

    Returns:
      A transformation without state, as in Optax. A NaN in the gradient makes all of it NaN, an
      infinity becomes NaN and all other elements 0, unless max_norm is infinite; `skip_nonfinite`
      around the chain skips such steps.

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
