"""Parts of one buffer are read by loops that XLA:CPU compiles once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adam_jax.xla.offsets import offsets

SIZES = [200] * 128


def parts(buffer, starts):
    return [
        2 * jax.lax.dynamic_slice(buffer, (start,), (size,), allow_negative_indices=False)
        for size, start in zip(SIZES, starts, strict=True)
    ]


def constants(sizes, buffer):
    del buffer
    return list(np.cumsum([0, *sizes[:-1]], dtype=np.int32))


def bytes_of_program(f):
    buffer = jax.ShapeDtypeStruct((sum(SIZES),), jnp.float32)
    compiled = jax.jit(lambda x: parts(x, f(SIZES, x))).lower(buffer).compile()
    return len(compiled.runtime_executable().serialize())


@pytest.mark.parametrize("first", [0.0, np.inf, np.nan])
def test_they_are_where_the_parts_begin(first):
    buffer = jnp.arange(sum(SIZES), dtype=jnp.float32).at[0].set(first)
    for f in (lambda x: offsets(SIZES, x), jax.jit(lambda x: offsets(SIZES, x))):
        np.testing.assert_array_equal(f(buffer), constants(SIZES, buffer))


@pytest.mark.bits
def test_xla_compiles_a_loop_for_each_constant():
    assert bytes_of_program(offsets) < 0.8 * bytes_of_program(constants), (
        "adam_jax/xla/offsets.py can go"
    )
