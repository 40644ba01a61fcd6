"""Second moments as means of rows and columns, against a naive Adafactor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import adam_jax
from adam_jax.formats.dense import Dense, format_of
from adam_jax.formats.factored import RowAndColumnMeans, RowsAndColumns
from adam_jax.slots import Slot
from tests.catalogue.second_moments import gradients, magnitudes

# Each shape with its two factored axes, the largest ones.
SHAPES = {(6, 4): (-2, -1), (4, 6): (-2, -1), (3, 5, 4): (-2, -1), (7, 2, 5): (-3, -1)}
SHAPES |= {(5, 6, 2, 3): (-4, -3), (4, 4, 4): (-2, -1), (5, 4, 5): (-3, -1)}
every_shape = pytest.mark.parametrize("shape", SHAPES)
SMALL = adam_jax.Factored(min_dim_size=2, min_size=1)
FLOAT32 = np.dtype(np.float32)


def form(shape):
    return RowsAndColumns(*SHAPES[shape], FLOAT32)


def naive(x, axes):
    """The outer product of the means, divided by the mean of all, for each matrix."""
    row, column = axes
    matrices = np.moveaxis(np.asarray(x, np.float64), axes, (-2, -1))
    result = np.zeros_like(matrices)
    for index in np.ndindex(matrices.shape[:-2]):
        matrix = matrices[index]
        if matrix.any():
            outer = np.outer(matrix.mean(axis=1), matrix.mean(axis=0))
            result[index] = outer / matrix.mean()
    return np.moveaxis(result, (-2, -1), (row, column))


@every_shape
def test_against_the_outer_product(shape):
    fmt, x = form(shape), magnitudes(shape)
    assert SMALL.resolve(x, Slot("nu", magnitude=True), "") == fmt
    stored = jax.jit(fmt.encode)(x)
    assert fmt.shape(stored) == shape
    assert stored.rows.dtype == stored.columns.dtype == jnp.float32
    decoded = fmt.decode(stored, jnp.float32)
    np.testing.assert_allclose(decoded, naive(x, SHAPES[shape]), rtol=1e-5)
    # An outer product is stored without loss.
    again = jax.jit(fmt.encode)(decoded)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), again, stored)
    np.testing.assert_allclose(fmt.decode(again, jnp.float32), decoded, rtol=1e-5)


matrices = arrays(np.float32, (5, 7), elements=st.floats(0, 2.0**20, width=32))
encode = jax.jit(RowsAndColumns(-2, -1, FLOAT32).encode)
decode = jax.jit(lambda stored: stored.format.decode(stored, jnp.float32))


@settings(deadline=None, max_examples=50)
@given(x=matrices, power=st.integers(-40, 20))
def test_laws(x, power):
    x = np.where(x < 1e-6, np.float32(0), x)
    decoded = np.asarray(decode(encode(x)))
    assert np.all(decoded >= 0)
    np.testing.assert_array_equal(decoded == 0, naive(x, (-2, -1)) == 0)
    np.testing.assert_allclose(decoded.mean(), x.mean(), rtol=1e-5)
    scaled = decode(encode(x * np.float32(2.0**power)))
    np.testing.assert_array_equal(scaled, decoded * np.float32(2.0**power))
    flipped = decode(encode(x[::-1, ::-1]))
    np.testing.assert_allclose(flipped, decoded[::-1, ::-1], rtol=1e-5)


def factors_after(grads, b2, policy=SMALL):
    tx = adam_jax.scale_by_adam(b2=b2, nu_dtype=policy)
    state = tx.init(jnp.asarray(grads[0]))
    for g in grads:
        _, state = jax.jit(tx.update)(g, state)
    return state.nu


@every_shape
@pytest.mark.parametrize("b2", [0.999, 0.3])
def test_the_means_are_adafactor_s(shape, b2):
    """Algorithm 4 without ε₁, at a constant rate: each mean is averaged separately."""
    row, column = SHAPES[shape]
    grads, rows, columns = gradients(shape, 12), 0.0, 0.0
    for g in grads.astype(np.float64):
        rows = b2 * rows + (1 - b2) * (g * g).mean(axis=column)
        columns = b2 * columns + (1 - b2) * (g * g).mean(axis=row)
    stored = factors_after(grads, b2)
    np.testing.assert_allclose(stored.rows, rows, rtol=1e-5)
    np.testing.assert_allclose(stored.columns, columns, rtol=1e-5)


def test_a_step_is_of_the_gradient_before_it_is_factored():
    """Adafactor uses the product of the new means; here the step uses b2·v + (1-b2)·g²."""
    b1, b2, eps, grads = 0.9, 0.99, 1e-8, gradients((6, 4), 12).astype(np.float64)
    tx = adam_jax.scale_by_adam(b1, b2, eps, nu_dtype=SMALL)
    state, m, v = tx.init(jnp.zeros((6, 4))), 0.0, np.zeros((6, 4))
    for t, g in enumerate(grads, start=1):
        update, state = jax.jit(tx.update)(jnp.asarray(g, jnp.float32), state)
        m = b1 * m + (1 - b1) * g
        new = b2 * v + (1 - b2) * g * g
        expected = m / (1 - b1**t) / (np.sqrt(new / (1 - b2**t)) + eps)
        np.testing.assert_allclose(update, expected, rtol=2e-5)
        v = naive(new, (-2, -1))


def test_zeros_small_numbers_and_what_is_not_finite():
    x = magnitudes((4, 5))
    x[1], x[:, 2] = 0.0, 0.0
    decoded = np.asarray(decode(encode(x)))
    np.testing.assert_array_equal(decoded == 0, naive(x, (-2, -1)) == 0)
    np.testing.assert_array_equal(decode(encode(np.zeros((4, 5), np.float32))), np.zeros((4, 5)))
    tiny = np.maximum(magnitudes((4, 5)), 1e-3) * np.float32(1e-30)
    np.testing.assert_allclose(decode(encode(tiny)), naive(tiny, (-2, -1)), rtol=1e-5)
    x[3, 3] = np.nan
    assert np.all(np.isnan(decode(encode(x))))
    x[3, 3] = np.inf
    seen = decode(encode(x))
    assert np.all(np.isfinite(seen)) and seen[3, 3] > 1e36
    tx, zeros = adam_jax.adamw(1e-2, nu_dtype=SMALL), jnp.zeros((4, 5))
    updates, _ = jax.jit(tx.update)(zeros, tx.init(zeros), zeros)
    np.testing.assert_array_equal(updates, zeros)


def test_which_leaves_are_factored(x64):
    params = {
        "kernel": jnp.ones((128, 300), jnp.bfloat16),
        "convolution": jnp.ones((3, 3, 128, 256), jnp.float32),
        "double": jnp.ones((200, 128), jnp.float64),
        "complex": jnp.ones((128, 128), jnp.complex64),
        "narrow": jnp.ones((127, 5000), jnp.float32),
        "bias": jnp.ones(5000, jnp.bfloat16),
        "number": jnp.ones((), jnp.float32),
    }
    nu = adam_jax.scale_by_adam(nu_dtype=adam_jax.Factored()).init(params).nu
    forms = {name: format_of(x) for name, x in nu.items()}
    float64 = np.dtype(np.float64)
    assert forms == dict.fromkeys(params, Dense(FLOAT32)) | {
        "kernel": RowsAndColumns(-2, -1, FLOAT32),
        "convolution": RowsAndColumns(-2, -1, FLOAT32),
        "double": RowsAndColumns(-2, -1, float64),
        "complex": RowsAndColumns(-2, -1, FLOAT32),
    }
    assert nu["convolution"].rows.shape == (3, 3, 128)
    assert nu["convolution"].columns.shape == (3, 3, 256)
    assert nu["double"].rows.dtype == nu["double"].columns.dtype == float64
    many = adam_jax.scale_by_adam(nu_dtype=adam_jax.Factored(min_size=10**6)).init(params).nu
    assert not any(isinstance(x, RowAndColumnMeans) for x in many.values())
