"""What `flax.serialization` must be told of to write every state of this package."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from adam_jax.formats.blockwise import Blocks
from adam_jax.formats.factored import Factors
from adam_jax.formats.rounding import Rounded
from adam_jax.recipe.pack import Packed

# The fields that are arrays, or trees of them; the others are the program's, not the run's.
ARRAYS: dict[Any, tuple[str, ...]] = {
    Blocks: ("codes", "scale"),
    Factors: ("rows", "columns"),
    Rounded: ("values",),
    Packed: ("small", "large"),
}


def register_with_flax() -> None:
    """Lets `flax.serialization` write moments of 8 and 4 bits, rounded, factored and packed ones.

    Once in a program, before `flax.serialization.to_bytes`, `from_bytes` and what is built on them
    (`flax.training.checkpoints`). Orbax needs nothing of the kind. A state is restored into one
    that `tx.init` made, which says how it is stored.
    """
    from flax import serialization

    def register(kind: Any, fields: tuple[str, ...]) -> None:
        def to_state_dict(x: Any) -> dict[str, Any]:
            return {
                name: serialization.to_state_dict(_written(getattr(x, name))) for name in fields
            }

        def from_state_dict(x: Any, state: dict[str, Any]) -> Any:
            read = {
                name: _read(
                    getattr(x, name),
                    serialization.from_state_dict(_written(getattr(x, name)), state[name]),
                )
                for name in fields
            }
            return dataclasses.replace(x, **read)

        serialization.register_serialization_state(
            kind, to_state_dict, from_state_dict, override=True
        )

    for kind, fields in ARRAYS.items():
        register(kind, fields)


def _is_int4(x: Any) -> bool:
    return getattr(x, "dtype", None) == jnp.int4


def _written(x: Any) -> Any:
    """Codes of 4 bits as those of 8: NumPy, and so msgpack, has no name for the others."""
    return x.astype(jnp.int8) if _is_int4(x) else x


def _read(like: Any, x: Any) -> Any:
    return jnp.asarray(x, jnp.int4) if _is_int4(like) else x
