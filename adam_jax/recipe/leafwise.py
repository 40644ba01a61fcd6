"""What recipes do to the leaves of a whole tree: widen, round, add, choose, measure.

A None is a leaf that is left alone, as everywhere in this package.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adam_jax.formats.base import Format
from adam_jax.formats.dtypes import leaf_dtype, moves, wider_dtype
from adam_jax.formats.policy import format_of
from adam_jax.leaves import align_slot, leaf_paths, unflatten_slot
from adam_jax.rules.base import abs_squared


def map_leaves(f: Callable[..., Any], updates: Any, slots: Any) -> Any:
    """f of each leaf of the updates, None or not, and what a state keeps for it.

    Raises:
      ValueError: the trees differ, or f's own; the message has the first path.
    """
    leaves, treedef = jax.tree.flatten(updates, is_leaf=lambda x: x is None)
    results = []
    for i, (leaf, kept) in enumerate(zip(leaves, align_slot(treedef, updates, slots), strict=True)):
        try:
            results.append(f(leaf, kept))
        except ValueError as error:
            raise ValueError(f"at {leaf_paths(updates)[i]!r}, {error}") from None
    return unflatten_slot(treedef, updates, results)


def decoded(stored: Any, dtype: Any) -> jax.Array:
    """What is stored, as arithmetic wants it."""
    return _format(stored).decode(stored, dtype)


def stored_like(stored: Any, x: jax.Array) -> Any:
    """Another array in the form of what is stored."""
    return _format(stored).encode(x)


def fetched(tree: Any) -> Any:
    """The same arrays in the memory of the device, those too that `offload` keeps on the host."""

    def fetch(x: Any) -> Any:
        return jax.device_put(x, jax.memory.Space.Device) if on_host(x) else x

    return jax.tree.map(fetch, tree)


def on_host(x: Any) -> bool:
    """Whether an array is in the memory of the host, where nothing can be computed with it."""
    return jax.typeof(x).memory_space == jax.memory.Space.Host


def _format(stored: Any) -> Format:
    fmt = format_of(stored)
    assert fmt is not None, stored
    return fmt


def widened(updates: Any) -> Any:
    """Each leaf in the dtype of arithmetic."""
    return jax.tree.map(wide, updates)


def wide(x: Any) -> Any:
    """An array in the dtype of arithmetic; what is no number is left to those that say so."""
    try:
        return jax.lax.convert_element_type(x, wide_dtype(x))
    except TypeError:
        return x


def wide_dtype(x: Any) -> Any:
    """float32, or the array's own dtype where that is wider."""
    return wider_dtype(leaf_dtype(x), jnp.dtype(jnp.float32))


def applied(updates: Any, params: Any) -> Any:
    """θ + u, in the parameters' dtypes."""

    def apply(u: Any, p: Any) -> Any:
        dtype = jnp.result_type(p)
        u, p = wide(u), wide(p)
        with jax.numpy_dtype_promotion("standard"):
            return jax.lax.convert_element_type(p + u, dtype)

    return jax.tree.map(
        lambda u, p: p if u is None else apply(u, p), updates, params, is_leaf=lambda x: x is None
    )


def squared_norm(tree: Any) -> jax.Array:
    """‖x‖² of all leaves together, in the dtype of arithmetic.

    Written once: two that ask for the norm of the same gradients share one pass over them.
    """
    sums = [jnp.sum(abs_squared(wide(x))) for x in jax.tree.leaves(tree) if moves(x)]
    with jax.numpy_dtype_promotion("standard"):
        return sum(sums, start=jnp.zeros([], jnp.float32))
