"""The example's models: parameter counts, and each handwritten layer against the library's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.mnist import models


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("softmax", 7_850), ("mlp", 101_770), ("small-cnn", 9_098), ("cnn", 467_818)],
)
def test_models_have_the_stated_size_and_ten_classes(name, parameters):
    model = nnx.eval_shape(lambda: models.MODELS[name](nnx.Rngs(0)))
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model))) == parameters
    assert f"{parameters:,}" in models.__doc__
    digits = jax.ShapeDtypeStruct((3, 28, 28, 1), jnp.float32)
    assert nnx.eval_shape(lambda model, x: model(x), model, digits).shape == (3, 10)


def test_the_seed_decides_the_start():
    first, same, other = (nnx.state(models.MLP(nnx.Rngs(seed))) for seed in (0, 0, 1))
    leaves = jax.tree.leaves
    assert all((a == b).all() for a, b in zip(leaves(first), leaves(same), strict=True))
    assert any((a != b).any() for a, b in zip(leaves(first), leaves(other), strict=True))


def test_the_matrix_product_is_the_convolution():
    keys = jax.random.split(jax.random.key(0))
    x, kernel = jax.random.normal(keys[0], (2, 6, 5, 3)), jax.random.normal(keys[1], (3, 3, 3, 4))
    ours, theirs = (
        jax.value_and_grad(lambda k, f=f: jnp.sum(jnp.sin(f(x, k))))(kernel)
        for f in (models.convolve_by_matmul, models.convolve_by_library)
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-4, atol=1e-4)


def test_max_pool_is_the_window_maximum():
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
    np.testing.assert_array_equal(models.max_pool(x), nnx.max_pool(x, (2, 2), (2, 2)))
