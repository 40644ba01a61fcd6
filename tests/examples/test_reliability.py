"""Corrupted checkpoints, full disks, and the reliability study."""

import hashlib
import os
import random
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks.reliability import __main__ as reliability
from benchmarks.reliability import faults, steps
from examples.mnist import data
from examples.mnist.runs import Config, Run, RunError
from examples.mnist.train import train
from tests.examples import malformed as fuzz

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("standard_promotion")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with checkpoints of epochs 1 and 2 of 4; a state of their structure, and their bits."""
    folder = tmp_path_factory.mktemp("finished")
    faults.write_digits(folder, 512, 64)
    with jax.numpy_dtype_promotion("standard"):
        settings = {"epochs": 4, "batch_size": 32, "data_dir": str(folder)}
        like, bits = fuzz.two_checkpoints(folder / "run", **settings)
    return folder / "run", like, bits


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "run")


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(folder):
    """Flips a bit in the middle of the parameters, which Orbax restores without an error."""
    content = bytearray(largest(folder).read_bytes())
    content[len(content) // 2] ^= 4
    largest(folder).write_bytes(content)


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = {
    "a bit flipped": flip,
    "torn": lambda folder: os.truncate(largest(folder), 1000),
    "zeroed": lambda folder: largest(folder).write_bytes(bytes(largest(folder).stat().st_size)),
    "the data deleted": lambda folder: largest(folder).unlink(),
    "metadata cut": lambda folder: os.truncate(folder / "default" / "_METADATA", 100),
    "metadata not of JSON": lambda folder: (folder / "default" / "_METADATA").write_bytes(b"\xff{"),
    "the state deleted": lambda folder: shutil.rmtree(folder / "default"),
    "the checksums deleted": lambda folder: (folder / "b2sums").unlink(),
    "the checksums emptied": lambda folder: (folder / "b2sums").write_bytes(b""),
    "emptied": empty,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage, finished, copy, capsys):
    _, like, bits = finished
    damage(copy / "checkpoints" / "2")
    left = {p.relative_to(copy / "checkpoints" / "2") for p in (copy / "checkpoints/2").rglob("*")}
    run = Run.open(copy)
    assert run.epochs_saved == 1
    assert faults.leaves(run.restore(like)) == bits[0]
    assert [entry["epoch"] for entry in run.metrics()] == [1]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(copy / "checkpoints" / "2") in said and "that of epoch 1 instead" in said
    # Training continues and saves under the same number.
    again = jax.tree.map(lambda x: x + jnp.ones([], x.dtype), run.restore(like))
    run.save(2, again)
    run.close()
    run = Run.open(copy)
    assert run.epochs_saved == 2
    assert faults.leaves(run.restore(like)) == faults.leaves(again)
    run.close()
    aside = copy / "checkpoints" / "2.corrupt"
    assert {p.relative_to(aside) for p in aside.rglob("*")} == left
    assert capsys.readouterr().err == ""


def test_a_second_damage_of_the_same_epoch_is_set_aside_beside_the_first(finished, copy):
    for _ in range(2):
        flip(copy / "checkpoints" / "2")
        run = Run.open(copy)
        run.save(run.epochs_saved + 1, run.restore(finished[1]))
        run.close()
    names = {path.name for path in (copy / "checkpoints").glob("2*")}
    assert names == {"2", "2.corrupt", "2.corrupt-2"}


def test_no_readable_checkpoint_is_one_line(finished, copy, capsys):
    for epochs in (1, 2):
        flip(copy / "checkpoints" / str(epochs))
    run = Run.open(copy)
    for ask in (lambda: run.epochs_saved, run.metrics, lambda: run.restore(finished[1])):
        with pytest.raises(
            RunError, match=r"checkpoints/2, .*checkpoints/1 cannot be read"
        ) as error:
            ask()
        assert "\n" not in str(error.value) and "restore a copy" in str(error.value)
    run.close()
    assert capsys.readouterr().err == ""


def test_who_reads_a_run_that_is_trained_finds_its_last_checkpoint(finished, copy, capsys):
    _, like, _ = finished
    reads = Run.open(copy)
    trains = Run.open(copy)
    state = trains.restore(like)
    for epochs in (3, 4):  # Removes 1 and 2.
        trains.save(epochs, state)
    trains.close()
    assert reads.epochs_saved == 4
    assert faults.leaves(reads.restore(like)) == faults.leaves(state)
    reads.close()
    assert capsys.readouterr().err == ""


def test_orbax_marks_hold_no_values(finished, copy, capsys):
    checkpoint = copy / "checkpoints" / "2"
    (checkpoint / "_CHECKPOINT_METADATA").write_bytes(b"\xff{")
    (checkpoint / "commit_success.txt").unlink()
    assert fuzz.reopened(copy, finished[1]) == (2, finished[2][1])
    assert capsys.readouterr().err == ""


def test_the_checksums_are_those_of_b2sum(finished):
    checkpoint = finished[0] / "checkpoints" / "2"
    lines = (checkpoint / "b2sums").read_text().splitlines()
    found = dict(reversed(line.split("  ", 1)) for line in lines)
    files = [path for path in (checkpoint / "default").rglob("*") if path.is_file()]
    assert len(files) == len(lines) > 5
    for path in files:
        digest = hashlib.blake2b(path.read_bytes()).hexdigest()
        assert found[path.relative_to(checkpoint).as_posix()] == digest


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"epoch": 1}\n',
        b"\xff\n",
        b"[" * 100_000,
        b"[1, 2]\n[1, 2]\n",
        b"NaN\nNaN\n",
    ],
)
def test_damaged_metrics_are_one_line(content, copy):
    (copy / "metrics.jsonl").write_bytes(content)
    run = Run.open(copy)
    with pytest.raises(RunError, match=r"metrics.jsonl has no metrics of epoch 1") as error:
        run.metrics()
    assert "\n" not in str(error.value)
    run.close()


# Full disks.


def options(run):
    return ["--model", "softmax", "--epochs", 4, "--batch-size", 32, "--data-dir", run]


def refused(done, folder, reason):
    assert done.returncode == 1, done.stderr
    line = rf"error: {re.escape(str(folder))}\S* cannot be written \({reason}; [\d.]+ MB are free "
    assert re.fullmatch(
        line + r"there\); fix that or free space, then continue with --resume\n", done.stderr
    )


def test_where_nothing_can_be_written_the_training_stops_and_can_be_resumed(finished, copy):
    original, like, bits = finished
    fault = faults.command([*map(str, options(original.parent))], copy)
    limited = [sys.executable, "-c", faults.LIMITED, "20000", *fault["args"][3:]]
    refused(subprocess.run(**fault | {"args": limited}), copy, "File too large")
    assert fuzz.reopened(copy, like) == (2, bits[1])
    done = subprocess.run(**fault)
    assert (done.returncode, done.stderr) == (0, "")
    run = Run.open(copy)
    assert run.epochs_saved == 4
    run.close()


def test_a_full_disk_stops_the_training_and_leaves_the_last_checkpoint(finished, tmp_path):
    original, like, bits = finished
    used = sum(path.stat().st_size for path in original.rglob("*")) + (1 << 17)
    try:
        with faults.small_disk(tmp_path / "disk", used):
            copy = shutil.copytree(original, tmp_path / "disk" / "run")
            filler = copy / "filler"
            with filler.open("wb", buffering=0) as file:
                for size in (1 << 14, 1 << 12):
                    while shutil.disk_usage(copy).free > (1 << 15) + size:
                        file.write(bytes(size))
            fault = faults.command([*map(str, options(original.parent))], copy)
            refused(subprocess.run(**fault), copy, "No space left on device")
            filler.unlink()
            assert fuzz.reopened(copy, like) == (2, bits[1])
    except PermissionError as error:
        pytest.skip(f"no file system can be mounted here: {error}")


# The study.


def test_the_study_prints_a_table(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reliability", "--fast", "--only", "near.*: adamw$"])
    with pytest.raises(SystemExit) as ended:
        reliability.main()
    assert not ended.value.code
    *_, row = capsys.readouterr().out.splitlines()
    assert row.startswith("| count near 2³¹-1: adamw | 1 | 1 | the count stays 2³¹-1")


def test_the_study_kills_and_resumes(tmp_path):
    """Compared with an uninterrupted training in this process."""
    settings = {"model": "softmax", "epochs": 2, "batch_size": 32, "data_dir": str(tmp_path)}
    faults.write_digits(tmp_path, 512, 64)
    Run.prepare(tmp_path / "whole", Config(**settings))
    train(Run.open(tmp_path / "whole"), data.load(tmp_path))
    options = ["--model", "softmax", "--epochs", "2", "--batch-size", "32"]
    options += ["--data-dir", str(tmp_path)]
    result = faults.result(tmp_path / "whole")
    whole = faults.Training(tmp_path / "whole", options, 0.0, 0.0, *result)
    names = ["kill -9 while a checkpoint is written"]
    [how] = reliability.trial(names, whole, tmp_path / "run", random.Random(0)).values()
    assert how in ("it was incomplete", "it had just got its name")


@pytest.mark.parametrize("name", steps.optimizers())
def test_many_steps_and_a_full_count(name):
    tx, dtype = steps.optimizers()[name]
    assert "loss" in steps.many(tx, dtype, 20_000)
    assert "2³¹-1" in steps.saturated(tx, dtype)


def test_the_study_tells_one_result_from_another(finished, copy):
    original, _, bits = finished
    state, metrics = faults.result(original)
    assert state == bits[1] and [entry["epoch"] for entry in metrics] == [1, 2]
    assert all("seconds" not in entry for entry in metrics)
    faults.damage(copy / "checkpoints" / "2" / "default", random.Random(0))
    state, metrics = faults.result(copy)
    assert state == bits[0] and [entry["epoch"] for entry in metrics] == [1]
