"""A step on an H200 is one kernel per leaf, found without a GPU where the compiler is installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_hlo


def run(*arguments):
    # A process of its own: a registered plugin stays for good.
    command = [sys.executable, "-m", "benchmarks.gpu_hlo", *arguments]
    root = Path(__file__).parent.parent
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def test_without_the_compiler_it_says_what_to_install(tmp_path):
    done = run("--pjrt", str(tmp_path))
    assert done.returncode == 2 and done.stdout == ""
    assert "--target FOLDER jax-cuda12-pjrt==" in done.stderr.splitlines()[-1]


def test_adamw_is_one_kernel_per_leaf(tmp_path):
    try:
        gpu_hlo.plugin()
    except ModuleNotFoundError as missing:
        pytest.skip(str(missing))
    done = run("--only", "adam_jax", "--json", str(tmp_path / "table.json"))
    assert done.returncode == 0, done.stderr
    cases = json.loads((tmp_path / "table.json").read_text())
    assert len(cases) >= 2
    for name in ("adam_jax.adamw, one leaf", "adam_jax.adamw"):
        row = cases[name]
        assert row["per leaf, small apart"] == 1, (name, row)
        assert row["small"] <= 3, (name, row)  # Scalars that all leaves share, as 1 − b1ᵗ.
        assert row["temporary B/p"] < 0.01, (name, row)
        assert row["accessed B/p"] < 1.001 * row["floor B/p"], (name, row)
        assert f"| {name} |" in done.stdout
