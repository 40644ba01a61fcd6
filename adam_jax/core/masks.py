"""Settings that are trees: masks, and prefixes of the parameters' tree."""

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any, TypeAlias

import jax
import jax.core
import numpy as np

from adam_jax._types import Leaf, Params, PyTree
from adam_jax.core.trees import leaf_paths

MaskLike: TypeAlias = Any
"""A tree of booleans like the parameters, a prefix of one, a function from them to one, or None."""


@dataclasses.dataclass(frozen=True)
class FrozenTree:
    """A tree of settings in comparable and hashable form.

    Attributes:
      leaves: its leaves; an array of one number becomes that number.
      treedef: its structure.
    """

    leaves: tuple[Leaf, ...]
    treedef: PyTree

    @classmethod
    def of(cls, tree: PyTree) -> "FrozenTree":
        """Freezes a tree."""
        leaves, treedef = jax.tree.flatten(tree)
        shapes = [x.shape for x in leaves if isinstance(x, _ARRAYS) and x.ndim]
        if shapes:
            raise ValueError(
                f"a setting must be made of numbers, strings and functions, got an array of shape"
                f" {shapes[0]}: arrays do not compare. Create it inside the function."
            )
        return cls(tuple(x.item() if isinstance(x, _ARRAYS) else x for x in leaves), treedef)

    @property
    def tree(self) -> PyTree:
        """The tree, in new containers."""
        return jax.tree.unflatten(self.treedef, self.leaves)


_ARRAYS = (np.ndarray, np.generic, jax.Array)


@dataclasses.dataclass(frozen=True)
class Mask:
    """Which leaves a stage acts on, as Optax writes it: a tree of booleans or a callable.

    A prefix of the parameters' tree also works. A callable is a single leaf.

    Attributes:
      frozen: the user's setting.
    """

    frozen: FrozenTree

    @classmethod
    def of(cls, tree: PyTree) -> "Mask":
        """Freezes a mask."""
        made = cls(FrozenTree.of(tree))
        if not made.is_function:
            check_booleans(made.frozen.tree)
        return made

    @property
    def is_function(self) -> bool:
        """Whether it is a callable; a module may be callable too, and is a tree."""
        is_leaf = jax.tree_util.treedef_is_leaf(self.frozen.treedef)
        return is_leaf and callable(self.frozen.leaves[0])

    def flatten(self, params: Params, tree: PyTree, param_leaves: list[Leaf]) -> list[bool]:
        """One boolean per leaf of `tree`, whose parameters are `param_leaves`.

        A callable always gets the parameters; in update, Optax passes it the updates.
        """
        mask = self.frozen.tree
        if self.is_function:
            mask = mask(params)
            check_booleans(mask)
        given, prefix = jax.tree.flatten(mask)
        # A mask has no leaf where the tree has a None.
        absent = {i for i, p in enumerate(param_leaves) if p is None}
        try:
            below = list(leaves_below(prefix, tree, absent))
        except ValueError:
            raise ValueError(
                f"mask must be a tree of booleans like the parameters, or a prefix of it, got"
                f" {prefix} for {tree}."
            ) from None
        flags = [False] * tree.num_leaves
        for flag, indices in zip(given, below, strict=True):
            for index in indices:
                flags[index] = bool(flag)
        return flags


def check_booleans(mask: PyTree) -> None:
    """Checks that each leaf of a mask is a boolean: Python's, NumPy's, or an array of one.

    Raises:
      ValueError: a leaf is not a boolean; many such values are truthy.
    """
    for path, flag in zip(leaf_paths(mask, none_is_leaf=False), jax.tree.leaves(mask), strict=True):
        if isinstance(flag, jax.core.Tracer):
            raise ValueError(
                f"mask must be known when the step is compiled, got a traced value at {path!r}:"
                f" make it of paths, shapes and dtypes, not of the parameters' values."
            )
        is_scalar = isinstance(flag, (bool, *_ARRAYS)) and np.ndim(flag) == 0
        if not is_scalar or getattr(flag, "dtype", np.bool_) != np.bool_:
            raise ValueError(
                f"mask must have booleans as leaves, got {flag!r} at {path!r}: write True or False,"
                f" or mask=adam_jax.decay_mask. To choose leaves by path, write"
                f' adam_jax.groups(adamw, {{".*bias": {{"weight_decay": 0.0}}}}, ...).'
            )


def leaves_below(
    prefix: PyTree, tree: PyTree, absent: Collection[int] = (), start: int = 0
) -> Iterator[range]:
    """The indices of the leaves of `tree` below each leaf of `prefix`.

    It uses only the structures: a user's node may refuse to hold numbers or flags instead of
    arrays.

    Args:
      prefix: the structure of a tree that is a prefix of `tree`, or equal to it.
      tree: the whole structure.
      absent: the leaves of `tree` for which the prefix may have a None, which is not a leaf.
      start: the index of the first leaf.

    Raises:
      ValueError: it is not a prefix.
    """
    kind = prefix.node_data()
    if kind is None:
        yield range(start, start + tree.num_leaves)
    elif prefix == tree:
        yield from (range(i, i + 1) for i in range(start, start + tree.num_leaves))
    elif prefix != _NONE or tree.node_data() is not None or start not in absent:
        own, others = prefix.children(), tree.children()
        if kind != tree.node_data() or len(own) != len(others):
            raise ValueError(f"{prefix} is not a prefix of {tree}.")
        for child, other in zip(own, others, strict=True):
            yield from leaves_below(child, other, absent, start)
            start += other.num_leaves


_NONE = jax.tree.structure(None)
