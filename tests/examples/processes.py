"""Runs the examples' commands, in separate processes and in this one; reads and writes files."""

import contextlib
import csv
import functools
import io
import json
import re
import struct
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from examples.mnist.__main__ import main
from examples.mnist.runs import Run
from examples.mnist.train import build
from examples.shared import strict_json
from tests.catalogue.scripts import ROOT as ROOT
from tests.catalogue.scripts import process

MNIST = "-W", "error", "-m", "examples.mnist"
# Parses JSON per RFC 8259, as JavaScript and jq do.
strict = functools.partial(json.loads, parse_constant=pytest.fail)


def command(*arguments):
    return [sys.executable, *MNIST, *map(str, arguments)]


def run(*arguments, status=0):
    return process(*MNIST, *arguments, status=status)


def in_this_process(*arguments):
    """Runs a command in this process; returns its exit status."""
    with jax.numpy_dtype_promotion("standard"):
        try:
            main([*map(str, arguments)])
        except SystemExit as ended:
            return ended.code
    return 0


def refused(*arguments):
    """The one line with which a command exits."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert in_this_process(*arguments) == 1
    line = said.getvalue()
    assert re.fullmatch(r"error: .*\n", line), line
    return line


def result(out):
    """The bits of a finished run's state, and its metrics without the times."""
    run = Run(out)
    epochs, state = run.restore(build(run.config, steps=1)[1])
    assert epochs == run.config.epochs
    metrics = [{k: v for k, v in entry.items() if k != "seconds"} for entry in run.metrics(epochs)]
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)], metrics


def pieces(folder):
    """The results of a study by name, as a later command reads them."""
    lines = (folder / "pieces.jsonl").read_text().splitlines()
    return {line["name"]: line["result"] for line in map(strict_json.loads, lines)}


def table(path):
    """The rows of a CSV file."""
    with path.open() as file:
        return list(csv.DictReader(file))


def shows_something(picture, width=1000):
    """Whether a picture is wide enough, and neither blank nor filled."""
    with Image.open(picture) as image:
        grey = np.asarray(image.convert("L"))
    return grey.shape[1] > width and len(np.unique(grey)) > 20 and 0.01 < (grey < 230).mean() < 0.7


def idx(array):
    """The bytes of an IDX file."""
    header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    return header + array.tobytes()


def scan(digit):
    """A page with a digit: large, dark on light, off centre."""
    page = Image.new("L", (200, 160), "white")
    page.paste(Image.fromarray(255 - digit).resize((112, 112)), (60, 20))
    return page


def png(picture):
    packed = io.BytesIO()
    picture.save(packed, "PNG")
    return packed.getvalue()
