"""`sign` has the values of jnp.sign, and lowers in a TPU kernel without a TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from adam_jax.numerics import sign


def lowered(f):
    def kernel(x, result):
        result[...] = f(x[...])

    x = jax.ShapeDtypeStruct((8, 128), jnp.float32)
    step = jax.jit(pl.pallas_call(kernel, out_shape=x))
    return step.trace(x).lower(lowering_platforms=("tpu",))


def test_a_kernel_with_the_sign_of_jax_needs_a_tpu():
    with pytest.raises(ValueError, match="device kind"):
        lowered(jnp.sign)
    lowered(sign)


def test_the_sign_is_that_of_jax():
    x = jnp.asarray([-jnp.inf, -2, -1e-45, -0.0, 0.0, 1e-45, 3, jnp.inf, jnp.nan], jnp.float32)
    ours, theirs = (np.asarray(f(x)).view(np.uint32) for f in (sign, jnp.sign))
    np.testing.assert_array_equal(ours[:-1], theirs[:-1])
    assert jnp.isnan(sign(x)[-1])
    z = jnp.asarray([3 + 4j, 0j])
    np.testing.assert_array_equal(sign(z), jnp.sign(z))
