"""Operations of wrappers on a whole tree, leaf by leaf: decode, encode, fetch, measure.

A None is a leaf that is skipped, as everywhere in this package.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax._types import DType, Function, Leaf, Number, PyTree, Stored, Updates
from adam_jax.engine.layers import Layers, Stack, layer_by_layer
from adam_jax.engine.trees import align_slot, leaf_paths
from adam_jax.engine.unrounded import promoted, values
from adam_jax.formats.base import Format
from adam_jax.formats.dense import is_floating
from adam_jax.formats.policy import format_of
from adam_jax.rules.arithmetic import abs_squared


def map_leaves(f: Function, updates: Updates, slots: PyTree) -> list[Leaf]:
    """f of each leaf of the updates, None included, and of its entry in a state.

    Raises:
      ValueError: the trees differ, or f raises it; the message has the first path.
    """
    leaves, treedef = jax.tree.flatten(updates, is_leaf=lambda x: x is None)
    results = []
    for i, (leaf, kept) in enumerate(zip(leaves, align_slot(treedef, updates, slots), strict=True)):
        try:
            results.append(f(leaf, kept))
        except ValueError as error:
            raise ValueError(f"at {leaf_paths(updates)[i]!r}, {error}") from None
    return results


def decoded(stored: Stored, dtype: DType) -> jax.Array:
    """The stored array, in a dtype of arithmetic."""
    return _format(stored).decode(stored, dtype)


def stored_like(stored: Stored, x: jax.Array) -> Stored:
    """Another array, in the same stored form."""
    return _format(stored).encode(x)


def fetched(tree: PyTree) -> PyTree:
    """The same arrays in device memory, including those that `offload` keeps on the host."""

    def fetch(x: Leaf) -> Leaf:
        return jax.device_put(x, jax.memory.Space.Device) if on_host(x) else x

    return jax.tree.map(fetch, tree)


def on_host(x: Leaf) -> bool:
    """Whether an array is in host memory, where JAX cannot compute with it."""
    return jax.typeof(x).memory_space == jax.memory.Space.Host


def _format(stored: Stored) -> Format:
    fmt = format_of(stored)
    assert fmt is not None, stored
    return fmt


class Norm(NamedTuple):
    """A norm as value·unit, both scalars in the dtype of arithmetic.

    Attributes:
      value: the norm in units; infinite only if an element is infinite, NaN if one is NaN.
      unit: 1, or a power of two if the sum of squares overflows (a norm above 1.8e19).
    """

    value: jax.Array
    unit: jax.Array


def global_norm(updates: Updates, layers: Layers) -> Norm:
    """‖x‖ over all leaves; layers are summed in the order of separate leaves.

    Shared code, so that two norms of the same gradients share one pass over them.
    """
    tree = values(updates)
    every = jax.tree.leaves(tree, is_leaf=lambda x: x is None)
    stacks = layers.stacks(leaf_paths(tree) if layers else [], every)
    leaves = [
        (promoted(x), its)
        for x, its in zip(every, stacks, strict=True)
        if x is not None and is_floating(x)
    ]
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.finfo(jnp.result_type(jnp.float32, *(x for x, _ in leaves))).dtype
    return _norm(dtype, tuple(its for _, its in leaves), [x for x, _ in leaves])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _norm(dtype: DType, stacks: tuple[Stack, ...], leaves: list[jax.Array]) -> Norm:
    # In this unit, even 2⁴⁰ elements of the largest number have a finite squared norm.
    unit = 2.0 ** (int(jnp.finfo(dtype).maxexp) * 2 // 3)

    def on_cpu(leaves: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        leaves = layer_by_layer(leaves, stacks)
        sums = [jnp.sum(abs_squared(x)) for x in leaves]
        squared = _total(sums, dtype)
        return squared, jax.lax.cond(squared < jnp.inf, _first, _in_units, squared, sums, leaves)

    def _in_units(_: jax.Array, sums: list[jax.Array], leaves: list[jax.Array]) -> jax.Array:
        # A computed factor for each leaf: XLA:CPU would store a constant as an array of the leaf's
        # size.
        pairs = zip(leaves, sums, strict=True)
        scaled = (_times(x, jnp.where(s < 0, 1.0, 1 / unit)) for x, s in pairs)
        return _total([jnp.sum(abs_squared(x)) for x in scaled], dtype)

    # On other platforms a branch would wait for the host: compute both sums by one reduction.
    def elsewhere(leaves: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        both = [_two_sums(abs_squared(x), abs_squared(_times(x, 1 / unit))) for x in leaves]
        return _total([a for a, _ in both], dtype), _total([b for _, b in both], dtype)

    squared, in_units = jax.lax.platform_dependent(leaves, cpu=on_cpu, default=elsewhere)
    fits = squared < jnp.inf
    value = jnp.sqrt(jnp.where(fits, squared, in_units))
    return Norm(value, jnp.where(fits, jnp.ones([], dtype), jnp.asarray(unit, dtype)))


def _first(x: jax.Array, *_: Any) -> jax.Array:
    return x


def _total(sums: list[jax.Array], dtype: DType) -> jax.Array:
    return sum((jax.lax.convert_element_type(x, dtype) for x in sums), start=jnp.zeros([], dtype))


def _times(x: jax.Array, factor: Number) -> jax.Array:
    """A real or complex array times a real number."""
    with jax.numpy_dtype_promotion("standard"):
        return x * jnp.asarray(factor, jnp.finfo(x.dtype).dtype)


def _two_sums(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    zero = np.zeros([], x.dtype)
    return tuple(jax.lax.reduce((x, y), (zero, zero), _add_both, tuple(range(x.ndim))))


def _add_both(xs: PyTree, ys: PyTree) -> PyTree:
    return xs[0] + ys[0], xs[1] + ys[1]
