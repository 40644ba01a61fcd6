"""Runs benchmarks as separate processes."""

import os
import subprocess
import sys
from pathlib import Path

from examples.shared import strict_json
from tests.catalogue.compilation import IN_A_HURRY

ROOT = Path(__file__).parents[2]


def python(*arguments):
    # Measured times are not used, so compilation may be fast and code slow.
    environment = os.environ | IN_A_HURRY
    command, root = [sys.executable, *arguments], ROOT
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(name, *arguments):
    return python("-m", f"benchmarks.{name}", *arguments)


def tables(name, tmp_path, *arguments):
    """The output of a benchmark, and the tables in it."""
    environment = os.environ | IN_A_HURRY
    file = tmp_path / "results.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--fast", "--json", str(file)]
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, list(strict_json.loads(file.read_text())["tables"].values())
