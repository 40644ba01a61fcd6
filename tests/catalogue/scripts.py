"""Runs programs and benchmarks as separate processes."""

import os
import subprocess
import sys
from pathlib import Path

from examples.shared import strict_json
from tests.catalogue.compilation import IN_A_HURRY


def python(*arguments, environment=IN_A_HURRY):
    """The output. Measured times are not used, so compilation may be fast and code slow."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=Path(__file__).parents[2],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(name, *arguments):
    return python("-m", f"benchmarks.{name}", *arguments)


def tables(name, tmp_path, *arguments):
    """The output of a benchmark, and the tables in it."""
    file = tmp_path / "results.json"
    printed = run(name, "--fast", "--json", str(file), *arguments)
    return printed, list(strict_json.loads(file.read_text())["tables"].values())
