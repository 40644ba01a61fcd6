"""Flax's boxes: NNX variables and Linen's `Partitioned`, an array each with names for its axes.

A state keeps what it stores for such a leaf in boxes too, one for each array: whoever places the
parameters by their names places the state by them as well.

Boxes are known by the names of their types. This package imports Flax only where a leaf is one.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from adam_jax._types import Leaf, Params, Stored
from adam_jax.formats.blockwise import divides
from adam_jax.formats.policy import format_of

_NNX_NAMES = ("optimizer_sharding", "out_sharding", "sharding_names", "sharding")
"""Metadata of a variable that name its axes: for the state alone, and by newer and older Flax."""


def is_box(x: Leaf) -> bool:
    """Whether this is a variable of NNX, or one of Linen's boxes."""
    return not isinstance(x, jax.Array) and (_is_variable(x) or _is_linen(x))


def unboxed(stored: Stored) -> Stored:
    """What a format stores, without the boxes around its arrays."""
    leaves, treedef = jax.tree.flatten(stored, is_leaf=is_box)
    if not any(map(is_box, leaves)):
        return stored
    return treedef.unflatten([_inside(x) if is_box(x) else x for x in leaves])


def boxed(box: Leaf, stored: Stored) -> Stored:
    """What a format stores for a leaf in a box, each array in one with the names of its axes."""
    fmt = format_of(stored)
    if fmt is None:
        return stored
    names, shape = _names(box), fmt.shape(stored)
    if names is None:
        return jax.tree.map(lambda x: _with(box, x, None), stored)
    told = sharding_by_names(box)
    parts = [1] * len(shape)
    if told is not None:
        parts = [n // m for n, m in zip(shape, told.shard_shape(shape), strict=True)]
    # A mesh with an axis for each of the leaf's: the format says which of them each array keeps.
    axes = tuple(f"axis {i}" for i in range(len(shape)))
    mesh = AbstractMesh(tuple(parts), axes)
    kept = fmt.shardings(stored, NamedSharding(mesh, PartitionSpec(*axes)))
    names = (*names, *[None] * (len(shape) - len(names)))

    def its_box(x: Leaf, sharding: NamedSharding) -> Leaf:
        spec = (*sharding.spec, *[None] * (np.ndim(x) - len(sharding.spec)))
        own = [None if axis is None else axes.index(axis) for axis in spec]
        own = [
            None if i is None or n % parts[i] else names[i]
            for i, n in zip(own, np.shape(x), strict=True)
        ]
        return _with(box, x, own)

    return jax.tree.map(its_box, stored, kept)


def boxes_of(params: Params) -> list[Leaf]:
    """For each leaf the box that it is in; None if it is in none."""
    found = []
    for x in jax.tree.leaves(params, is_leaf=is_box):
        found += [x if is_box(x) else None] * len(jax.tree.leaves(x))
    return found


def sharding_by_names(box: Leaf) -> NamedSharding | None:
    """Where the names of a box say that its array lies; None if nothing says it.

    The mesh is the box's own or the one of `jax.set_mesh`.
    """
    names, mesh = _names(box), _mesh(box)
    shape = np.shape(_inside(box))
    if names is None or mesh is None or mesh.empty:
        return None
    spec = _mesh_axes(box, names)
    known = all(axis in mesh.axis_names for part in spec for axis in axes_in(part))
    if not known or len(spec) > len(shape):
        return None
    sharding = NamedSharding(mesh, spec)
    return sharding if divides(sharding, shape) else None


def _inside(box: Leaf) -> Leaf:
    [x] = jax.tree.leaves(box)
    return x


def _names(box: Leaf) -> Sequence[Any] | None:
    """The names of the axes; None if the box has none."""
    if _is_linen(box):
        return getattr(box, "names", None)
    metadata = box.get_metadata()
    found = next((metadata[key] for key in _NNX_NAMES if metadata.get(key)), None)
    found = getattr(found, "spec", found)
    return tuple(found) if isinstance(found, (tuple, list, PartitionSpec)) else None


def _with(box: Leaf, x: jax.Array, names: Sequence[Any] | None) -> Leaf:
    """A box like this one; with its own names, where none are given."""
    if _is_linen(box):
        return box.replace_boxed(x) if names is None else box.replace(value=x, names=tuple(names))
    own: dict[str, Any] = {}
    if names is not None:
        for key, old in box.get_metadata().items():
            if key in _NNX_NAMES and old:
                own[key] = _renamed(old, names)
    return box.replace(x, **own)


def _renamed(old: Any, names: Sequence[Any]) -> Any:
    if isinstance(old, NamedSharding):
        return NamedSharding(old.mesh, PartitionSpec(*names))
    return type(old)(*names) if isinstance(old, PartitionSpec) else type(old)(names)


def _mesh(box: Leaf) -> Any:
    own = getattr(box, "mesh", None) if _is_linen(box) else box.get_metadata().get("mesh")
    return jax.sharding.get_abstract_mesh() if own is None else own


def _mesh_axes(box: Leaf, names: Sequence[Any]) -> PartitionSpec:
    """The axes of the mesh for names that may be logical, by Flax's rules for them."""
    if _is_linen(box):
        if not hasattr(box, "rules"):
            return PartitionSpec(*names)
        spmd = importlib.import_module("flax.linen.spmd")
        return spmd.logical_to_mesh_axes(tuple(names), box.rules)
    spmd = importlib.import_module("flax.core.spmd")
    rules = dict([*spmd.get_logical_axis_rules(), *box.get_metadata().get("sharding_rules", ())])
    return PartitionSpec(*(rules.get(name, name) for name in names))


def axes_in(part: Any) -> tuple[str, ...]:
    """The axes of the mesh in one entry of a `PartitionSpec`."""
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)


def _is_variable(x: Leaf) -> bool:
    return _is_a(x, "flax.nnx", "Variable")


def _is_linen(x: Leaf) -> bool:
    return _is_a(x, "flax.core.meta", "AxisMetadata")


def _is_a(x: Leaf, module: str, name: str) -> bool:
    return any(c.__name__ == name and c.__module__.startswith(module) for c in type(x).__mro__)
