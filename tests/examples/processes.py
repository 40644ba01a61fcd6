"""Runs the examples' commands, in separate processes and in this one."""

import io
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from examples.mnist import data
from examples.mnist.__main__ import main
from examples.mnist.runs import Run
from examples.mnist.train import build
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


def in_this_process(*arguments):
    """Runs a command in this process; returns its exit status."""
    with jax.numpy_dtype_promotion("standard"):
        try:
            main([*map(str, arguments)])
        except SystemExit as ended:
            return ended.code
    return 0


def result(out):
    """The bits of a finished run's state, and its metrics without the times."""
    run = Run(out)
    epochs, state = run.restore(build(run.config, steps=1)[1])
    assert epochs == run.config.epochs
    metrics = [{k: v for k, v in entry.items() if k != "seconds"} for entry in run.metrics(epochs)]
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)], metrics


def small_data(folder, train=512, test=64):
    """The four MNIST files with few digits."""
    digits = data.load()
    for part, images, labels in (
        ("train", digits.train_images[:train], digits.train_labels[:train]),
        ("t10k", digits.test_images[:test], digits.test_labels[:test]),
    ):
        header = struct.pack(">4I", 2051, len(images), 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">2I", 2049, len(labels))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return folder


def png(pixels):
    packed = io.BytesIO()
    Image.fromarray(pixels).save(packed, "PNG")
    return packed.getvalue()


def strict(text):
    """Parses JSON strictly, per RFC 8259, as JavaScript and jq do."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)
