"""Runs the examples' commands, in separate processes and in this one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.reliability.faults import write_digits
from examples.mnist import data
from examples.mnist.__main__ import main
from tests.catalogue.compilation import IN_A_HURRY

ROOT = Path(__file__).parents[2]


def environment():
    """Settings that make compilation fast; these runs mostly compile."""
    return os.environ | IN_A_HURRY


def command(*arguments):
    return [sys.executable, "-W", "error", "-m", "examples.mnist", *map(str, arguments)]


def run(*arguments, status=0):
    done = subprocess.run(
        command(*arguments), cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def params_of(out):
    """The bytes of a finished run's parameters, in the checkpoint's order."""
    import jax

    from examples.mnist.runs import Run
    from examples.mnist.train import trained as load_trained

    finished = Run.open(out)
    _, params = load_trained(finished)
    assert finished.epochs_saved == finished.config.epochs
    finished.close()
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)]


def small_data(folder, train=512, test=64):
    """The four MNIST files with few digits."""
    write_digits(folder, train, test)
    return folder


def in_this_process(*arguments):
    """Runs a command in this process; returns its exit status."""
    with (
        pytest.MonkeyPatch.context() as patch,
        jax.numpy_dtype_promotion("standard"),  # Orbax needs it.
    ):
        patch.setattr(sys, "argv", ["examples.mnist", *map(str, arguments)])
        return main()


DIGIT = data.load().test_images[0]


def strict(text):
    """Parses JSON strictly, per RFC 8259, as JavaScript and jq do."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)
