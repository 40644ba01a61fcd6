"""The fourth root, and the instructions that it takes in a kernel."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from adam_jax.xla.roots import fourth_root, without_tests
from benchmarks.tpu_hlo_bundles import of_kernels

COMPILED = """
import jax.numpy as jnp
from adam_jax.formats import codecs
from benchmarks import tpu_hlo_bundles
{first}
tpu_hlo_bundles.main()
"""
SQUARE_ROOTS = "codecs.fourth_root = lambda y: jnp.sqrt(jnp.sqrt(y))"


@pytest.mark.parametrize("f", [fourth_root, without_tests])
def test_it_is_the_fourth_root(f):
    y = np.concatenate([[0, 1.2e-38, 1], np.random.default_rng(0).random(1000) ** 8])
    y = y.astype(np.float32)
    expected = y.astype(np.float64) ** 0.25
    np.testing.assert_allclose(jax.jit(f)(y), expected, rtol=4 * 2.0**-24, atol=0)


def cycles(folder, first):
    """Of the kernel of 8-bit moments on v5e, compiled behind this code."""
    folder.mkdir()
    dump = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    case = ["v5e", "8-bit moments", "512,512"]
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
def test_square_roots_in_a_kernel_test_for_zero(tmp_path):
    ours = cycles(tmp_path / "ours", "")
    theirs = cycles(tmp_path / "theirs", SQUARE_ROOTS)
    assert theirs > 1.02 * ours, "adam_jax/xla/roots.py can go"
