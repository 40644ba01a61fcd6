"""Another program on TPUs: selected at lowering, by platform and devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import adam_jax
from adam_jax.kernels.tpus import Kernels, on_tpus
from tests.catalogue import temporaries


def squared(x, n):
    return {"y": x * x + n}


def kernel(*args):
    x, n = args
    return [x * x * x + n]


chosen = functools.partial(on_tpus, squared, Kernels(kernel))
X, N = jnp.arange(4.0), jnp.float32(1)


def multiplications(f, platform, *args):
    text = jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text()
    return text.count("stablehlo.multiply")


def test_where_xla_would_partition_the_kernel_there_is_none():
    mesh = jax.sharding.AbstractMesh((2, 2), ("x", "y"))
    parts = PartitionSpec("x")

    def mapped(axes):
        return jax.shard_map(
            lambda x: chosen(x, N)["y"], mesh=mesh, in_specs=parts, out_specs=parts, axis_names=axes
        )

    assert multiplications(mapped({"x", "y"}), "tpu", X) == 2
    with jax.sharding.use_abstract_mesh(mesh):
        assert multiplications(mapped({"x"}), "tpu", X) == 1


def test_derivatives_and_vmap_are_those_of_the_function():
    def total(x, n):
        return jnp.sum(chosen(x, n)["y"])

    np.testing.assert_array_equal(jax.jit(jax.grad(total))(X, N), 2 * X)
    xs = jnp.stack([X, X + 1])
    np.testing.assert_array_equal(jax.vmap(chosen, (0, None))(xs, N)["y"], xs * xs + N)
    np.testing.assert_array_equal(jax.vmap(jax.grad(total), (0, None))(xs, N), 2 * xs)
    np.testing.assert_array_equal(jax.jit(jax.hessian(total))(X, N), 2 * jnp.eye(4))


@pytest.mark.usefixtures("tpu_compiler")
def test_xla_passes_moments_through_memory():
    tx = adam_jax.adamw(1e-3, mu_dtype=jnp.int8, nu_dtype=jnp.int8)
    params = jax.ShapeDtypeStruct((8192, 8192), jnp.float32)
    assert temporaries.on_v5e(tx, params)[0] < 16.5
    by_xla = adam_jax.with_kernel(tx, "xla")
    assert temporaries.on_v5e(by_xla, params)[0] > 20, "adam_jax/xla/tpu.py can go"
