"""Gradients and updates between transformations: in the dtype of arithmetic, not yet rounded.

A clipped bfloat16 gradient is not rounded before it reaches Adam. But somebody's own transformation
gets the dtypes that it would get in `optax.chain`, since its state may have them, and so do users:
the dtypes travel with the gradients.
"""

import dataclasses

import jax
import jax.numpy as jnp

from adam_jax._types import DType, Function, Leaf, Params, PyTree, Updates
from adam_jax.engine.trees import align_params
from adam_jax.formats.dtypes import leaf_dtype, moves, wider_dtype
from adam_jax.rules.pytrees import frozen_pytree, static


@frozen_pytree
class Unrounded:
    """A tree of updates in the dtype of arithmetic, with the dtypes that they are to have.

    Attributes:
      tree: of arrays and None.
      dtypes: of each leaf, None among them; None for one that is not to be rounded.
    """

    tree: PyTree
    dtypes: tuple[DType | None, ...] = static()


def values(updates: Updates) -> PyTree:
    """The tree of arrays, in the dtypes that they have."""
    return updates.tree if isinstance(updates, Unrounded) else updates


def dtypes_of(updates: Updates) -> tuple[DType | None, ...]:
    """The dtypes that updates are to have."""
    if isinstance(updates, Unrounded):
        return updates.dtypes

    def dtype_of(u: Leaf) -> DType | None:
        try:
            return None if u is None else leaf_dtype(u)
        except (TypeError, ValueError):  # Who reads it says so, with its path.
            return None

    return tuple(dtype_of(u) for u in jax.tree.leaves(updates, is_leaf=lambda x: x is None))


def unrounded(updates: Updates) -> Unrounded:
    """The same updates in the dtype of arithmetic, each with the dtype that it is to have."""
    if isinstance(updates, Unrounded):
        return updates
    return Unrounded(jax.tree.map(promoted, updates), dtypes_of(updates))


def rounded(updates: Updates) -> PyTree:
    """Arrays of the dtypes that they are to have."""
    if not isinstance(updates, Unrounded):
        return updates
    leaves, treedef = jax.tree.flatten(updates.tree, is_leaf=lambda x: x is None)
    pairs = zip(leaves, updates.dtypes, strict=True)
    return treedef.unflatten(
        [u if d is None or u is None else jax.lax.convert_element_type(u, d) for u, d in pairs]
    )


def map_tree(f: Function, updates: Updates) -> Updates:
    """f of the tree of arrays, which returns one for the same dtypes."""
    if isinstance(updates, Unrounded):
        return dataclasses.replace(updates, tree=f(updates.tree))
    return f(updates)


def as_wide_as(updates: Updates, params: Params) -> Updates:
    """Updates whose dtypes are the parameters' where those are wider: Adam's are so."""
    if not isinstance(updates, Unrounded):
        return updates
    treedef = jax.tree.structure(updates.tree, is_leaf=lambda x: x is None)
    leaves = align_params(treedef, params, needed=False, apply=False)
    pairs = zip(updates.dtypes, leaves, strict=True)
    return dataclasses.replace(updates, dtypes=tuple(update_dtype(d, p) for d, p in pairs))


def update_dtype(dtype: DType | None, p: Leaf) -> DType | None:
    """The gradient's dtype, or the parameter's if wider, which a narrower update would round."""
    return dtype if dtype is None or p is None else wider_dtype(dtype, leaf_dtype(p))


def promoted(x: Leaf) -> Leaf:
    """An array in the dtype of arithmetic; what is no number is left to those that say so."""
    try:
        return jax.lax.convert_element_type(x, arithmetic_dtype(x)) if moves(x) else x
    except (TypeError, ValueError):
        return x


def arithmetic_dtype(x: Leaf) -> DType:
    """float32, or the array's own dtype where that is wider."""
    return wider_dtype(leaf_dtype(x), jnp.dtype(jnp.float32))


def applied(updates: PyTree, params: Params) -> Params:
    """θ + u, in the parameters' dtypes."""

    def apply(u: Leaf, p: Leaf) -> Leaf:
        if u is None:
            return p
        dtype = jnp.result_type(p)
        u, p = promoted(u), promoted(p)
        with jax.numpy_dtype_promotion("standard"):
            return jax.lax.convert_element_type(p + u, dtype)

    leaves, treedef = jax.tree.flatten(updates, is_leaf=lambda x: x is None)
    aligned = align_params(treedef, params, needed=True, apply=True)
    return treedef.unflatten(map(apply, leaves, aligned))
