"""Named arrays of another library: whose parameters they are, in which layout, and mismatches."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax._types import Leaf, Named, Params, PyTree, State
from adam_jax.core.trees import leaf_paths
from adam_jax.formats.base import sharding_of

SHOWN = 12
"""The number of paths listed for each kind of mistake; the rest are counted."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The name of a parameter in another library, and the layout of its array there.

    Their array becomes ours by `theirs.reshape(split).transpose(axes).reshape(ours.shape)`.

    Attributes:
      name: of the parameter there: `layers.0.weight`.
      axes: their axes in our order, as in `numpy.transpose`; None for the same order.
      split: for each of their axes, the sizes it is split into before the transpose, and -1 for an
        axis that stays whole. `(-1, (C, H, W))` with the axes `(2, 3, 1, 0)` is a linear layer
        after the flattened output of a convolution, which is C, H, W in PyTorch and H, W, C in
        Flax; `((heads, size), -1)` with `(2, 0, 1)` is a projection of attention. None splits none.

    Raises:
      ValueError: `split` has more than one -1, which leaves sizes undetermined.
    """

    name: str
    axes: tuple[int, ...] | None = None
    split: tuple[int | tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        if self.split is not None and self.split.count(-1) > 1:
            raise ValueError(
                f"split must have at most one -1, got {self.split!r} for {self.name!r}: write the"
                f" sizes of the other axes."
            )

    def ours(self, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Their array in our layout, with this shape, a copy; a ValueError if it does not fit."""
        parts = self._parts(x)
        sizes = [
            [whole] if part == [-1] else part for whole, part in zip(x.shape, parts, strict=True)
        ]
        if tuple(map(math.prod, sizes)) != x.shape:
            raise ValueError
        x = np.reshape(x, [*itertools.chain(*sizes)])
        x = x if self.axes is None else np.transpose(x, self.axes)
        x = x if self.split is None else np.reshape(x, shape)
        if x.shape != shape:
            raise ValueError
        return np.array(x, order="C")

    def theirs(self, x: np.ndarray) -> np.ndarray:
        """Our array in their layout, a copy; a ValueError if the shapes do not fit."""
        parts = self._parts(x)
        sizes = [*itertools.chain(*parts)]
        axes = range(len(sizes)) if self.axes is None else self.axes
        x = x if self.split is None else np.reshape(x, [sizes[axis] for axis in axes])
        x = np.transpose(x, np.argsort(axes))
        rest = iter(x.shape)
        shape = [math.prod(next(rest) for _ in part) for part in parts]
        return np.array(np.reshape(x, shape), order="C")

    def _parts(self, x: np.ndarray) -> list[list[int]]:
        """The sizes that each of their axes is split into; [-1] for one that stays whole."""
        return [np.atleast_1d(part).tolist() for part in self.split or [-1] * x.ndim]


Names: TypeAlias = Mapping[str, str | Layout]
"""Maps the path of a leaf to its name there, or to a `Layout` if its array has another layout."""


def layer(
    ours: str,
    theirs: str,
    axes: tuple[int, ...] = (1, 0),
    split: tuple[int | tuple[int, ...], ...] | None = None,
    *,
    bias: bool = True,
) -> dict[str, Layout]:
    """The entries of one layer of Flax, of which `kernel` is PyTorch's `weight` in another layout.

    Args:
      ours: the path of the layer: "Dense_0"; "" for the whole model.
      theirs: that of PyTorch's: "classifier.0".
      axes: as in `Layout`: (1, 0) for a linear layer, (2, 3, 1, 0) for a convolution of images.
      split: as in `Layout`: (-1, (C, H, W)), with the axes (2, 3, 1, 0), for a linear layer whose
        input is the flattened output of a convolution.
      bias: whether the layer has one.

    Returns:
      A dictionary for `names=`; join several with `|`.
    """
    here, there = (f"{ours}/" if ours else ""), (f"{theirs}." if theirs else "")
    kernel = {f"{here}kernel": Layout(f"{there}weight", axes, split)}
    return kernel | {f"{here}bias": Layout(f"{there}bias")} if bias else kernel


def layouts(paths: Iterable[str], names: Names | None, separator: str = ".") -> dict[str, Layout]:
    """The layout of every leaf: that in `names`, or its path with another separator."""
    paths, names = list(paths), names or {}
    if unknown := sorted(set(names) - set(paths)):
        raise ValueError(
            f"names must have paths of the parameters as keys, got {listed(unknown)}: they are"
            f" {listed(paths)}."
        )
    found = {}
    for path in paths:
        layout = names.get(path, path.replace("/", separator))
        found[path] = layout if isinstance(layout, Layout) else Layout(layout)
    seen = [layout.name for layout in found.values()]
    if twice := sorted({name for name in seen if seen.count(name) > 1}):
        raise ValueError(
            f"names must name each parameter once, got {listed(twice)} twice: {SPLIT_FIRST}"
        )
    return found


SPLIT_FIRST = (
    "an entry that is several parameters here, as PyTorch's in_proj_weight is query, key and value,"
    " is split before it is converted: docs/migrating/pytorch.md shows how."
)


def listed(keys: Iterable[str]) -> str:
    """The first keys, and how many more there are."""
    keys = list(keys)
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(map(repr, keys[:SHOWN])) + more


def matched(
    argument: str,
    found: Mapping[str, Any],
    wanted: Mapping[Any, tuple[str, Layout, tuple[int, ...]]],
) -> dict[Any, np.ndarray]:
    """The wanted arrays in our layout, by their keys in `wanted`.

    `wanted` has the name of each array there, and the layout and our shape of its parameter. An
    error lists missing, extra and misshapen ones.
    """
    arrays, misshapen = {}, []
    names = {name for name, _, _ in wanted.values()}
    for key, (name, layout, shape) in wanted.items():
        if name not in found:
            continue
        x = as_numpy(found[name])
        try:
            arrays[key] = layout.ours(x, shape)
        except ValueError:
            misshapen.append(f"{name} {x.shape} for {shape}")
    complain(argument, names - found.keys(), found.keys() - names, misshapen)
    return arrays


def complain(
    argument: str,
    missing: Iterable[str],
    extra: Iterable[str],
    misshapen: Iterable[str] = (),
    instead: str = "Write names={path: name or Layout} for entries with another name or layout.",
) -> None:
    """Raises an error that lists the entries that do not fit, if there are any."""
    kinds = {"missing": missing, "extra": extra, "misshapen": misshapen}
    if wrong := [f"{kind}: {listed(sorted(keys))}" for kind, keys in kinds.items() if keys]:
        fused = any("in_proj_" in key for key in (*extra, *misshapen))
        raise ValueError(
            f"{argument} must have one entry of the right shape for each slot of each parameter:"
            f" {'; '.join(wrong)}. {instead[:-1]}{f'; {SPLIT_FIRST}' if fused else '.'}"
        )


def by_path(tree: PyTree, is_leaf: Callable[[Leaf], bool] | None = None) -> Named:
    """The leaves of parameters, or of a tree like them, by their paths."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_leaf)
    paths = leaf_paths(treedef.unflatten(range(len(leaves))), none_is_leaf=False)
    return dict(zip(paths, leaves, strict=True))


def as_numpy(x: Leaf) -> np.ndarray:
    """Converts an array of NumPy, JAX, Keras or PyTorch without importing the last three."""
    x = x.full_tensor() if hasattr(x, "full_tensor") else x  # PyTorch's DTensor.
    if hasattr(x, "detach"):
        x = x.detach().cpu()  # It may have a gradient, or be on a GPU.
        x = x.float() if str(x.dtype) == "torch.bfloat16" else x  # NumPy has no such dtype.
    return np.asarray(x)


def as_theirs(layout: Layout, path: str, x: Leaf) -> np.ndarray:
    """Our array in their layout, at least float32; an error names its path."""
    x = np.asarray(x)
    try:
        return layout.theirs(x if x.itemsize > 2 else x.astype(np.float32))
    except ValueError:
        raise ValueError(
            f"names must fit the parameters, got {layout} for {path!r}, which has shape {x.shape}."
        ) from None


def placed_like(x: Leaf, like: PyTree) -> jax.Array:
    """An array on the devices of another, if that has a known sharding."""
    sharding = sharding_of(like)
    return jnp.asarray(x) if sharding is None else jax.device_put(x, sharding)


def params_from_named(
    arrays: Mapping[str, Any], params: Params, *, names: Names | None = None, separator: str = "."
) -> State:
    """A tree of parameters from named arrays of another library.

    Args:
      arrays: `dict(model.named_parameters())` of PyTorch, `{v.path: v for v in
        model.trainable_variables}` of Keras (with `separator="/"`), or the same from a file; any
        values that NumPy, JAX or PyTorch can make arrays of.
      params: the wanted tree, with its shapes and dtypes.
      names: as in `from_torch`.
      separator: between the keys of a path, for leaves that are not in `names`.

    Returns:
      A tree like `params`.

    Raises:
      ValueError: arrays are missing, extra or misshapen; the message lists them.
    """
    leaves = by_path(params)
    layout = layouts(leaves, names, separator)
    wanted = {path: (layout[path].name, layout[path], np.shape(p)) for path, p in leaves.items()}
    values = matched("arrays", arrays, wanted)
    new = [placed_like(jnp.asarray(values[path], p.dtype), p) for path, p in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(params), new)


def params_to_named(
    params: Params, *, names: Names | None = None, separator: str = "."
) -> dict[str, np.ndarray]:
    """The inverse of `params_from_named`: NumPy arrays by the other library's names.

    For PyTorch: `model.load_state_dict({k: torch.as_tensor(x) for k, x in named.items()})`. 16-bit
    parameters become float32, since NumPy has no bfloat16; PyTorch rounds them back.
    """
    leaves = by_path(params)
    layout = layouts(leaves, names, separator)
    return {layout[path].name: as_theirs(layout[path], path, x) for path, x in leaves.items()}
