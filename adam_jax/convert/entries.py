"""Named arrays of other libraries: what is wanted, what is there, and what is wrong with it."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax._types import Leaf, Params, PyTree, State
from adam_jax.convert.names import SPLIT_FIRST, Layout, Names, layouts, listed
from adam_jax.engine.trees import leaf_paths
from adam_jax.formats.blockwise import sharding_of


class Wanted(NamedTuple):
    """One array that is looked for among another library's.

    Attributes:
      layout: its parameter's.
      shape: our parameter's.
    """

    layout: Layout
    shape: tuple[int, ...]


def matched(
    argument: str, found: Mapping[str, Any], wanted: Mapping[str, Wanted]
) -> dict[str, np.ndarray]:
    """The arrays that are wanted, as they lie here, under the same keys.

    Raises:
      ValueError: some are missing, others too many, or of a wrong shape; the message lists them.
    """
    arrays, misshapen = {}, []
    for key in wanted.keys() & found.keys():
        layout, shape = wanted[key]
        x = as_numpy(found[key])
        try:
            arrays[key] = layout.ours(x, shape)
        except ValueError:
            misshapen.append(f"{key} {x.shape} for {shape}")
    complain(argument, wanted.keys() - found.keys(), found.keys() - wanted.keys(), misshapen)
    return arrays


def matched_slots(
    argument: str,
    found: Mapping[str, Any],
    keys: Mapping[tuple[str, str], str],
    layout: Mapping[str, Layout],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[tuple[str, str], np.ndarray]:
    """`matched`, by the path of a parameter and its slot, of which `keys` has the name there."""
    wanted = {key: Wanted(layout[path], shapes[path]) for (path, _), key in keys.items()}
    arrays = matched(argument, found, wanted)
    return {pair: arrays[key] for pair, key in keys.items()}


def complain(
    argument: str, missing: Iterable[str], extra: Iterable[str], misshapen: Iterable[str] = ()
) -> None:
    """Raises the error about entries that do not fit, if there are any."""
    kinds = {"missing": missing, "extra": extra, "misshapen": misshapen}
    wrong = [f"{kind}: {listed(sorted(keys))}" for kind, keys in kinds.items() if keys]
    if wrong:
        fused = any("in_proj_" in key for key in (*extra, *misshapen))
        raise ValueError(
            f"{argument} must have one entry of the right shape for each slot of each parameter:"
            f" {'; '.join(wrong)}. Write names={{path: name or Layout}} for what is called, or"
            f" lies, otherwise{f'; {SPLIT_FIRST}' if fused else '.'}"
        )


def check_real(params: Params) -> None:
    """Raises an error where a parameter is complex: other libraries keep other squares then."""
    paths = leaf_paths(params, none_is_leaf=False)
    leaves = zip(paths, jax.tree.leaves(params), strict=True)
    if complex_ones := [path for path, p in leaves if np.iscomplexobj(p)]:
        raise ValueError(
            f"params must be real to be converted, got complex {listed(complex_ones)}: elsewhere"
            f" the squares of real and imaginary parts are kept apart, here they are one."
        )


def as_numpy(x: Leaf) -> np.ndarray:
    """An array of NumPy, JAX, Keras or PyTorch, without importing any of the last three."""
    for detached in ("detach", "cpu"):  # A tensor that has a gradient, or lies on a GPU.
        x = getattr(x, detached)() if hasattr(x, detached) else x
    if str(getattr(x, "dtype", "")) == "torch.bfloat16":  # For which NumPy has no dtype.
        x = x.float()
    return np.asarray(x)


def whole_steps(argument: str, steps: np.ndarray) -> int:
    """Steps taken; of more than int32 has the largest, where the counts of this package stop.

    Raises:
      ValueError: it is no whole number above 0.
    """
    valid = steps.ndim == 0 and steps.dtype.kind in "iuf" and np.isfinite(steps)
    if not valid or steps < 1 or steps != np.floor(steps):
        raise ValueError(
            f"{argument} must be a whole number of steps taken, 1 or more, got {steps}: pass the"
            f" state of an optimizer that has taken a step."
        )
    return min(int(steps), np.iinfo(np.int32).max)


def placed_like(x: Leaf, like: PyTree) -> jax.Array:
    """An array on the devices of another, if those are settled."""
    sharding = sharding_of(like)
    return jnp.asarray(x) if sharding is None else jax.device_put(x, sharding)


def params_from_named(
    arrays: Mapping[str, Any], params: Params, *, names: Names | None = None, separator: str = "."
) -> State:
    """A tree of parameters from named arrays of another library.

    Args:
      arrays: `dict(model.named_parameters())` of PyTorch, `{v.path: v for v in
        model.trainable_variables}` of Keras (with `separator="/"`), or the same from a file: what
        NumPy, JAX or PyTorch can make an array of.
      params: the tree that is wanted, with its shapes and dtypes.
      names: see `from_torch`.
      separator: between the keys of a path, for leaves that `names` does not name.

    Returns:
      A tree like `params`.

    Raises:
      ValueError: an array is missing, too many or misshapen; the message lists them.
    """
    leaves, treedef = jax.tree.flatten(params)
    paths = leaf_paths(params, none_is_leaf=False)
    layout = layouts(paths, names, separator)
    pairs = zip(paths, leaves, strict=True)
    wanted = {layout[path].name: Wanted(layout[path], np.shape(p)) for path, p in pairs}
    values = matched("arrays", arrays, wanted)
    new = [
        placed_like(jnp.asarray(values[layout[path].name], p.dtype), p)
        for path, p in zip(paths, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, new)


def params_to_named(
    params: Params, *, names: Names | None = None, separator: str = "."
) -> dict[str, np.ndarray]:
    """The opposite of `params_from_named`: NumPy arrays by the other library's names.

    For PyTorch: `model.load_state_dict({k: torch.as_tensor(x) for k, x in named.items()})`. What
    has 16 bits is float32 there, since NumPy has no bfloat16; PyTorch rounds it back.
    """
    paths = leaf_paths(params, none_is_leaf=False)
    layout = layouts(paths, names, separator)
    leaves = zip(paths, jax.tree.leaves(params), strict=True)
    return {layout[path].name: as_theirs(layout[path], path, x) for path, x in leaves}


def as_theirs(layout: Layout, path: str, x: Leaf) -> np.ndarray:
    """Our array as theirs: a copy, at least float32.

    Raises:
      ValueError: it does not fit the layout; the message has the path.
    """
    x = np.asarray(x)
    try:
        return layout.theirs(x if x.itemsize > 2 else x.astype(np.float32))
    except ValueError:
        raise ValueError(
            f"names must fit the parameters, got {layout} for {path!r}, which has shape {x.shape}."
        ) from None
