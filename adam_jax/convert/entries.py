"""Matches the named arrays of other libraries with the wanted ones and reports mismatches."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax._types import Leaf, Named, Params, PyTree, State
from adam_jax.convert.names import SPLIT_FIRST, Layout, Names, layouts, listed
from adam_jax.engine.trees import leaf_paths
from adam_jax.formats.blockwise import sharding_of

Wanted: TypeAlias = tuple[str, Layout, tuple[int, ...]]
"""The name of an array in another library, and the layout and our shape of its parameter."""


def matched(
    argument: str, found: Mapping[str, Any], wanted: Mapping[Any, Wanted]
) -> dict[Any, np.ndarray]:
    """The wanted arrays in our layout, under the keys of `wanted`.

    Raises:
      ValueError: arrays are missing, extra or misshapen; the message lists them.
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
    argument: str, missing: Iterable[str], extra: Iterable[str], misshapen: Iterable[str] = ()
) -> None:
    """Raises an error that lists the entries that do not fit, if there are any."""
    kinds = {"missing": missing, "extra": extra, "misshapen": misshapen}
    wrong = [f"{kind}: {listed(sorted(keys))}" for kind, keys in kinds.items() if keys]
    if wrong:
        fused = any("in_proj_" in key for key in (*extra, *misshapen))
        raise ValueError(
            f"{argument} must have one entry of the right shape for each slot of each parameter:"
            f" {'; '.join(wrong)}. Write names={{path: name or Layout}} for entries with another"
            f" name or layout{f'; {SPLIT_FIRST}' if fused else '.'}"
        )


def by_path(params: Params) -> Named:
    """The parameters by their paths."""
    return dict(zip(leaf_paths(params, none_is_leaf=False), jax.tree.leaves(params), strict=True))


def as_numpy(x: Leaf) -> np.ndarray:
    """Converts an array of NumPy, JAX, Keras or PyTorch without importing the last three."""
    for detached in ("detach", "cpu"):  # For tensors with a gradient or on a GPU.
        x = getattr(x, detached)() if hasattr(x, detached) else x
    if str(getattr(x, "dtype", "")) == "torch.bfloat16":  # NumPy has no such dtype.
        x = x.float()
    return np.asarray(x)


def whole_steps(argument: str, steps: Leaf) -> int:
    """Steps taken, at most the largest int32, where the counts of this package stop.

    Raises:
      ValueError: it is not a whole number above 0.
    """
    steps = as_numpy(steps)
    valid = steps.ndim == 0 and steps.dtype.kind in "iuf" and np.isfinite(steps)
    if not valid or steps < 1 or steps != np.floor(steps):
        raise ValueError(
            f"{argument} must be a whole number of steps taken, 1 or more, got {steps}: pass the"
            f" state of an optimizer that has taken a step."
        )
    return min(int(steps), np.iinfo(np.int32).max)


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


def as_theirs(layout: Layout, path: str, x: Leaf) -> np.ndarray:
    """Our array in their layout: a copy, at least float32.

    Raises:
      ValueError: it does not fit the layout; the message names its path.
    """
    x = np.asarray(x)
    try:
        return layout.theirs(x if x.itemsize > 2 else x.astype(np.float32))
    except ValueError:
        raise ValueError(
            f"names must fit the parameters, got {layout} for {path!r}, which has shape {x.shape}."
        ) from None
