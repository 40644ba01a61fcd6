"""A step on an H200 is one kernel per leaf, found without a GPU where the compiler is installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def run(*arguments):
    # A process of its own: a registered plugin stays for good.
    command = [sys.executable, "-m", "benchmarks.gpu_hlo", *arguments]
    root = Path(__file__).parents[2]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def test_without_the_compiler_it_says_what_to_install(tmp_path):
    done = run("--pjrt", str(tmp_path))
    assert done.returncode == 2 and done.stdout == ""
    assert "--target FOLDER jax-cuda12-pjrt==" in done.stderr.splitlines()[-1]


@pytest.mark.usefixtures("h200_compiler")
def test_adamw_is_one_kernel_per_leaf(tmp_path):
    done = run("--json", str(tmp_path / "table.json"))
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
    for name, row in cases.items():
        if name.startswith("Adam-mini"):  # The mean is known before the step, which reads g again.
            assert row["temporary B/p"] < 0.1, (name, row)
            assert row["accessed B/p"] < row["floor B/p"] + (10 if "8-bit" in name else 4.7)
    low = {n: r for n, r in cases.items() if "moments" in n or "weights" in n}
    assert len(low) >= 12
    for name, row in low.items():
        # Blocks take two kernels and copies of their two arrays of scales.
        blocks = any(word in name for word in ("8-bit", "4-bit"))
        # With factors for one of them it is the means of g², by rows and by columns.
        assert row["per leaf, small apart"] <= (4.1 if blocks else 1), (name, row)
        assert row["temporary B/p"] <= 0.1, (name, row)
        assert row["lookups"] == 0, (name, row)
        assert blocks or row["accessed B/p"] < 1.001 * row["floor B/p"], (name, row)
        # XLA:GPU deletes roundings there and back: the bits that weights are split by are there.
        assert row["splits"] >= ("weights" in name), (name, row)
