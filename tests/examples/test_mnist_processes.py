"""Training in two processes, one of which dies: all stop, and a resumed run has the same result."""

import json
import random
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from benchmarks.reliability import faults
from examples.mnist import data, distributed
from examples.mnist.__main__ import parser
from examples.mnist.runs import Run
from examples.mnist.train import train
from examples.mnist.training import settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("standard_promotion")]
EPOCHS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder with few digits."""
    folder = tmp_path_factory.mktemp("digits")
    faults.write_digits(folder, 512, 64)
    return folder


@pytest.fixture(scope="module")
def options(folder):
    options = ["--model", "softmax", "--epochs", str(EPOCHS), "--batch-size", "32"]
    return [*options, "--data-dir", str(folder)]


@pytest.fixture(scope="module")
def interrupted(options, tmp_path_factory):
    """A run with one process killed after the first epoch, and its output."""
    out, both = tmp_path_factory.mktemp("interrupted") / "run", [*options, "--processes", "2"]
    with faults.begin(both, out) as process:
        next(faults.epochs_of(process))
        stderr = faults.kill(process, random.Random(0))
    left = faults.saved(out)
    with faults.begin(both, out) as process:
        stdout, said = process.communicate()
    assert process.returncode == 0, said
    return SimpleNamespace(out=out, stderr=stderr, left=left, stdout=stdout)


def trained_here(options, folder, out, devices):
    """The bits and the metrics of an uninterrupted run in this process."""
    arguments = parser("train").parse_args(["train", *options])
    Run.prepare(out, settings(arguments))
    train(Run.open(out), data.load(folder), devices)
    return faults.result(out)


def test_when_one_dies_all_stop_with_one_line(interrupted):
    # Either may be seen first: one process ended, or the other lost its connection.
    said = r"^error: (process [01] ended \(signal 9\)|a process lost the others).*--resume"
    assert re.search(said, interrupted.stderr, re.MULTILINE)
    assert interrupted.left < EPOCHS


def test_one_of_them_speaks(interrupted):
    header, *epochs, summary = interrupted.stdout.splitlines()
    assert header.startswith("training: ")
    numbers = [int(re.match(r"epoch (\d)/3 ", line)[1]) for line in epochs]
    assert numbers == list(range(interrupted.left + 1, EPOCHS + 1))
    assert json.loads(summary)["run"] == str(interrupted.out)


def test_resumed_they_end_with_the_bits_of_two_devices_of_one_process(
    interrupted, options, folder, tmp_path
):
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Auto,))
    whole = trained_here(options, folder, tmp_path / "two", distributed.Devices(mesh))
    assert faults.result(interrupted.out) == whole


def test_several_devices_learn_what_one_learns(interrupted, options, folder, tmp_path):
    _, one = trained_here(options, folder, tmp_path / "one", distributed.ONE)
    _, two = faults.result(interrupted.out)
    for ours, theirs in zip(two, one, strict=True):
        for name in ("train_loss", "test_loss"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5)


def test_a_batch_is_split_evenly():
    devices = distributed.Devices.of_all_processes()
    devices.check(32)
    with pytest.raises(distributed.ProcessError, match="of the 8 devices, got 30; write .* 32"):
        devices.check(30)
