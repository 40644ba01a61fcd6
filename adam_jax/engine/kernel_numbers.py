"""The numbers of a kernel, passed as two vectors in scalar memory."""

from typing import Any

import jax
import jax.numpy as jnp


def packed(scalars: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The floating-point numbers and the others as two vectors, which are never empty."""
    floats, integers = [jnp.zeros([], jnp.float32)], [jnp.zeros([], jnp.int32)]
    for x in scalars:
        if x.dtype == jnp.float32:
            floats.append(x)
        elif x.dtype == jnp.uint32:
            integers.append(jax.lax.bitcast_convert_type(x, jnp.int32))
        else:
            integers.append(jax.lax.convert_element_type(x, jnp.int32))
    return jnp.stack(floats), jnp.stack(integers)


def unpacked(floats: Any, integers: Any, dtypes: list[Any]) -> list[jax.Array]:
    """The inverse of `packed`, on two references."""
    scalars, of_float, of_integer = [], 0, 0
    for dtype in dtypes:
        if dtype == jnp.float32:
            of_float += 1
            scalars.append(floats[of_float])
            continue
        of_integer += 1
        x = integers[of_integer]
        scalars.append(x != 0 if dtype == jnp.bool_ else jax.lax.convert_element_type(x, dtype))
    return scalars
