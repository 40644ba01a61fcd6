"""The benchmarks run; what they measure is not tested."""

import subprocess
import sys
from pathlib import Path


def run(name):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--fast"]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_step_benchmark_runs():
    printed = run("step")
    assert "| trace + lower |" in printed and "ratio" in printed


def test_all_learning_rates_are_one_compilation():
    printed = run("population")
    assert "compilations for 4 learning rates: 1\n" in printed
    assert "4 MLPs, 10 steps" in printed
