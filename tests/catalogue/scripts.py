"""Runs Python programs as separate processes."""

import os
import subprocess
import sys
from pathlib import Path

from examples.shared import strict_json
from tests.catalogue.compilation import IN_A_HURRY

ROOT = Path(__file__).parents[2]
# Measured times and bits are not used, so compilation may be fast and code slow.
ENVIRONMENT = os.environ | IN_A_HURRY


def process(*arguments, status=0, in_a_hurry=True, **settings):
    """A Python process that ended with this status; settings are environment variables."""
    line = [sys.executable, *map(str, arguments)]
    environment = (ENVIRONMENT if in_a_hurry else os.environ) | settings
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def run(name, *arguments):
    return process("-m", f"benchmarks.{name}", *arguments).stdout


def tables(name, tmp_path, *arguments):
    """The output of a benchmark, and the tables in it."""
    file = tmp_path / "results.json"
    printed = run(name, "--fast", "--json", file, *arguments)
    return printed, list(strict_json.loads(file.read_text())["tables"].values())
