"""Batches, augmentation against float64 NumPy, and models: sizes, layers written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from flax import nnx

from examples.mnist import data, models, preprocessing
from examples.shared.command_line import UserError

# Batches.


@pytest.mark.parametrize(("count", "size"), [(10, 3), (10, 5), (7, 7), (5, 1)])
def test_an_epoch_is_a_shuffle_without_its_last_incomplete_batch(count, size):
    order = data.batches(jax.random.key(0), count, size)
    assert order.shape == (count // size, size) and order.dtype == jnp.int32
    indices = np.asarray(order).ravel().tolist()
    assert len(set(indices)) == len(indices) and set(indices) <= set(range(count))


def test_epochs_differ_by_key_only():
    first, again, other = (data.batches(jax.random.key(k), 100, 10) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(np.asarray(first).ravel(), np.arange(100))


@pytest.mark.parametrize("size", [0, -1, 11])
def test_a_batch_that_cannot_be_filled_is_one_line(size):
    with pytest.raises(UserError, match=f"^batch_size is {size}; expected 1 to 10, [^\\n]*$"):
        data.batches(jax.random.key(0), 10, size)


# Images.


def test_normalise_maps_bytes_to_the_unit_interval():
    images = np.arange(256, dtype=np.uint8).repeat(784).reshape(256, 28, 28)
    for normalise in (preprocessing.normalise, jax.jit(preprocessing.normalise)):
        result = normalise(images)
        assert result.shape == (256, 28, 28, 1) and result.dtype == jnp.float32
        np.testing.assert_allclose(result[:, 3, 4, 0], np.arange(256) / 255, rtol=1e-6)
        assert result.min() == 0 and result.max() == 1


def sample(count: int) -> jax.Array:
    return preprocessing.normalise(data.load().test_images[:count])


def moved(image: np.ndarray, shift: tuple[float, float], angle: float) -> np.ndarray:
    """`shift_and_rotate` in float64, by SciPy."""
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    offset = 13.5 - turn @ (13.5 + np.array(shift))
    image = image.astype(np.float64)
    return scipy.ndimage.affine_transform(image, turn, offset, order=1, mode="grid-constant")


@pytest.mark.parametrize(
    ("shift", "angle"),
    [((0.0, 0.0), 0.0), ((2.0, -1.0), 0.0), ((-0.3, 1.9), -0.11), ((2.0, 2.0), 0.17)],
)
def test_shift_and_rotate_is_one_bilinear_interpolation(shift, angle):
    image = sample(1)[0, ..., 0]
    result = preprocessing.shift_and_rotate(image, jnp.array(shift), jnp.array(angle))
    np.testing.assert_allclose(result, moved(np.asarray(image), shift, angle), atol=2e-5)


def test_augment_differs_by_key_only_and_by_image():
    same = jnp.broadcast_to(sample(1), (16, 28, 28, 1))
    first, again, other = (preprocessing.augment(jax.random.key(k), same) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (np.abs(first - other).max((1, 2, 3)) > 0.01).all()
    distinct = {np.asarray(image).tobytes() for image in first}
    assert len(distinct) == 16


def test_augment_draws_over_the_whole_range_and_not_beyond(monkeypatch):
    def record(image, shift, angle):
        return image.at[0, :3].set(jnp.array([*shift, angle]))

    monkeypatch.setattr(preprocessing, "shift_and_rotate", record)
    draws = preprocessing.augment(jax.random.key(0), jnp.zeros((1000, 28, 28, 1)))[:, 0, :3, 0]
    limits = np.array([2, 2, np.pi / 18])
    assert (np.abs(draws) <= limits * (1 + 1e-6)).all()
    assert (draws.max(0) > 0.98 * limits).all() and (draws.min(0) < -0.98 * limits).all()
    np.testing.assert_allclose(np.corrcoef(draws.T), np.eye(3), atol=0.15)


# Models.


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
