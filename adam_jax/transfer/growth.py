"""How much larger each leaf of a model is than the same leaf of a smaller one.

Layers are separate leaves with numbers in their paths, or the first axis of leaves that are named.
"""

import dataclasses
import itertools
import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np

from adam_jax._types import Params, PyTree
from adam_jax.core.trees import leaf_paths, without_numbers
from adam_jax.roles import Role, role_of
from adam_jax.validation import check_expression

Shape = tuple[int, ...]
Numbers = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Growth:
    """How a leaf differs from that of the base model."""

    path: str
    shape: Shape
    base_path: str
    base_shape: Shape
    axes: tuple[float, ...]  # The growth of each, without that of layers.
    fan_in: float  # The growth of all input axes; 1.0 for a vector.
    fan_out: float
    layers: tuple[int, int]  # Of its kind, here and in the base model; (1, 1) outside layers.
    is_vector: bool  # It has only outputs, one per unit, like a bias.

    @property
    def depth(self) -> float:
        """The growth of the number of its layers."""
        return self.layers[0] / self.layers[1]

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


def growths(base: PyTree, params: Params, layers: str | None = None) -> list[Growth]:
    """Compares all leaves of a model with those of a smaller one; the arguments are those of `mup`.

    Raises:
      ValueError: a leaf has no counterpart, or one of another rank; layers differ where they must
        be alike; the expression matches nothing, or not a leaf that grows unlike any kernel; the
        name of a leaf whose sides grow differently does not tell them apart.
    """
    shapes, base_shapes = (
        dict(zip(leaf_paths(x, none_is_leaf=False), map(np.shape, jax.tree.leaves(x)), strict=True))
        for x in (params, base)
    )
    if layers is not None:
        check_expression("layers", layers)
        if not any(re.fullmatch(layers, path) for path in shapes):
            raise ValueError(
                f"layers must match the whole path of a leaf, got {layers!r} for {[*shapes]}."
            )
    numbers = numbered({**base_shapes, **shapes})
    kinds, base_kinds = _kinds(shapes, numbers), _kinds(base_shapes, numbers)
    found: dict[str, Growth] = {}
    for kind, ours in kinds.items():
        theirs = base_kinds.get(kind, {})
        for numbers, path in ours.items():
            shape, base_path = shapes[path], _counterpart(numbers, theirs)
            base_shape = base_shapes.get(base_path or "", ())
            if base_path is None or len(base_shape) != len(shape):
                there = "nothing" if base_path is None else f"the shape {base_shape}"
                raise ValueError(
                    f"base must be a smaller model of the same kind, got {there} at {path!r}, which"
                    f" is {shape} in params; base has {list(base_shapes)}."
                )
            count = _layers(ours, {n: base_shapes[x] for n, x in theirs.items()})
            axes = _axes(path, shape, base_shape, layers)
            if len(axes) < len(shape):
                count = shape[0], base_shape[0]
            role, both = role_of(path, len(axes)), (path, shape, base_path, base_shape)
            fans = _fans(path, axes, role)
            found[path] = Growth(*both, axes, *fans, count, role.kind == "vector")
    return [found[path] for path in shapes]


def numbered(paths: Iterable[str]) -> dict[str, str]:
    """Adds a number to the first of Haiku's modules: `block`, `block_1`, `block_2`."""
    ends = re.compile(r"(?=/|$)")
    modules = {path[: end.start()] for path in paths for end in ends.finditer(path)}
    first = {x[:-2] for x in modules if x.endswith("_1") and f"{x[:-1]}0" not in modules}

    def number(end: re.Match[str]) -> str:
        return "_0" if end.string[: end.start()] in first else ""

    return {path: ends.sub(number, path) for path in paths}


def _kinds(paths: Iterable[str], numbered: Mapping[str, str]) -> dict[str, dict[Numbers, str]]:
    """The leaves that differ in numbers only, by these numbers."""
    kinds: dict[str, dict[Numbers, str]] = {}
    for path in paths:
        numbers = tuple(re.findall(r"\d+(?=/|$)", numbered[path]))
        kinds.setdefault(without_numbers(numbered[path]), {})[numbers] = path
    return kinds


def _axes(path: str, shape: Shape, base_shape: Shape, layers: str | None) -> tuple[float, ...]:
    """The growth of each axis, without that of layers."""
    layered = layers is not None and re.fullmatch(layers, path) is not None
    if layered and (not shape or 0 in (shape[0], base_shape[0])):
        raise ValueError(
            f"layers must match leaves with an axis of layers, got {layers!r} for {path!r} with the"
            f" shape {shape}, and {base_shape} in base."
        )
    pairs = zip(shape[layered:], base_shape[layered:], strict=True)
    axes = tuple(max(n, 1) / max(m, 1) for n, m in pairs)
    if not layered and sum(x != 1 for x in axes) > 2 and axes[0] != 1 and not _balanced(axes):
        raise ValueError(
            f"layers must match every leaf whose first axis counts layers, got {layers!r}, and"
            f" {path!r} grows unlike any kernel, from {base_shape} to {shape}: write, for example,"
            f" layers='blocks/.*'. If it is a kernel, give it an axis of inputs and one of outputs."
        )
    return axes


def _counterpart(numbers: Numbers, theirs: Mapping[Numbers, str]) -> str | None:
    """The same path; base's first number replaces each number that base lacks."""
    there = [list(dict.fromkeys(column)) for column in zip(*theirs, strict=True)]
    nearest = (n if n in its else its[0] for n, its in zip(numbers, there, strict=False))
    return theirs.get(numbers) or theirs.get(tuple(nearest))


def _layers(ours: Mapping[Numbers, str], theirs: Mapping[Numbers, Shape]) -> tuple[int, int]:
    """The number of layers, and base's."""
    columns, base_columns = list(zip(*ours, strict=True)), list(zip(*theirs, strict=True))
    grows = [set(own) != set(base) for own, base in zip(columns, base_columns, strict=True)]
    if not any(grows):
        return len(ours), len(theirs)
    alike: dict[Numbers, Shape] = {}
    for numbers, shape in theirs.items():
        kept = tuple(n for n, more in zip(numbers, grows, strict=True) if not more)
        if alike.setdefault(kept, shape) != shape:
            [path, *_] = ours.values()
            raise ValueError(
                f"base must have as many layers as params, or layers of one shape, got"
                f" {[*theirs.values()]} for the {len(ours)} leaves like {path!r}."
            )
    own, base = (itertools.compress(its, grows) for its in (columns, base_columns))
    return math.prod(len(set(x)) for x in own), math.prod(len(set(x)) for x in base)


def _balanced(axes: Sequence[float]) -> bool:
    """Whether the growing axes form two parts of equal growth, as the sides of a layer do."""
    logs = [math.log(x) for x in axes if x != 1]
    signs = itertools.product((1, -1), repeat=len(logs))
    return any(abs(sum(map(operator.mul, its, logs))) < 1e-9 for its in signs)


def _fans(path: str, axes: Sequence[float], role: Role) -> tuple[float, float]:
    """The growth of the input axes and of the output axes of a leaf.

    Where the name does not tell them apart and the leaf has more than two axes, both sides grow
    equally if possible, as in a layer, or the inputs end where both sides grow most alike.
    """
    if role.kind == "vector":
        return 1.0, math.prod(axes)
    if role.outputs:
        return math.prod(axes[i] for i in role.inputs), math.prod(axes[i] for i in role.outputs)
    if len(axes) > 2 and _balanced(axes):
        side = math.sqrt(math.prod(axes))
        return side, side
    splits = ((math.prod(axes[:k]), math.prod(axes[k:])) for k in range(len(axes) - 1, 0, -1))
    first, last = min(splits, key=lambda x: round(abs(math.log(x[0]) - math.log(x[1])), 9))
    if 1 not in (first, last) and not math.isclose(first, last):
        raise ValueError(
            f"params must have names that tell inputs from outputs where the two grow differently,"
            f" got {path!r} with growth {axes}: write kernel or w for [inputs, outputs], weight for"
            f" [outputs, inputs]."
        )
    return first, last
