"""How much larger each leaf of a model is than the same leaf of a smaller one."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from adam_jax._types import Params, PyTree
from adam_jax.engine.trees import leaf_paths
from adam_jax.validation import check_expression


class Growth(NamedTuple):
    """How a leaf differs from that of the base model.

    Attributes:
      path: of the leaf.
      shape: its own.
      base_path: of the base model's leaf.
      base_shape: its shape.
      fan_in: by how much its input axes are larger, together; 1.0 for a vector.
      fan_out: by how much its output axes are larger, together.
      depth: by how much the model has more of its layer; None for a leaf of no layer.
    """

    path: str
    shape: tuple[int, ...]
    base_path: str
    base_shape: tuple[int, ...]
    fan_in: float
    fan_out: float
    depth: float | None

    @property
    def role(self) -> str:
        """The part that the leaf has in a network that grows wider.

        Yang et al. 2022 call hidden weights matrix-like, both sides grow, and those with one axis
        that grows vector-like: input, output and vector.
        """
        if self.fan_in != 1:
            return "hidden" if self.fan_out != 1 else "output"
        if self.fan_out != 1:
            return "vector" if len(self.shape) == 1 else "input"
        return "fixed"

    @property
    def hidden_inputs(self) -> float:
        """The growth of the inputs of a hidden weight, 1 for other leaves."""
        return self.fan_in if self.role == "hidden" else 1.0

    @property
    def width(self) -> float:
        """By how much the layer is wider whose gradient the leaf has; of an output, its inputs."""
        return self.fan_in if self.role == "output" else self.fan_out


def growths(
    base: PyTree, params: Params, layers: str | None = None, outputs_last: bool = True
) -> list[Growth]:
    """Compares all leaves of a model with those of a smaller one.

    Args:
      base: the parameters of the smaller model, or their shapes.
      params: those of the model, or their shapes.
      layers: an expression for the paths of leaves whose first axis is that of layers; None for
        none. Layers that are leaves of their own need none.
      outputs_last: kernels are [inputs, outputs]; False for [outputs, inputs].

    Raises:
      ValueError: a leaf has no counterpart, or one of another rank; an expression matches nothing.
    """
    paths, leaves = leaf_paths(params, none_is_leaf=False), jax.tree.leaves(params)
    its_paths = leaf_paths(base, none_is_leaf=False)
    base_shapes = dict(zip(its_paths, map(np.shape, jax.tree.leaves(base)), strict=True))
    if layers is not None:
        check_expression("layers", layers)
        if not any(re.fullmatch(layers, path) for path in paths):
            raise ValueError(
                f"layers must match the whole path of a leaf, got {layers!r} for {paths}."
            )
    of_base, of_params = _by_layer(its_paths), _by_layer(paths)
    found = []
    for path, leaf in zip(paths, leaves, strict=True):
        kind, shape = _without_numbers(path), np.shape(leaf)
        alike = of_base.get(kind, [])
        base_path = path if path in base_shapes else alike[0] if alike else None
        base_shape = None if base_path is None else base_shapes[base_path]
        if base_path is None or base_shape is None or len(base_shape) != len(shape):
            there = "nothing" if base_shape is None else f"the shape {base_shape}"
            raise ValueError(
                f"base must be a smaller model of the same kind, got {there} at {path!r}, which is"
                f" {shape} in params; base has {its_paths}."
            )
        depth = len(of_params[kind]) / len(alike) if kind != path else None
        if depth not in (None, 1) and len({base_shapes[other] for other in alike}) > 1:
            raise ValueError(
                f"base must have as many layers as params, or layers of one shape, got"
                f" {[base_shapes[other] for other in alike]} for the {len(of_params[kind])} leaves"
                f" like {path!r}."
            )
        own, other = shape, base_shape
        if layers is not None and re.fullmatch(layers, path):
            depth, own, other = shape[0] / base_shape[0], shape[1:], base_shape[1:]
        fans = _fans([n / m for n, m in zip(own, other, strict=True)], outputs_last)
        found.append(Growth(path, shape, base_path, base_shape, *fans, depth))
    return found


def _without_numbers(path: str) -> str:
    """`blocks/3/kernel` and `Block_3/kernel` as those of any layer: `blocks/#/kernel`."""
    return re.sub(r"\d+(?=/|$)", "#", path)


def _by_layer(paths: Sequence[str]) -> dict[str, list[str]]:
    """The paths of all layers of one kind, by the path without numbers."""
    found: dict[str, list[str]] = {}
    for path in paths:
        found.setdefault(_without_numbers(path), []).append(path)
    return found


def _fans(axes: Sequence[float], outputs_last: bool) -> tuple[float, float]:
    """The growth of the input axes and of the output axes of a leaf.

    A leaf with one axis has outputs only. Of one with more than two, the inputs end where both
    sides grow alike, as those of a layer do: [features, heads, size] and [heads, size, features]
    are told apart by that.
    """
    if len(axes) < 2:
        return 1.0, math.prod(axes)

    def unlike(split: int) -> float:
        return abs(math.log(math.prod(axes[:split])) - math.log(math.prod(axes[split:])))

    # Of equals that with most of the axes on the side of the inputs, as in a convolution.
    order = range(len(axes) - 1, 0, -1) if outputs_last else range(1, len(axes))
    split = min(order, key=lambda k: round(unlike(k), 9))
    first, last = math.prod(axes[:split]), math.prod(axes[split:])
    return (first, last) if outputs_last else (last, first)
