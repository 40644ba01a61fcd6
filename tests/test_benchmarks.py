"""The benchmarks run; what they measure is not tested."""

import subprocess
import sys
from pathlib import Path


def test_the_step_benchmark_runs():
    command = [sys.executable, "-m", "benchmarks.step", "--fast"]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| trace + lower |" in done.stdout and "ratio" in done.stdout
