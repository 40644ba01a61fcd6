"""The progress output of `make setup` for a fake pip."""

import subprocess
import sys

from tests.catalogue.pages import ROOT
from tests.tools.install import states

LINES = """\
Obtaining file:///somewhere
Collecting jax>=0.10.2 (from adam_jax==0.1.0)
  Downloading jax-0.12.0-py3-none-any.whl.metadata (13 kB)
Collecting jaxlib<=0.12.0,>=0.12.0 (from jax)
  Downloading jaxlib-0.12.0-cp311-manylinux.whl (85.0 MB)
Progress 0 of 85000000
Progress 42500000 of 85000000
Progress 500 of 900
Requirement already satisfied: numpy in .venv/lib
Installing collected packages: jaxlib, numpy, jax
Successfully installed jax-0.12.0 jaxlib-0.12.0
"""


def test_the_states_of_an_installation():
    assert list(states(LINES.splitlines(keepends=True))) == [
        "package 1: jax",
        "package 2: jaxlib",
        "package 2: jaxlib, 0 of 85 MB",
        "package 2: jaxlib, 42 of 85 MB",
        "unpacking 3 packages",
    ]


def test_an_installation_that_fails_says_what_pip_said():
    command = [sys.executable, "-m", "tests.tools.install", "--no-index", "a-package-that-is-not"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip failed after " in done.stdout
    assert "No matching distribution found for a-package-that-is-not" in done.stderr
