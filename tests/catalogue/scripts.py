"""Runs benchmarks as separate processes."""

import os
import subprocess
import sys
from pathlib import Path

from examples.shared import strict_json
from tests.catalogue.compilation import IN_A_HURRY


def python(*arguments):
    # Measured times are not used, so compilation may be fast and code slow.
    environment, root = os.environ | IN_A_HURRY, Path(__file__).parents[2]
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(name, *arguments):
    return python("-m", f"benchmarks.{name}", *arguments)


def tables(name, tmp_path, *arguments):
    """The output of a benchmark, and the tables in it."""
    file = tmp_path / "results.json"
    printed = run(name, "--fast", "--json", str(file), *arguments)
    return printed, list(strict_json.loads(file.read_text())["tables"].values())
