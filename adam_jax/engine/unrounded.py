"""Gradients and updates between transformations: in the dtype of arithmetic, not yet rounded.

A clipped bfloat16 gradient is not rounded before it reaches Adam. But somebody's own transformation
gets the dtypes that it would get in `optax.chain`, since its state may have them, and so do users:
the dtype travels with the array.
"""

from typing import Any

import jax
import jax.numpy as jnp

from adam_jax._types import DType, Leaf, Params, PyTree, Updates
from adam_jax.formats.dtypes import leaf_dtype, moves, wider_dtype
from adam_jax.rules.pytrees import frozen_pytree, static


@frozen_pytree
class Unrounded:
    """An array in the dtype of arithmetic that stands for one of another dtype.

    Attributes:
      value: the array.
      dtype: that it is to be rounded to.
    """

    value: Leaf
    dtype: DType = static()


def is_update(x: Leaf) -> bool:
    """Whether this is a leaf of a tree of updates: an array or None."""
    return x is None or isinstance(x, Unrounded)


def flatten_updates(updates: Updates) -> tuple[list[Leaf], Any]:
    """The leaves of a tree of updates, `Unrounded` and None among them, and its structure."""
    return jax.tree.flatten(updates, is_leaf=is_update)


def unrounded(updates: Updates) -> Updates:
    """The same updates, not rounded any more by who reads them."""

    def widen(u: Leaf) -> Leaf:
        if isinstance(u, Unrounded) or u is None or not moves(u):
            return u
        try:
            return Unrounded(promoted(u), leaf_dtype(u))
        except TypeError:  # Who reads it says so.
            return u

    return jax.tree.map(widen, updates, is_leaf=is_update)


def rounded(updates: Updates) -> Updates:
    """Arrays of the dtypes that they stand for."""

    def narrow(u: Leaf) -> Leaf:
        return jax.lax.convert_element_type(u.value, u.dtype) if isinstance(u, Unrounded) else u

    return jax.tree.map(narrow, updates, is_leaf=is_update)


def values(updates: Updates) -> Updates:
    """The arrays as they are."""
    return jax.tree.map(
        lambda u: u.value if isinstance(u, Unrounded) else u, updates, is_leaf=is_update
    )


def value(u: Leaf) -> Leaf:
    """The array of one leaf."""
    return u.value if isinstance(u, Unrounded) else u


def dtype_of(u: Leaf) -> Leaf:
    """The dtype that one leaf stands for."""
    return u.dtype if isinstance(u, Unrounded) else leaf_dtype(u)


def with_dtypes(arrays: PyTree, updates: Updates) -> PyTree:
    """Arrays made of updates, which stand for the same dtypes as those."""

    def give(x: Leaf, u: Leaf) -> Leaf:
        return x if u is None or not moves(value(u)) else Unrounded(promoted(x), dtype_of(u))

    leaves, treedef = flatten_updates(updates)
    return treedef.unflatten(map(give, treedef.flatten_up_to(arrays), leaves))


def update_dtype(u: Leaf, p: Leaf) -> Leaf:
    """The gradient's dtype, widened to a wider parameter's, which a narrower update would round."""
    dtype = dtype_of(u)
    return dtype if p is None else wider_dtype(dtype, leaf_dtype(p))


def promoted(x: Leaf) -> Leaf:
    """An array in the dtype of arithmetic; what is no number is left to those that say so."""
    try:
        return jax.lax.convert_element_type(x, arithmetic_dtype(x))
    except TypeError:
        return x


def arithmetic_dtype(x: Leaf) -> Leaf:
    """float32, or the array's own dtype where that is wider."""
    return wider_dtype(leaf_dtype(x), jnp.dtype(jnp.float32))


def applied(updates: Updates, params: Params) -> Updates:
    """θ + u, in the parameters' dtypes."""

    def apply(u: Leaf, p: Leaf) -> Leaf:
        if u is None:
            return p
        dtype = jnp.result_type(p)
        u, p = promoted(value(u)), promoted(p)
        with jax.numpy_dtype_promotion("standard"):
            return jax.lax.convert_element_type(p + u, dtype)

    leaves, treedef = flatten_updates(updates)
    return treedef.unflatten(map(apply, leaves, treedef.flatten_up_to(params)))
