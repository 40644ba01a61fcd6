"""Training in two processes of two devices each: the same model, and what happens if one dies."""

import json
import os
import re
import signal
import subprocess

import numpy as np
import pytest

from examples.mnist import distributed
from tests.examples import test_mnist_command as single
from tests.examples.test_mnist_command import ROOT, command, params_of, small_data

EPOCHS = 2
TWO = "--xla_force_host_platform_device_count=2"  # Gloo connects each pair: 12 s, not 20.


def environment():
    return single.environment() | {"XLA_FLAGS": TWO}


def run(*arguments):
    done = subprocess.run(
        command(*arguments), cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    data_dir = small_data(tmp_path_factory.mktemp("digits"))
    return ["--model", "mlp", "--epochs", EPOCHS, "--batch-size", 32, "--data-dir", data_dir]


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory):
    """A run in two processes that nothing happens to, and what it printed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, run("train", *options, "--out", out, "--processes", 2).stdout


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_one_of_them_speaks_and_it_learns_what_one_process_learns(whole, options, tmp_path):
    out, said = whole
    *epochs, summary = said.splitlines()
    assert len(epochs) == EPOCHS and json.loads(summary)["run"] == str(out)
    run("train", *options, "--out", tmp_path / "one")
    for ours, theirs in zip(metrics(out), metrics(tmp_path / "one"), strict=True):
        for name in ("train_loss", "test_loss"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5)


def worker(out):
    """The process id of the second process that trains."""
    found = subprocess.run(
        ["pgrep", "-f", f"{out} .*--process-id 1"], capture_output=True, text=True
    )
    return int(found.stdout.split()[0])


@pytest.mark.usefixtures("standard_promotion")
def test_when_one_dies_all_stop_and_resumed_they_end_with_the_same_bits(whole, options, tmp_path):
    out = tmp_path / "run"
    train = command("train", *options, "--out", out, "--processes", 2)
    with subprocess.Popen(
        train, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not next(out.glob("checkpoints/1"), None):
            pass
        os.kill(worker(out), signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    [line] = [line for line in said.splitlines() if line.startswith("error: process")]
    assert re.search(r"process 1 ended \(signal 9\).*--resume", line)
    assert len(metrics(out)) <= EPOCHS
    run("train", *options, "--out", out, "--processes", 2, "--resume")
    assert params_of(out) == params_of(whole[0])
    assert [e["test_loss"] for e in metrics(out)] == [e["test_loss"] for e in metrics(whole[0])]


def test_a_batch_is_split_evenly():
    devices = distributed.Devices.of_all_processes()
    devices.check(32)
    with pytest.raises(distributed.ProcessError, match="of the 8 devices, got 30; write .* 32"):
        devices.check(30)
