"""Aligns other trees with the leaves of the updates, and reports where one does not match."""

import collections
import re

import jax

from adam_jax._types import Leaf, Params, PyTree, Updates
from adam_jax.core.boxes import boxed, is_box, unboxed
from adam_jax.formats.base import Format


def align_slot(treedef: PyTree, updates: Updates, slot_tree: PyTree) -> list[Leaf]:
    """The entry of one slot for each leaf of the updates."""
    try:
        slots = treedef.flatten_up_to(slot_tree)
    except ValueError:
        try:
            slots = _in_place_of_boxes(updates, slot_tree)
        except ValueError:
            raise ValueError(
                f"the updates must have the structure of the state:"
                f" {_first_difference(updates, slot_tree)}. Was init called with these parameters?"
            ) from None
    return [x if isinstance(x, jax.Array) else unboxed(x) for x in slots]


def align_params(treedef: PyTree, params: Params, needed: bool, apply: bool) -> list[Leaf]:
    """The parameter of each leaf of the updates, or None for all leaves if none is needed."""
    nobody = [None] * treedef.num_leaves
    if params is None and needed and treedef.num_leaves:
        why = "step moves them" if apply else "this transformation reads them"
        call = "adam_jax.step(tx, grads, state, params)"
        call = call if apply else "tx.update(grads, state, params)"
        raise ValueError(f"params must be given, got None: {why}. Write {call}.")
    try:
        return nobody if params is None else treedef.flatten_up_to(params)
    except ValueError:
        if not needed:  # Optax ignores them in this case.
            return nobody
        raise ValueError(
            f"params must have the structure of the updates, got"
            f" {jax.tree.structure(params)} against {treedef}."
        ) from None


def leaf_paths(tree: PyTree, none_is_leaf: bool = True) -> list[str]:
    """The path of every leaf as users write it, keys joined by slashes: `layers/0/kernel`.

    Paths that are equal in this form, of {"a/b": x, "a": {"b": y}}, are written `['a']['b']`. The
    attribute `value`, in which Flax's boxes hold their array, is left out: `nnx.Optimizer`
    calls `init` with variables and `update` with plain arrays.

    Args:
      tree: the parameters, or a tree like them.
      none_is_leaf: whether None counts as a leaf.
    """

    def is_none(x: Leaf) -> bool:
        return none_is_leaf and x is None

    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: is_none(x) or is_box(x))
    paths = []
    for path, leaf in flat:
        inside = [()]
        if is_box(leaf):
            below, _ = jax.tree_util.tree_flatten_with_path(leaf, is_leaf=is_none)
            inside = [keys[1:] for keys, _ in below]
        paths += [path + keys for keys in inside]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    if len(set(names)) < len(names):  # A key has a slash in it.
        often = {name for name, n in collections.Counter(names).items() if n > 1}
        pairs = zip(names, paths, strict=True)
        names = [jax.tree_util.keystr(path) if name in often else name for name, path in pairs]
    return [name or "(the whole tree)" for name in names]


def without_numbers(path: str) -> str:
    """`blocks/3/kernel` and `Block_3/kernel` as the paths of any layer: `blocks/#/kernel`."""
    return re.sub(r"\d+(?=/|$)", "#", path)


def _in_place_of_boxes(updates: Updates, slot_tree: PyTree) -> list[Leaf]:
    """`align_slot`, where `unflatten_stored` replaced a box by several arrays."""
    leaves, treedef = jax.tree.flatten(updates, is_leaf=_is_none_or_box)
    slots = []
    for own, stored in zip(leaves, treedef.flatten_up_to(slot_tree), strict=True):
        inside = jax.tree.structure(own, is_leaf=lambda x: x is None)
        slots += inside.flatten_up_to(stored) if is_box(stored) else [stored]
    return slots


def _is_none_or_box(x: Leaf) -> bool:
    return x is None or is_box(x)


def unflatten_slot(slot_tree: PyTree, stored: list[Leaf]) -> PyTree:
    """The inverse of `align_slot`: the current stored forms, in the structure of the slot."""
    return jax.tree.structure(slot_tree).unflatten(jax.tree.leaves(stored))


def unflatten_stored(params: Params, stored: list[Leaf], none_is_leaf: bool = False) -> PyTree:
    """A tree like the parameters, with the stored form of each.

    A box holds one array. A stored form of several arrays has a box for each, see `boxed`. One
    without a box replaces the box.
    """
    is_leaf = _is_none_or_box if none_is_leaf else is_box
    leaves, treedef = jax.tree.flatten(params, is_leaf=is_leaf)
    rest = iter(stored)
    slots = []
    for leaf in leaves:
        inside, around = jax.tree.flatten(leaf, is_leaf=lambda x: none_is_leaf and x is None)
        own = [next(rest) for _ in inside]
        one = len(own) == 1 and own[0] is not None and not hasattr(own[0], "dtype")
        if one:
            slots.append(boxed(leaf, own[0]) if is_box(leaf) else own[0])
        else:
            slots.append(around.unflatten(own))
    return treedef.unflatten(slots)


def _first_difference(updates: Updates, reference: PyTree) -> str:
    """The first difference of two trees, in words: a path that only one of them has."""
    ours, theirs = leaf_paths(updates), leaf_paths(reference)
    missing = next((p for p in theirs if p not in set(ours)), None)
    if missing is not None:
        return f"the state has {missing!r}, the updates do not"
    extra = next((p for p in ours if p not in set(theirs)), None)
    if extra is not None:
        return f"the updates have {extra!r}, the state does not"
    return (
        f"the containers differ: {jax.tree.structure(updates)} in the updates,"
        f" {jax.tree.structure(reference)} in the state"
    )


Keys = tuple[Leaf, ...]
"""A path into a tree, as `jax.tree_util` has it."""


def is_stored(x: Leaf) -> bool:
    """Whether this is a stored form other than a plain array."""
    return isinstance(getattr(x, "format", None), Format)


def fetched(tree: PyTree) -> PyTree:
    """The same arrays in device memory, including those that `offload` keeps on the host."""

    def fetch(x: Leaf) -> Leaf:
        return jax.device_put(x, jax.memory.Space.Device) if on_host(x) else x

    return jax.tree.map(fetch, tree)


def on_host(x: Leaf) -> bool:
    """Whether an array is in host memory, where JAX cannot compute with it."""
    return jax.typeof(x).memory_space == jax.memory.Space.Host
