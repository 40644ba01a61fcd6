"""Leaves of more than 2³¹ and 2³² elements: lowered only, because they exceed test memory."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from adam_jax.formats.noise import mixed, random_bits

ABOVE_31, ABOVE_32 = (2**16, 2**15 + 128), (2**16, 2**16 + 128)
every_size = pytest.mark.parametrize("shape", [ABOVE_31, ABOVE_32], ids=["2^31", "2^32"])
FORMS = {
    "float32": {},
    "stochastic bfloat16": {"nu_dtype": adam_jax.stochastic(jnp.bfloat16)},
    "int8": {"mu_dtype": jnp.int8, "nu_dtype": adam_jax.stochastic(jnp.int8)},
    "int4": {"mu_dtype": jnp.int4, "nu_dtype": jnp.int4},
    "factored": {"nu_dtype": adam_jax.Factored()},
    "block means": {"nu_dtype": adam_jax.BlockMeans(None)},
}
WEIGHTS = {
    "plain": lambda tx: tx,
    "stochastic rounding": adam_jax.stochastic_rounding,
    "residual": adam_jax.master_residual,
}


def lowered(tx, shape, dtype, platform):
    params = {"w": jax.ShapeDtypeStruct(shape, dtype)}
    state = jax.eval_shape(tx.init, params)
    step = jax.jit(lambda g, s, p: adam_jax.step(tx, g, s, p))
    return step.trace(params, state, params).lower(lowering_platforms=(platform,)).as_text()


@every_size
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("form", FORMS)
def test_a_step_is_lowered(form, platform, shape):
    text = lowered(adam_jax.adamw(1e-3, **FORMS[form]), shape, jnp.float32, platform)
    assert f"tensor<{shape[0]}x{shape[1]}x" in text


@every_size
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_step_of_bfloat16_weights_is_lowered(weights, shape):
    tx = WEIGHTS[weights](adam_jax.chain(adam_jax.clip_by_global_norm(1.0), adam_jax.lamb(1e-3)))
    assert f"tensor<{shape[0]}x{shape[1]}xbf16>" in lowered(tx, shape, jnp.bfloat16, "cpu")


@pytest.mark.bits
@every_size
def test_each_element_has_the_hash_of_its_own_index(shape):
    """XLA computes only the last elements: the array is never stored."""
    last = jax.jit(lambda salt: random_bits(shape, salt)[-2:, -3:]).lower(np.uint32(7)).compile()
    assert last.memory_analysis().temp_size_in_bytes < 1e6
    rows, columns = shape
    index = [[i * columns + j for j in range(columns - 3, columns)] for i in (rows - 2, rows - 1)]
    assert index[-1][-1] == math.prod(shape) - 1
    wrapped = (np.array(index, np.uint64) % 2**32).astype(np.uint32)
    np.testing.assert_array_equal(last(np.uint32(7)), mixed(wrapped ^ np.uint32(7)))


@every_size
def test_planned_bytes_do_not_overflow(shape):
    params = {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}
    planned = adam_jax.inspect.bytes_per_parameter(params, adam_jax.adamw(1e-3))
    assert planned.state == 8 * math.prod(shape) + 4
