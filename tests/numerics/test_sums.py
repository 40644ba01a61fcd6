"""Sums over the layers of a leaf have the bits of the sums of separate layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adam_jax.numerics import LAYERS, summed


def in_layers(f):
    return jax.vmap(f, axis_name=LAYERS)


@pytest.fixture
def x():
    draw = np.random.default_rng(0)
    return jnp.asarray(draw.standard_normal((12, 33, 17)), jnp.float32)


@pytest.mark.parametrize("axis", [None, -1, -2])
def test_each_layer_has_the_bits_of_its_own(x, axis):
    def f(x):
        return summed(x * x, axis)

    alone = np.stack([jax.jit(f)(layer) for layer in x])
    np.testing.assert_array_equal(jax.jit(in_layers(f))(x), alone)
    np.testing.assert_allclose(alone, np.sum(np.asarray(x, np.float64) ** 2, axis or (1, 2)), 1e-6)


def test_without_it_the_bits_differ(x):
    def f(x):
        return jnp.sum(x * x)

    alone = np.stack([jax.jit(f)(layer) for layer in x])
    assert np.any(np.asarray(jax.jit(jax.vmap(f))(x)) != alone)


def test_vmap_and_derivatives_around_layers(x):
    def loss(x):
        return jnp.sum(in_layers(lambda x: jnp.sqrt(summed(x * x)))(x))

    expected = np.asarray(x) / np.sqrt(np.sum(np.asarray(x) ** 2, (1, 2), keepdims=True))
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(x), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(jax.grad(loss))(jnp.stack([x, x]))[1], expected, rtol=1e-5)


def test_no_layers_at_all():
    assert in_layers(summed)(jnp.ones((0, 3))).shape == (0,)


def test_on_accelerators_it_is_one_reduction(x):
    text = jax.jit(in_layers(summed)).trace(x).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("stablehlo.reduce") == 1
