"""Gradients and updates between transformations, in the dtype of arithmetic and not yet rounded.

A clipped bfloat16 gradient is not rounded before it reaches Adam. A transformation of another
library gets the dtypes that it would get in `optax.chain`, because its state may depend on them,
and so do users. So the dtypes travel with the gradients.
"""

import dataclasses
from typing import TypeAlias

import jax
import jax.numpy as jnp

from adam_jax._types import DType, Function, Leaf, Params, PyTree, Updates
from adam_jax.engine.trees import align_params, chosen
from adam_jax.formats.dense import is_floating, leaf_dtype, wider_dtype
from adam_jax.rules.pytrees import frozen_pytree, static

Pending: TypeAlias = tuple[jax.Array, ...]
"""Pending operations on each element of a gradient, in this order.

Real scalars multiply it; boolean scalars make it zero where they are false. The loop that reads the
gradient applies them. A kernel does not fuse with the loop before it, which would store the
gradient, 8 bytes per parameter.
"""


@frozen_pytree
class Unrounded:
    """Updates in the dtype of arithmetic, with the dtypes that they will be rounded to.

    Attributes:
      raw: a tree of arrays and None, before the pending operations; it may have other dtypes.
      dtypes: of each leaf, None leaves included; None for a leaf that is not rounded.
      pending: the operations to apply.
    """

    raw: PyTree
    dtypes: tuple[DType | None, ...] = static()
    pending: Pending = ()

    @property
    def tree(self) -> PyTree:
        """The updates."""
        return jax.tree.map(lambda x: completed(x, self.pending), self.raw)

    def then(self, *scalars: jax.Array | None) -> "Unrounded":
        """With more pending operations; None adds nothing."""
        more = tuple(x for x in scalars if x is not None)
        return dataclasses.replace(self, pending=self.pending + more)


def completed(x: Leaf, pending: Pending) -> Leaf:
    """An array in the dtype of arithmetic, with all pending operations applied."""
    x = promoted(x)
    if not is_floating(x):
        return x
    with jax.numpy_dtype_promotion("standard"):  # A complex gradient times a real number.
        for scalar in pending:
            if scalar.dtype == jnp.bool_:
                x = chosen(scalar, x, 0)
            else:
                x = x * jax.lax.convert_element_type(scalar, jnp.finfo(x.dtype).dtype)
    return x


def values(updates: Updates) -> PyTree:
    """The tree of arrays, in their current dtypes."""
    return updates.tree if isinstance(updates, Unrounded) else updates


def raw(updates: Updates) -> PyTree:
    """The tree of arrays before the pending operations."""
    return updates.raw if isinstance(updates, Unrounded) else updates


def dtypes_of(updates: Updates) -> tuple[DType | None, ...]:
    """The dtypes that updates will be rounded to."""
    if isinstance(updates, Unrounded):
        return updates.dtypes

    def dtype_of(u: Leaf) -> DType | None:
        try:
            return None if u is None else leaf_dtype(u)
        except (TypeError, ValueError):  # The reader raises an error with its path.
            return None

    return tuple(dtype_of(u) for u in jax.tree.leaves(updates, is_leaf=lambda x: x is None))


def unrounded(updates: Updates) -> Unrounded:
    """The same updates in the dtype of arithmetic, with the dtypes that they will be rounded to."""
    if isinstance(updates, Unrounded):
        return updates
    return Unrounded(updates, dtypes_of(updates))


def made(updates: Updates) -> Updates:
    """The same updates with nothing pending."""
    return Unrounded(updates.tree, updates.dtypes) if isinstance(updates, Unrounded) else updates


def rounded(updates: Updates) -> PyTree:
    """Arrays in the dtypes that they are rounded to."""
    if not isinstance(updates, Unrounded):
        return updates
    leaves, treedef = jax.tree.flatten(updates.tree, is_leaf=lambda x: x is None)
    pairs = zip(leaves, updates.dtypes, strict=True)
    return treedef.unflatten(
        [u if d is None or u is None else jax.lax.convert_element_type(u, d) for u, d in pairs]
    )


def map_tree(f: Function, updates: Updates) -> Updates:
    """f of the tree of arrays; f returns a tree for the same dtypes."""
    if isinstance(updates, Unrounded):
        return dataclasses.replace(updates, raw=f(updates.raw))
    return f(updates)


def as_wide_as(updates: Updates, params: Params) -> Updates:
    """Updates with the parameters' dtypes where those are wider, as Adam's updates have."""
    if not isinstance(updates, Unrounded):
        return updates
    treedef = jax.tree.structure(updates.raw, is_leaf=lambda x: x is None)
    leaves = align_params(treedef, params, needed=False, apply=False)
    pairs = zip(updates.dtypes, leaves, strict=True)
    return dataclasses.replace(updates, dtypes=tuple(update_dtype(d, p) for d, p in pairs))


def update_dtype(dtype: DType | None, p: Leaf) -> DType | None:
    """The gradient's dtype, or the parameter's if wider, which a narrower update would round."""
    return dtype if dtype is None or p is None else wider_dtype(dtype, leaf_dtype(p))


def promoted(x: Leaf) -> Leaf:
    """An array in the dtype of arithmetic; values that are not numbers are left to later checks."""
    try:
        dtype = arithmetic_dtype(x) if is_floating(x) else None
        if dtype in (None, getattr(x, "dtype", None)):
            return x
        return jax.lax.convert_element_type(x, dtype)
    except (TypeError, ValueError):
        return x


def arithmetic_dtype(x: Leaf) -> DType:
    """float32, or the array's own dtype if that is wider."""
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
