"""Registers containers with `flax.serialization`, so that it can write every state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax._types import Leaf, Named, PyTree, State
from adam_jax.formats.base import READ_AS_SAVED
from adam_jax.formats.block_means import Means
from adam_jax.formats.blockwise import Blocks
from adam_jax.formats.factored import RowAndColumnMeans
from adam_jax.formats.rounding import Rounded

CONTAINERS = (Blocks, RowAndColumnMeans, Means, Rounded)


def register_with_flax() -> None:
    """Lets `flax.serialization` write moments that are stored in containers of this package.

    The containers hold 8-bit and 4-bit, stochastically rounded and factored moments, and block
    means.

    Call it once per program, before `flax.serialization.to_bytes`, `from_bytes` and functions built
    on them (`flax.training.checkpoints`). Orbax does not need it. Restore a state into one that
    `tx.init` made. A moment that is stored differently there, including codes of another dtype,
    power or block, raises an error that names its path.
    """
    from flax import serialization

    def to_state_dict(x: Leaf) -> Named:
        parts = _parts(x).items()
        return {name: serialization.to_state_dict(_written(part)) for name, part in parts}

    def from_state_dict(x: Leaf, state: State) -> Leaf:
        parts = _parts(x)
        found = sorted(state) if isinstance(state, dict) else [_described(state)]
        check(serialization.current_path(), sorted(parts), found)
        new = [read(name, part, state[name]) for name, part in parts.items()]
        return jax.tree.structure(x, is_leaf=lambda y: y is not x).unflatten(new)

    def read(name: str, like: PyTree, state: State) -> State:
        new = serialization.from_state_dict(_written(like), state, name)
        if _written(like) is not like:
            new = jnp.asarray(new, jnp.int4)
        check(f"{serialization.current_path()}/{name}", _described(like), _described(new))
        return new

    def check(path: str, expected: Any, found: Any) -> None:
        if found != expected:
            raise ValueError(
                f"at {path!r}, the target of the restore has {expected}, the checkpoint {found}:"
                f" {READ_AS_SAVED}"
            )

    for kind in CONTAINERS:
        serialization.register_serialization_state(
            kind, to_state_dict, from_state_dict, override=True
        )


def _parts(x: Leaf) -> Named:
    """The direct parts of a container, by the names that Orbax uses too."""
    flat, _ = jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda y: y is not x)
    return {jax.tree_util.keystr(path, simple=True): part for path, part in flat}


def _described(x: Leaf) -> str:
    array = hasattr(x, "dtype")
    return f"{jnp.dtype(x.dtype).name} of shape {np.shape(x)}" if array else type(x).__name__


def _written(x: Leaf) -> Leaf:
    """4-bit codes as 8-bit codes: NumPy, and thus msgpack, has no name for int4."""
    return x.astype(jnp.int8) if getattr(x, "dtype", None) == jnp.int4 else x
