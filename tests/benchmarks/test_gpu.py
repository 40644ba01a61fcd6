"""An optimizer step on an H200 compiles to one kernel per leaf; needs the compiler, not the GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def run(*arguments):
    # A separate process, because a registered plugin cannot be removed.
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    root = Path(__file__).parents[2]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def test_without_the_compiler_it_says_what_to_install(tmp_path):
    done = run("--pjrt", str(tmp_path))
    assert done.returncode == 2 and done.stdout == ""
    assert "--target FOLDER jax-cuda12-pjrt==" in done.stderr.splitlines()[-1]


@pytest.mark.usefixtures("h200_compiler")
def test_adamw_is_one_kernel_per_leaf(tmp_path):
    done = run("--leaves", "4", "--json", str(tmp_path / "table.json"))
    assert done.returncode == 0, done.stderr
    cases = json.loads((tmp_path / "table.json").read_text())
    assert len(cases) >= 2
    for name in ("adam_jax.adamw, one leaf", "adam_jax.adamw"):
        row = cases[name]
        assert row["per leaf, small apart"] == 1, (name, row)
        assert row["small"] <= 3, (name, row)  # Scalars shared by all leaves, such as 1 − b1ᵗ.
        assert row["temporary B/p"] < 0.01, (name, row)
        assert row["accessed B/p"] < 1.001 * row["floor B/p"], (name, row)
        assert f"| {name} |" in done.stdout
    for name, row in cases.items():
        if name.startswith("Adam-mini"):  # The step needs the mean first, so it reads g twice.
            assert row["temporary B/p"] < 0.1, (name, row)
            assert row["accessed B/p"] < row["floor B/p"] + (10 if "8-bit" in name else 4.7)
    low = {n: r for n, r in cases.items() if "moments" in n or "weights" in n}
    assert len(low) >= 12
    for name, row in low.items():
        # Blockwise moments need two kernels and copies of the two arrays of scales.
        blocks = any(word in name for word in ("8-bit", "4-bit"))
        # Where one moment is factored, these are the row and column means of g².
        assert row["per leaf, small apart"] <= (4.1 if blocks else 1), (name, row)
        assert row["temporary B/p"] <= 0.1, (name, row)
        assert row["lookups"] == 0, (name, row)
        assert blocks or row["accessed B/p"] < 1.001 * row["floor B/p"], (name, row)
        # XLA:GPU removes round trips through a narrower dtype: the bit operations that split
        # weights must still be there.
        assert row["splits"] >= ("weights" in name), (name, row)
