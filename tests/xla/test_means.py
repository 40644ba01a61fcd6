"""Means of computed arrays: values, NaNs, and that XLA alone would store the array."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from adam_jax.xla.means import mean
from tests.catalogue.temporaries import for_cpu, for_h200, of_step, on_v5e

# On 8 devices, axes of 3 and 40 are not summed in groups.
AXES = [((128, 3), (-2,)), ((3, 128), (-1,)), ((40, 3), (-2,)), ((256, 2, 3), (-3, -1))]
every_shape = pytest.mark.parametrize(("shape", "axes"), [*AXES, ((2, 384), (-2, -1))])


@every_shape
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_as_in_double_precision(shape, axes, dtype, x64):
    x = np.random.default_rng(0).exponential(size=shape).astype(dtype)
    found = jax.jit(mean, static_argnums=1)(x, axes)
    assert found.dtype == dtype and found.shape == np.mean(x, axes, keepdims=True).shape
    exact = np.mean(x.astype(np.float64), axes, keepdims=True)
    np.testing.assert_allclose(found, exact, rtol=8 * np.finfo(dtype).eps)


@every_shape
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_is_not_finite_is_seen_in_its_mean_alone(shape, axes, number):
    x = np.ones(shape, np.float32)
    x[(0,) * len(shape)] = number
    np.testing.assert_array_equal(mean(jnp.asarray(x), axes), np.mean(x, axes, keepdims=True))


@every_shape
def test_derivatives_and_vmap(shape, axes):
    x = np.random.default_rng(0).exponential(size=(2, *shape)).astype(np.float32)
    weights = np.random.default_rng(1).normal(size=np.mean(x[0], axes, keepdims=True).shape)
    weights = weights.astype(np.float32)

    def weighted(x):
        return jnp.sum(mean(x, axes) * weights)

    found = jax.jit(jax.vmap(jax.grad(weighted)))(x)
    count = x[0].size / weights.size
    np.testing.assert_allclose(found, np.broadcast_to(weights / count, x.shape), rtol=1e-6)


def temporaries(mean):
    def clipped(m, g):
        bounded = jnp.clip(g, -1, 1)
        return 0.9 * m + 0.1 * bounded, mean(bounded * bounded)

    x = jax.ShapeDtypeStruct((256, 1024), jnp.float32)
    return for_cpu(clipped, x, x, donate=0).memory_analysis().temp_size_in_bytes / x.size


@pytest.mark.bits
@pytest.mark.parametrize("axes", [(-1,), (-2,), (-2, -1)])
def test_xla_stores_what_a_mean_is_of(axes):
    assert temporaries(lambda x: mean(x, axes)) < 0.5
    stored = temporaries(lambda x: jnp.mean(x, axes, keepdims=True))
    assert stored > 3.5, "adam_jax/xla/means.py can perhaps go"


@pytest.mark.usefixtures("h200_compiler")
def test_xla_for_gpus_stores_what_a_mean_of_columns_is_of(monkeypatch):
    params = [jax.ShapeDtypeStruct((1024, 1024), jnp.float32)]
    tx = adam_jax.adamw(1e-3, nu_dtype=adam_jax.BlockMeans(0))
    assert of_step(tx, params, for_h200) < 0.5
    as_it_is = functools.partial(jnp.mean, keepdims=True)
    monkeypatch.setattr("adam_jax.formats.block_means.mean", as_it_is)
    stored = of_step(tx, params, for_h200)
    assert stored > 3.5, "XLA:GPU needs no groups in adam_jax/xla/means.py"


@pytest.mark.usefixtures("tpu_compiler")
@pytest.mark.parametrize("axes", [(-1,), (-2,)])
def test_xla_for_tpus_stores_nothing(axes):
    tx = adam_jax.adamw(1e-3, nu_dtype=adam_jax.BlockMeans(axes))
    passed, stored = on_v5e(tx, jax.ShapeDtypeStruct((8192, 8192), jnp.float32))
    assert passed < 24.1 and stored < 0.01
