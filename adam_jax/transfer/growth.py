"""How much larger each leaf of a model is than the same leaf of a smaller one."""

import dataclasses
import math
import re
from collections.abc import Sequence

import jax
import numpy as np

from adam_jax._types import Params, PyTree
from adam_jax.engine.trees import leaf_paths
from adam_jax.transfer.layers import check_layers, growth_by_axis, is_balanced, pairs
from adam_jax.validation import check_expression


@dataclasses.dataclass(frozen=True)
class Growth:
    """How a leaf differs from that of the base model.

    Attributes:
      path: of the leaf.
      shape: its own.
      base_path: of the base model's leaf.
      base_shape: its shape.
      fan_in: the combined growth of its input axes; 1.0 for a vector.
      fan_out: the combined growth of its output axes.
      layers: the number of layers of its kind, and that of the base model; None for a leaf outside
        layers.
      is_vector: it has only outputs, one per unit, like a bias.
    """

    path: str
    shape: tuple[int, ...]
    base_path: str
    base_shape: tuple[int, ...]
    fan_in: float
    fan_out: float
    layers: tuple[int, int] | None
    is_vector: bool

    @property
    def depth(self) -> float | None:
        """The growth of the number of its layers; None for a leaf outside layers."""
        return None if self.layers is None else self.layers[0] / self.layers[1]

    @property
    def role(self) -> str:
        """The role of the leaf in a network that grows wider.

        Yang et al. 2022 call hidden weights, which grow on both sides, matrix-like. Weights with
        one growing axis are vector-like: input, output and vector.
        """
        if self.fan_in != 1:
            return "hidden" if self.fan_out != 1 else "output"
        if self.fan_out != 1:
            return "vector" if self.is_vector else "input"
        return "fixed"

    @property
    def hidden_inputs(self) -> float:
        """The growth of the inputs of a hidden weight, 1 for other leaves."""
        return self.fan_in if self.role == "hidden" else 1.0

    @property
    def width(self) -> float:
        """The growth of the layer whose gradient the leaf has; for an output, of its inputs."""
        return self.fan_in if self.role == "output" else self.fan_out


def growths(
    base: PyTree, params: Params, layers: str | None = None, outputs_last: bool = True
) -> list[Growth]:
    """Compares all leaves of a model with those of a smaller one.

    Args:
      base: the parameters of the smaller model, or their shapes.
      params: those of the model, or their shapes.
      layers: an expression for the paths of leaves whose first axis is that of layers; None for
        none, "" for none without a check. Layers that are separate leaves need none.
      outputs_last: kernels are [inputs, outputs]; False for [outputs, inputs].

    Raises:
      ValueError: a leaf has no counterpart, or one of another rank; the expression matches nothing;
        an axis looks like one of layers, and there is no expression.
    """
    found = pairs(_shapes(params), _shapes(base))
    if layers:
        check_expression("layers", layers)
        if not any(re.fullmatch(layers, x.path) for x in found):
            raise ValueError(
                f"layers must match the whole path of a leaf, got {layers!r} for"
                f" {[x.path for x in found]}."
            )
    if layers != "":
        check_layers(found, layers)
    leaves = []
    for x in found:
        layered = bool(layers and re.fullmatch(layers, x.path))
        own, other, count = x.shape, x.base_shape, x.layers
        if layered:
            if not own or 0 in (own[0], other[0]):
                raise ValueError(
                    f"layers must match leaves with an axis of layers, got {layers!r} for"
                    f" {x.path!r} with the shape {own}, and {other} in base."
                )
            count, own, other = (own[0], other[0]), own[1:], other[1:]
        axes = growth_by_axis(own, other)
        fans = _fans(axes, outputs_last)
        leaves.append((own, axes, Growth(*x[:4], *fans, count, len(axes) < 2)))
    beside: dict[str, list[_Leaf]] = {}
    for leaf in leaves:
        beside.setdefault(_parent(leaf[2].path), []).append(leaf)
    return [_as_bias(leaf, beside[_parent(leaf[2].path)], outputs_last) for leaf in leaves]


_Leaf = tuple[tuple[int, ...], list[float], Growth]
"""The shape without an axis of layers, the growth of its axes, and the result."""


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _as_bias(leaf: _Leaf, beside: Sequence[_Leaf], outputs_last: bool) -> Growth:
    """Treats a bias of several axes, [heads, size], that are a kernel's outputs as a vector."""
    shape, axes, growth = leaf
    size, rank = math.prod(axes), len(axes)
    for its_shape, its_axes, its in beside:
        side = slice(-rank, None) if outputs_last else slice(0, rank)
        outputs = 1 < rank < len(its_axes) and (its_shape[side], its_axes[side]) == (shape, axes)
        if outputs and math.isclose(size, its.fan_out):
            return dataclasses.replace(growth, fan_in=1.0, fan_out=size, is_vector=True)
    return growth


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    paths = leaf_paths(tree, none_is_leaf=False)
    return dict(zip(paths, map(np.shape, jax.tree.leaves(tree)), strict=True))


def _fans(axes: Sequence[float], outputs_last: bool) -> tuple[float, float]:
    """The growth of the input axes and of the output axes of a leaf.

    A leaf with one axis has only outputs. With more than two axes, both sides grow equally if
    possible, as in a layer: [features, heads, size], [heads, size, features] and [heads, features,
    size] have the same growth. Otherwise the inputs end where both sides grow most alike.
    """
    if len(axes) < 2:
        return 1.0, math.prod(axes)
    if len(axes) > 2 and is_balanced(axes):
        side = math.sqrt(math.prod(axes))
        return side, side

    def unlike(split: int) -> float:
        return abs(math.log(math.prod(axes[:split])) - math.log(math.prod(axes[split:])))

    # Ties go to the split with the most input axes, as in a convolution.
    order = range(len(axes) - 1, 0, -1) if outputs_last else range(1, len(axes))
    split = min(order, key=lambda k: round(unlike(k), 9))
    first, last = math.prod(axes[:split]), math.prod(axes[split:])
    return (first, last) if outputs_last else (last, first)
