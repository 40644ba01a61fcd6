"""Leaves that stack several layers along their first axes; each layer counts as a tensor."""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from adam_jax._types import Function, Leaf, Params, PyTree
from adam_jax.core.boxes import boxes_of, sharding_by_names
from adam_jax.core.trees import leaf_paths
from adam_jax.formats.base import sharding_by_type
from adam_jax.numerics import LAYERS
from adam_jax.validation import check_expression, check_integer, printed

LayersLike: TypeAlias = str | Mapping[str, int]
"""A regular expression for leaves with one layer axis, or a dict from expressions to counts."""


def looks_stacked(params: Params, axis: int = 0) -> dict[str, int]:
    """Subtrees whose leaves look like layers stacked along an axis, with the number of layers.

    All leaves share this axis, and the other axes of one leaf begin or end those of another, as a
    bias or scale does with its kernel: [12, 64] and [12, 64, 256].
    """
    below: dict[str, list[tuple[int, ...]]] = {}
    paths = leaf_paths(params, none_is_leaf=False)
    for path, p in zip(paths, jax.tree.leaves(params), strict=True):
        parts = path.split("/")
        for end in range(len(parts)):
            shape = np.shape(p)
            shape = (*shape[axis : axis + 1], *shape[:axis], *shape[axis + 1 :])
            below.setdefault("/".join(parts[:end]), []).append(shape)
    found: dict[str, int] = {}
    for prefix, shapes in sorted(below.items(), key=lambda item: len(item[0])):
        inside = any(not known or prefix.startswith(f"{known}/") for known in found)
        if not inside and _share_layers(shapes):
            found[prefix] = shapes[0][0]
    return found


def _share_layers(shapes: Sequence[tuple[int, ...]]) -> bool:
    if min(map(len, shapes)) < 2 or len({shape[0] for shape in shapes}) > 1 or shapes[0][0] < 2:
        return False
    behind = {shape[1:] for shape in shapes}
    pairs = itertools.permutations(behind, 2)
    # A bias [64, 1, 1] of a convolution is not one.
    return any(
        len(s) < len(t) and max(s) > 1 and s in (t[: len(s)], t[-len(s) :]) for s, t in pairs
    )


class Stack(NamedTuple):
    """The layers of a leaf, numbered as if each were a separate leaf.

    Consecutive leaves are numbered layer by layer, as in a list of layers.

    Attributes:
      axes: the number of layer axes of the leaf.
      first: the number of its first layer; without layer axes, its own.
      stride: the difference between the numbers of two consecutive layers.
    """

    axes: int
    first: int
    stride: int


@dataclasses.dataclass(frozen=True)
class Layers:
    """Which leaves have layer axes.

    Attributes:
      expressions: each with the number of layer axes of leaves whose whole path matches; the first
        match applies.
    """

    expressions: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, layers: LayersLike) -> "Layers":
        """Checks the user's setting."""
        if isinstance(layers, str):
            layers = {layers: 1}
        if not isinstance(layers, Mapping):
            raise ValueError(
                f"layers must be a regular expression, or a dict from expressions to numbers of"
                f' axes, got {printed(layers)}: write "blocks/.*", or {{"blocks/.*": 1}}.'
            )
        found = []
        for expression, axes in layers.items():
            check_expression("each key of layers", expression)
            argument = f"layers[{expression!r}]"
            axes = check_integer(argument, axes, 1, instead="1 is one axis of layers")
            found.append((expression, axes))
        return cls(tuple(found))

    def __bool__(self) -> bool:
        return bool(self.expressions)

    @property
    def expression(self) -> str | None:
        """One expression for all leaves with a layer axis; None if there are none.

        Raises:
          ValueError: some leaves have several layer axes.
        """
        if any(axes > 1 for _, axes in self.expressions):
            raise ValueError(
                f"layers must be one axis of each leaf for mup, got {dict(self.expressions)}: give"
                f" mup leaves with a single axis of layers."
            )
        return "|".join(f"(?:{e})" for e, _ in self.expressions) or None

    def axes(self, path: str) -> int:
        """The number of layer axes of the leaf with this path."""
        matching = self._matching(path)
        return 0 if matching is None else self.expressions[matching][1]

    def check(self, params: Params) -> None:
        """Checks that every expression matches a leaf, and that the leaf has the axes.

        With masked leaves, an expression may match only those.

        Raises:
          ValueError: an expression fails.
        """
        paths = leaf_paths(params, none_is_leaf=False)
        nodes = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
        for expression, _ in self.expressions if paths and len(nodes) == len(paths) else ():
            if not any(re.fullmatch(expression, path) for path in paths):
                raise ValueError(
                    f"layers must match the whole path of a leaf, got {expression!r} for {paths}."
                )
        for path, p in zip(paths, jax.tree.leaves(params), strict=True):
            if np.ndim(p) < self.axes(path):
                raise ValueError(
                    f"layers must match leaves with an axis of layers, got {self.axes(path)} for"
                    f" {path!r} with the shape {np.shape(p)}."
                )

    def single(self, params: Params) -> list[Leaf]:
        """One layer of each leaf, with the sharding from its type or from the names of its box.

        The storage of a leaf depends on this: see `sharding_by_type`.
        """
        columns = jax.tree.leaves(params), leaf_paths(params, none_is_leaf=False), boxes_of(params)
        return [
            one_layer(p, self.axes(path), None if box is None else sharding_by_names(box))
            for p, path, box in zip(*columns, strict=True)
        ]

    def one_of_each(self, params: Params) -> PyTree:
        """The tree with every stacked leaf replaced by the shape and dtype of one layer."""
        if not self:
            return params
        leaves, treedef = jax.tree.flatten(params)
        paths = leaf_paths(params, none_is_leaf=False)
        pairs = zip(leaves, map(self.axes, paths), strict=True)
        return treedef.unflatten([one_layer(p, n) for p, n in pairs])

    def stacks(self, paths: Sequence[str], shapes: Sequence[tuple[int, ...] | None]) -> list[Stack]:
        """The layers of each leaf, by path and shape; a None has those of the leaves beside it."""
        if not self:
            return [Stack(0, i, 0) for i in range(len(shapes))]
        found: list[Stack] = []
        first = 0
        alike = itertools.groupby(range(len(shapes)), lambda i: self._matching(paths[i]))
        for matching, run in alike:
            indices = list(run)
            if matching is None:
                found += [Stack(0, first + k, 0) for k in range(len(indices))]
                first += len(indices)
                continue
            axes, stride = self.expressions[matching][1], len(indices)
            found += [Stack(axes, first + k, stride) for k in range(stride)]
            counts = (math.prod(shape[:axes]) for i in indices if (shape := shapes[i]) is not None)
            first += stride * max(counts, default=1)
        return found

    def _matching(self, path: str) -> int | None:
        matches = (k for k, (e, _) in enumerate(self.expressions) if re.fullmatch(e, path))
        return next(matches, None)


def over_layers(f: Function, axes: int, stride: int, *trees: PyTree) -> PyTree:
    """Maps f over the layers of some leaves: arrays have the layer axes, scalars do not.

    Args:
      f: a function of uint32, the distance in leaves from the first layer, and of trees of one
        layer.
      axes: the number of layer axes of the arrays, which come first.
      stride: the distance in leaves between two consecutive layers.
      *trees: trees of arrays.
    """
    like = next(x for x in jax.tree.leaves(trees) if x.ndim)
    shape, sharding = like.shape[:axes], sharding_by_type(like)
    numbers = jnp.arange(math.prod(shape), dtype=jnp.uint32) * np.uint32(stride)
    if sharding is not None and any(sharding.spec[:axes]):  # vmap wants one sharding of the layers.
        of_layers = NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0]))
        numbers = jax.sharding.reshard(numbers, of_layers)

    def flat(x: jax.Array) -> jax.Array:
        return jnp.reshape(x, (numbers.size, *x.shape[axes:])) if x.ndim else x

    along = jax.tree.map(lambda x: 0 if x.ndim else None, trees)
    mapped = jax.vmap(f, in_axes=(0, *along), axis_name=LAYERS)(numbers, *jax.tree.map(flat, trees))
    return jax.tree.map(lambda x: jnp.reshape(x, (*shape, *x.shape[1:])), mapped)


def layer_by_layer(leaves: Sequence[jax.Array], stacks: Sequence[Stack]) -> list[jax.Array]:
    """Every layer as a separate array, in the order of their numbers.

    Layers that are sharded over an explicit axis of the mesh stay one array: to slice them would
    send them to all devices.
    """
    numbered: dict[int, jax.Array] = {}
    for x, (axes, first, stride) in zip(leaves, stacks, strict=True):
        sharding = sharding_by_type(x)
        if axes and not (sharding and any(sharding.spec[:axes])):
            x = jnp.reshape(x, (-1, *x.shape[axes:]))
            numbered |= {first + k * stride: x[k] for k in range(x.shape[0])}
        else:
            numbered[first] = x
    return [numbered[number] for number in sorted(numbered)]


def one_layer(p: Leaf, axes: int, sharding: NamedSharding | None = None) -> Leaf:
    """The shape, dtype and sharding of one layer of a leaf; the leaf itself without layer axes.

    Args:
      p: the leaf.
      axes: its number of layer axes.
      sharding: of the leaf, if its type has none.
    """
    if not axes and sharding is None:
        return p
    sharding = sharding or sharding_by_type(p)
    if sharding is not None:
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[axes:]))
    return jax.ShapeDtypeStruct(np.shape(p)[axes:], jnp.result_type(p), sharding=sharding)
