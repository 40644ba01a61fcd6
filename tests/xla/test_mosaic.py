"""Quotients and roots as a TPU's kernel computes them, and the instructions that they take."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from adam_jax.xla import mosaic
from benchmarks.tpu.bundles import of_kernels

COMPILED = """
import jax.numpy as jnp
from adam_jax.xla import mosaic
from benchmarks.tpu import bundles
{first}
bundles.main()
"""
# On v6e Mosaic divides, and takes the root of a root, without tests.
WITHOUT_IT = {
    "v5e": {"divided": "lambda x, y: x / y", "fourth_root": "lambda y: jnp.sqrt(jnp.sqrt(y))"},
    "v6e": {"root": "jnp.sqrt", "signed_root": "mosaic._signed_root"},
}


@pytest.fixture
def numbers():
    found = np.concatenate([[0, 1.2e-38, 1], np.random.default_rng(0).random(1000) ** 8])
    return found.astype(np.float32)


def exact(x):
    return x.astype(np.float64)


@pytest.mark.parametrize("f", [mosaic.fourth_root, mosaic._fourth_root_on_mosaic])
def test_it_is_the_fourth_root(f, numbers):
    expected = exact(numbers) ** 0.25
    np.testing.assert_allclose(jax.jit(f)(numbers), expected, rtol=4 * 2.0**-24, atol=0)


@pytest.mark.parametrize("f", [mosaic.square_root, mosaic._root_on_mosaic])
def test_it_is_the_square_root(f, numbers):
    found = jax.jit(f)(numbers * 1e30)
    np.testing.assert_allclose(found, exact(numbers * np.float32(1e30)) ** 0.5, rtol=3 * 2.0**-24)
    assert np.isnan(f(jnp.float32(np.nan)))


@pytest.mark.parametrize("f", [mosaic.signed_square_root, mosaic._signed_root_on_mosaic])
@pytest.mark.parametrize("sign", [1, -1])
def test_it_is_the_square_root_with_the_sign(f, sign, numbers):
    found = jax.jit(f)(sign * numbers, np.float32(127))
    expected = sign * 127 * exact(numbers) ** 0.5
    np.testing.assert_allclose(found, expected, rtol=4 * 2.0**-24, atol=0)


@pytest.mark.parametrize("f", [mosaic.quotient, mosaic._divided_on_mosaic])
def test_it_is_the_quotient(f, numbers):
    x, y = numbers, np.roll(numbers, 1)[1:] + np.float32(1e-37)
    found = jax.jit(f)(x[1:], y)
    np.testing.assert_allclose(found, exact(x[1:]) / exact(y), rtol=3 * 2.0**-24)


@pytest.mark.parametrize("f", [mosaic.arctan2, mosaic._arctan2_on_mosaic])
@pytest.mark.parametrize("sign", [1, -1])
def test_it_is_the_angle(f, sign, numbers):
    y, x = sign * np.append(numbers, [0, 1e-30, 3]), np.append(np.roll(numbers, 1), [0, 1e3, 0])
    y, x = y.astype(np.float32), x.astype(np.float32)
    np.testing.assert_allclose(jax.jit(f)(y, x), np.arctan2(exact(y), exact(x)), rtol=3e-7)
    for unusual in ((np.nan, 1), (1, np.nan), (np.nan, np.nan)):
        assert np.isnan(jax.jit(f)(*map(jnp.float32, unusual)))


def test_only_tiles_have_a_program_for_kernels():
    def platforms(tiles):
        with mosaic.in_tiles(tiles):
            return "platform_index" in str(jax.make_jaxpr(lambda x: mosaic.quotient(x, x))(1.0))

    assert platforms(True) and not platforms(False)


def test_a_kernel_steps_as_xla_does(monkeypatch):
    """Interpreted, with the functions of a TPU's kernel; a block is zeros."""
    tx = adam_jax.adamw(1e-2, mu_dtype=jnp.int8, nu_dtype=jnp.int8)
    size = 10.0 ** jax.random.uniform(jax.random.key(0), (128, 1024), minval=-4.0, maxval=0.0)
    grads = [size * jax.random.normal(jax.random.key(i), size.shape) for i in range(1, 6)]

    def trained(tx):
        params = jnp.ones(size.shape)
        state, step = tx.init(params), jax.jit(lambda g, s, p: adam_jax.step(tx, g, s, p))
        for g in grads:
            params, state = step(g.at[0, :128].set(0), state, params)
        return params, state[0].mu, state[0].nu

    params, *moments = trained(adam_jax.with_kernel(tx, "xla"))
    jax.clear_caches()
    monkeypatch.setattr(
        mosaic, "in_kernel_or_not", lambda usual, on_mosaic, *args: on_mosaic(*args)
    )
    found, *of_kernel = trained(adam_jax.with_kernel(tx, "pallas"))
    jax.clear_caches()
    # A code at the edge of two may differ, and then the update.
    assert np.mean(np.abs(found - params) > 1e-6) < 1e-4
    for ours, theirs in zip(of_kernel, moments, strict=True):
        used = np.repeat(np.asarray(theirs.scale) > 0, 128, axis=1)
        assert np.mean((ours.codes != theirs.codes)[used]) < 1e-4
        np.testing.assert_allclose(ours.scale, theirs.scale, rtol=1e-5)
        assert np.all(ours.format.decode(ours, jnp.float32)[~used] == 0) and not np.all(used)


def cycles(folder, generation, first=""):
    """Of the kernel of 8-bit moments, compiled behind this code."""
    folder.mkdir()
    dump = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    case = [generation, "8-bit moments", "512,512"]
    subprocess.run(
        [sys.executable, "-c", COMPILED.format(first=first), *case],
        env=os.environ | {"LIBTPU_INIT_ARGS": dump, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=True,
    )
    [kernel] = of_kernels(folder)
    return kernel.total


@pytest.mark.usefixtures("tpu_compiler")
@pytest.mark.parametrize("generation", WITHOUT_IT)
def test_a_kernel_tests_for_unusual_numbers(generation, tmp_path):
    ours = cycles(tmp_path / "ours", generation)
    for name, plain in WITHOUT_IT[generation].items():
        theirs = cycles(tmp_path / name, generation, f"mosaic._{name}_on_mosaic = {plain}")
        assert theirs > 1.02 * ours, f"_{name}_on_mosaic of adam_jax/xla/mosaic.py can go"
