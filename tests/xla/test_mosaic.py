"""Quotients and roots as a TPU's kernel computes them, and the instructions that they take."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from adam_jax.xla import mosaic
from benchmarks.tpu.bundles import of_kernels
from tests.catalogue.scripts import process
from tests.catalogue.training import trained

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


X = np.concatenate([[0, 1.2e-38, 1], np.random.default_rng(0).random(1000) ** 8])
X = X.astype(np.float32)
LARGE, BOTH = X * np.float32(1e30), np.concatenate([X, -X])
ABOVE_0 = np.roll(X, 1) + np.float32(1e-37)
ANGLES = np.append(BOTH, [0, 1e-30, 3]), np.append(np.abs(np.roll(BOTH, 1)), [0, 1e3, 0])
# The function, its version in a kernel, its arguments, in double precision, and the error.
FUNCTIONS = [
    ("fourth_root", "fourth_root", [X], lambda x: x**0.25, 4 * 2.0**-24),
    ("square_root", "root", [LARGE], np.sqrt, 3 * 2.0**-24),
    (
        *("signed_square_root", "signed_root", [BOTH, np.float32(127)]),
        *(lambda x, times: np.sign(x) * times * np.sqrt(np.abs(x)), 4 * 2.0**-24),
    ),
    ("quotient", "divided", [X, ABOVE_0], np.divide, 3 * 2.0**-24),
    ("arctan2", "arctan2", np.float32(ANGLES), np.arctan2, 3e-7),
]


@pytest.mark.parametrize("in_kernel", [False, True])
@pytest.mark.parametrize(("name", "of_kernel", "args", "f", "error"), FUNCTIONS)
def test_it_is_as_in_double_precision(name, of_kernel, args, f, error, in_kernel):
    ours = jax.jit(getattr(mosaic, f"_{of_kernel}_on_mosaic" if in_kernel else name))
    expected = f(*(np.float64(x) for x in args))
    np.testing.assert_allclose(ours(*args), expected, rtol=error, atol=0)
    for unusual in itertools.product([1, np.nan], repeat=len(args)):
        assert np.isnan(ours(*map(np.float32, unusual))) == np.isnan(f(*unusual))


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

    def after(tx):
        start = jnp.ones(size.shape)
        params, state = trained(tx, start, lambda _, t: grads[t].at[0, :128].set(0), len(grads))
        return params, state[0].mu, state[0].nu

    params, *moments = after(adam_jax.with_kernel(tx, "xla"))
    jax.clear_caches()
    monkeypatch.setattr(
        mosaic, "in_kernel_or_not", lambda usual, on_mosaic, *args: on_mosaic(*args)
    )
    found, *of_kernel = after(adam_jax.with_kernel(tx, "pallas"))
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
    environment = {"LIBTPU_INIT_ARGS": dump, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    case = [generation, "8-bit moments", "512,512"]
    process("-c", COMPILED.format(first=first), *case, in_a_hurry=False, **environment)
    [kernel] = of_kernels(folder)
    return kernel.total


@pytest.mark.usefixtures("tpu_compiler")
@pytest.mark.parametrize("generation", WITHOUT_IT)
def test_a_kernel_tests_for_unusual_numbers(generation, tmp_path):
    ours = cycles(tmp_path / "ours", generation)
    for name, plain in WITHOUT_IT[generation].items():
        theirs = cycles(tmp_path / name, generation, f"mosaic._{name}_on_mosaic = {plain}")
        assert theirs > 1.02 * ours, f"_{name}_on_mosaic of adam_jax/xla/mosaic.py can go"
