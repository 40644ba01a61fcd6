"""Boxes: an array with names for its axes. NNX variables, Linen's `Partitioned`, Haliax' arrays.

The state of such a leaf is also stored in boxes, one per array. Code that places parameters by
their axis names then places the state in the same way.

Boxes are recognized by the names of their types, so nothing is imported for leaves of others.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from adam_jax._types import Leaf, Params, Stored
from adam_jax.formats.base import divides
from adam_jax.formats.dense import format_of

_NNX_NAMES = ("optimizer_sharding", "out_sharding", "sharding_names", "sharding")
"""Variable metadata with axis names: for the state only, and of newer and older Flax versions."""


def is_box(x: Leaf) -> bool:
    """Whether this is an NNX variable, a Linen box or a `NamedArray` of Haliax."""
    return not isinstance(x, jax.Array) and (_is_variable(x) or _is_linen(x) or _is_named(x))


def unboxed(stored: Stored) -> Stored:
    """The stored form, without the boxes around its arrays."""
    leaves, treedef = jax.tree.flatten(stored, is_leaf=is_box)
    if not any(map(is_box, leaves)):
        return stored
    return treedef.unflatten([_inside(x) if is_box(x) else x for x in leaves])


def boxed(box: Leaf, stored: Stored) -> Stored:
    """The stored form of a leaf in a box: each array in a box with the names of its axes."""
    fmt = format_of(stored)
    if fmt is None:
        return stored
    names, shape = _names(box), fmt.shape(stored)
    if names is None:
        return jax.tree.map(lambda x: _with(box, x, None), stored)
    told = sharding_by_names(box)
    parts = [1] * len(shape)
    if told is not None:
        parts = [n // m if n else 1 for n, m in zip(shape, told.shard_shape(shape), strict=True)]
    # A mesh with one axis per axis of the leaf: the format reports which axes each array keeps.
    axes = tuple(f"axis {i}" for i in range(len(shape)))
    mesh = AbstractMesh(tuple(parts), axes)
    kept = fmt.shardings(stored, NamedSharding(mesh, PartitionSpec(*axes)))
    names = (*names, *[None] * (len(shape) - len(names)))

    def its_box(x: Leaf, sharding: NamedSharding) -> Leaf:
        spec = (*sharding.spec, *[None] * (np.ndim(x) - len(sharding.spec)))
        own = [None if axis is None else axes.index(axis) for axis in spec]
        # Where no split is known, an axis as long as the parameter's divides wherever that does.
        own = [
            None if i is None or n % parts[i] or (parts[i] == 1 and n != shape[i]) else names[i]
            for i, n in zip(own, np.shape(x), strict=True)
        ]
        return _with(box, x, own)

    return jax.tree.map(its_box, stored, kept)


def boxes_of(params: Params) -> list[Leaf]:
    """The box of each leaf; None for a leaf without one."""
    found = []
    for x in jax.tree.leaves(params, is_leaf=is_box):
        found += [x if is_box(x) else None] * len(jax.tree.leaves(x))
    return found


def sharding_by_names(box: Leaf) -> NamedSharding | None:
    """The sharding given by the axis names of a box; None if they give none.

    The mesh is the box's own, or that of `jax.set_mesh`.
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
    if _is_named(box):
        return [axis.name for axis in box.axes]
    if _is_linen(box):
        return getattr(box, "names", None)
    metadata = box.get_metadata()
    found = next((metadata[key] for key in _NNX_NAMES if metadata.get(key)), None)
    found = getattr(found, "spec", found)
    return tuple(found) if isinstance(found, (tuple, list, PartitionSpec)) else None


def _with(box: Leaf, x: jax.Array, names: Sequence[Any] | None) -> Leaf:
    """A box like this one around x; with the old names if none are given."""
    if _is_named(box) and names is not None:
        full = tuple(name or f"_unsplit_{i}" for i, name in enumerate(names))
        return importlib.import_module("haliax").named(x, full)
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
    own = box.get_metadata().get("mesh") if _is_variable(box) else getattr(box, "mesh", None)
    return jax.sharding.get_abstract_mesh() if own is None else own


def _mesh_axes(box: Leaf, names: Sequence[Any]) -> PartitionSpec:
    """The mesh axes for names that may be logical, by Flax's rules or Haliax' mapping."""
    if _is_named(box):
        return importlib.import_module("haliax.partitioning").pspec_for_axis(names)
    if _is_linen(box):
        if not hasattr(box, "rules"):
            return PartitionSpec(*names)
        spmd = importlib.import_module("flax.linen.spmd")
        return spmd.logical_to_mesh_axes(tuple(names), box.rules)
    spmd = importlib.import_module("flax.core.spmd")
    rules = dict([*spmd.get_logical_axis_rules(), *box.get_metadata().get("sharding_rules", ())])
    return PartitionSpec(*(rules.get(name, name) for name in names))


def axes_in(part: Any) -> tuple[str, ...]:
    """The mesh axes in one entry of a `PartitionSpec`."""
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)


def _is_variable(x: Leaf) -> bool:
    return _is_a(x, "flax.nnx", "Variable")


def _is_linen(x: Leaf) -> bool:
    return _is_a(x, "flax.core.meta", "AxisMetadata")


def _is_named(x: Leaf) -> bool:
    return _is_a(x, "haliax", "NamedArray")


def _is_a(x: Leaf, module: str, name: str) -> bool:
    return any(c.__name__ == name and c.__module__.startswith(module) for c in type(x).__mro__)
