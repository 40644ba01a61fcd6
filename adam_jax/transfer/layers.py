"""Finds the leaves of layers and counts the layers: by numbers in paths, or by a first axis."""

import itertools
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from adam_jax.engine.trees import without_numbers

Shape = tuple[int, ...]


class Pair(NamedTuple):
    """A leaf and its counterpart in the base model.

    Attributes:
      path: of the leaf.
      shape: its own.
      base_path: of the base model's leaf.
      base_shape: its shape.
      layers: the number of layers of its kind, and that of the base model; None for a leaf whose
        path has no number.
    """

    path: str
    shape: Shape
    base_path: str
    base_shape: Shape
    layers: tuple[int, int] | None


def pairs(shapes: Mapping[str, Shape], base_shapes: Mapping[str, Shape]) -> list[Pair]:
    """Finds the counterpart of every leaf; a layer that the base model lacks uses another layer's.

    Args:
      shapes: of the model, by path.
      base_shapes: of the base model, by path.

    Raises:
      ValueError: a leaf has none, or one of another rank; layers differ where they must be alike.
    """
    numbered = _numbered({**base_shapes, **shapes})
    kinds, base_kinds = _by_numbers(shapes, numbered), _by_numbers(base_shapes, numbered)
    found = []
    for path, shape in shapes.items():
        kind = without_numbers(numbered[path])
        ours, theirs = kinds[kind], base_kinds.get(kind, {})
        base_path = _counterpart(_numbers(numbered[path]), theirs)
        base_shape = base_shapes.get(base_path or "", ())
        if base_path is None or len(base_shape) != len(shape):
            there = "nothing" if base_path is None else f"the shape {base_shape}"
            raise ValueError(
                f"base must be a smaller model of the same kind, got {there} at {path!r}, which is"
                f" {shape} in params; base has {list(base_shapes)}."
            )
        layers = None
        if kind != numbered[path]:
            layers = _layers(list(ours), list(theirs), lambda n, of=theirs: base_shapes[of[n]])
            if layers is None:
                raise ValueError(
                    f"base must have as many layers as params, or layers of one shape, got"
                    f" {[base_shapes[x] for x in theirs.values()]} for the {len(ours)} leaves like"
                    f" {path!r}."
                )
        found.append(Pair(path, shape, base_path, base_shape, layers))
    return found


_NUMBER = re.compile(r"\d+(?=/|$)")
Numbers = tuple[str, ...]


def _numbers(path: str) -> Numbers:
    return tuple(_NUMBER.findall(path))


def _numbered(paths: Iterable[str]) -> dict[str, str]:
    """Adds a number to the first of Haiku's modules: `block`, `block_1`, `block_2`."""
    known = {prefix for path in paths for prefix in _prefixes(path)}
    first = {q[:-2] for q in known if q.endswith("_1")} & known
    first = {q for q in first if f"{q}_0" not in known}

    def numbered(path: str) -> str:
        parts = zip(path.split("/"), _prefixes(path), strict=True)
        return "/".join(part + "_0" * (prefix in first) for part, prefix in parts)

    return {path: numbered(path) for path in paths}


def _prefixes(path: str) -> list[str]:
    """`a`, `a/b` and `a/b/c` of `a/b/c`."""
    return list(itertools.accumulate(path.split("/"), "{}/{}".format))


def _by_numbers(paths: Iterable[str], numbered: Mapping[str, str]) -> dict[str, dict[Numbers, str]]:
    """The paths of each kind of leaf, by the numbers in them."""
    found: dict[str, dict[Numbers, str]] = {}
    for path in paths:
        kind = without_numbers(numbered[path])
        found.setdefault(kind, {})[_numbers(numbered[path])] = path
    return found


def _counterpart(numbers: Numbers, theirs: Mapping[Numbers, str]) -> str | None:
    """The same path; base's first number replaces each number that base lacks."""
    if numbers in theirs or not theirs:
        return theirs.get(numbers)
    there = [list(dict.fromkeys(column)) for column in zip(*theirs, strict=True)]
    nearest = (n if n in its else its[0] for n, its in zip(numbers, there, strict=True))
    return theirs.get(tuple(nearest))


def _layers(
    ours: Sequence[Numbers], theirs: Sequence[Numbers], shape: Callable[[Numbers], Shape]
) -> tuple[int, int] | None:
    """The number of layers, and base's; None if it changes and base's layers differ in shape."""
    columns = list(zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True))
    grows = [set(own) != set(base) for own, base in columns]
    if not any(grows):
        return len(ours), len(theirs)
    alike: dict[Numbers, set[Shape]] = {}
    for numbers in theirs:
        kept = tuple(n for n, more in zip(numbers, grows, strict=True) if not more)
        alike.setdefault(kept, set()).add(shape(numbers))
    if any(len(its) > 1 for its in alike.values()):
        return None
    growing = [column for column, more in zip(columns, grows, strict=True) if more]
    own, base = (math.prod(len(set(column[side])) for column in growing) for side in (0, 1))
    return own, base


def growth_by_axis(shape: Shape, base_shape: Shape) -> list[float]:
    """The growth of each axis; a length of 0 counts as 1."""
    return [max(n, 1) / max(m, 1) for n, m in zip(shape, base_shape, strict=True)]


def is_balanced(axes: Sequence[float]) -> bool:
    """Whether the growing axes form two parts of equal growth, as the sides of a layer do."""
    logs = [math.log(x) for x in axes if x != 1]
    if not logs:
        return True
    first, *others = logs
    sides = itertools.product((1, -1), repeat=len(others))
    sums = (first + sum(map(operator.mul, its, others)) for its in sides)
    return any(abs(x) < 1e-9 for x in sums)


def check_layers(found: Sequence[Pair], layers: str | None) -> None:
    """Checks that `layers` matches every leaf with a growing first axis of layers.

    Such an axis is recognized if all leaves of a subtree share it, in both models, and one of them
    grows unlike any kernel with inputs and outputs: [8, 64, 64] for [2, 16, 16]. Square kernels
    with their biases, and kernels of attention, have no such axis.

    Raises:
      ValueError: it does not match one.
    """
    if layers is None:
        for prefix, leaves in _subtrees(found):
            if _grows_like_layers(leaves):
                _refuse(leaves[0].path if len(leaves) == 1 else prefix, leaves[0])
        return
    named = {x.path for x in found if re.fullmatch(layers, x.path)}
    for _, leaves in _subtrees(found):
        missed = [x for x in leaves if x.path not in named]
        if 0 < len(missed) < len(leaves) and _first_axis(leaves[0]):
            raise ValueError(
                f"layers must match every leaf with an axis of layers, got {layers!r}, which does"
                f" not match {missed[0].path!r} with the shape {missed[0].shape}."
            )


def _subtrees(found: Sequence[Pair]) -> list[tuple[str, list[Pair]]]:
    """The subtrees whose leaves share a first axis, and single leaves, by their paths."""
    below: dict[str, list[Pair]] = {}
    for x in found:
        for prefix in ["", *_prefixes(x.path)]:
            below.setdefault(prefix, []).append(x)
    shared = [
        (prefix, leaves)
        for prefix, leaves in below.items()
        if len({(*x.shape[:1], *x.base_shape[:1]) for x in leaves}) == 1
    ]
    return sorted(shared, key=lambda item: item[0].count("/") + bool(item[0]))


def _first_axis(x: Pair) -> tuple[int, int] | None:
    """The first axis of a leaf in both models; None if it does not grow."""
    if not x.shape or x.shape[0] == x.base_shape[0]:
        return None
    return x.shape[0], x.base_shape[0]


def _grows_like_layers(leaves: Sequence[Pair]) -> bool:
    if not _first_axis(leaves[0]):
        return False
    axes = [_without_ones(x) for x in leaves]
    ranks = [len(its) for its in axes]
    if max(ranks) < 3:
        return False
    kernels = [its for its in axes if len(its) > 2 and sum(x != 1 for x in its) > 2]
    if any(not is_balanced(its) for its in kernels):
        return True
    if len(leaves) == 1 or min(ranks) < 2:
        return False
    if all(its.count(1) == len(its) - 1 for its in axes):
        return True
    # [8, 32, 32] for [2, 16, 16] is a kernel of attention, unless [8, 32] is beside it.
    vectors = [its for its in axes if len(its) == 2 and its[1] != 1]
    first_balances = all(math.isclose(its[0] ** 2, math.prod(its)) for its in kernels)
    return first_balances and not all(map(is_balanced, vectors))


def _without_ones(x: Pair) -> list[float]:
    """The growth of the axes, without trailing axes of length 1, as in biases of convolutions."""
    rank = max((k + 1 for k, n in enumerate(x.shape) if n != 1), default=0)
    return growth_by_axis(x.shape[:rank], x.base_shape[:rank])


def _refuse(prefix: str, leaf: Pair) -> None:
    own, base = leaf.shape[0], leaf.base_shape[0]
    where, expression = f"{prefix!r} has", re.escape(prefix)
    if prefix != leaf.path:
        where = f"every leaf below {prefix!r} has" if prefix else "every leaf has"
        expression = f"{expression}/.*" if prefix else ".*"
    raise ValueError(
        f"layers must say which leaves have a first axis of layers, got None: {where} {own} there"
        f" and {base} in base. Write layers={expression!r}, or layers='' if there are none."
    )
