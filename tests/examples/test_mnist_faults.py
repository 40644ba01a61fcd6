"""Runs that are interrupted, killed, damaged or started twice: one line, and the same bits."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.mnist import data, runs
from examples.mnist.runs import QUANTITIES, Config, Run
from examples.mnist.train import build
from examples.shared.command_line import UserError
from examples.shared.files import locked
from examples.studies.text.run import trained
from tests.catalogue.scripts import ENVIRONMENT, ROOT, process
from tests.examples.processes import command, idx, in_this_process, pieces, refused, result, run

pytestmark = pytest.mark.slow

EPOCHS = 6
# Random moments of each kind; 60 by hand, for docs/reliability.md.
TIMES = int(os.environ.get("INTERRUPTIONS", "1"))
MNIST = "interrupted; run the same command with --resume to continue\n"
STUDY = "interrupted; run the same command again to resume\n"


@pytest.fixture(scope="module", autouse=True)
def interrupts():
    """Programs started in the background by a shell ignore interrupts, and so do theirs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Options of a small run with everything that is random."""
    folder, digits = tmp_path_factory.mktemp("digits"), data.load()
    arrays = digits.train_images[:512], digits.train_labels[:512]
    arrays += digits.test_images[:64], digits.test_labels[:64]
    for name, array in zip(data.NAMES, arrays, strict=True):
        (folder / name).write_bytes(idx(array))
    options = ["train", "--model", "mlp", "--epochs", EPOCHS, "--batch-size", 32, "--augment"]
    return [*options, "--schedule", "cosine", "--data-dir", folder]


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory):
    """An undisturbed run: its folder, its seconds, its result."""
    out, began = tmp_path_factory.mktemp("whole") / "run", time.perf_counter()
    run(*options, "--out", out)
    return SimpleNamespace(out=out, seconds=time.perf_counter() - began, result=result(out))


def begin(line):
    """Starts a program; as in a terminal, all of its processes get a signal."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(line, cwd=ROOT, env=ENVIRONMENT, process_group=0, **pipes)


def stopped(line, number, seconds):
    """Sends a signal at that time; the messages, and the status."""
    with begin(line) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        _, said = process.communicate()
    return said, process.returncode


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_stopped_at_any_moment_ends_with_the_same_bits(options, whole, tmp_path, number):
    for moment in random.Random(number).choices(range(10, 100), k=TIMES):
        out = tmp_path / f"{moment}"
        line = command(*options, "--out", out)
        said, status = stopped(line, number, moment / 100 * whole.seconds)
        ends = [("", 0), ("", -9) if number == signal.SIGKILL else (MNIST, 130)]
        assert (said, status) in [*ends, ("interrupted\n", 130)]
        run(*options, "--out", out, *["--resume"] * (out / "config.json").exists())
        assert result(out) == whole.result


def test_a_study_stopped_at_any_moment_has_the_same_results(tmp_path):
    line = ["-m", "examples.studies.text", "train", "--fast", "--steps", "100", "--out"]
    began = time.perf_counter()
    process(*line, tmp_path / "whole")
    seconds = time.perf_counter() - began
    for moment in random.Random(0).choices(range(10, 100), k=TIMES):
        again = [*line, f"{tmp_path}/{moment}"]
        said, status = stopped([sys.executable, *again], signal.SIGINT, moment / 100 * seconds)
        assert (said, status) in [("", 0), (STUDY, 130), ("interrupted\n", 130)]
        process(*again)
        assert pieces(tmp_path / f"{moment}") == pieces(tmp_path / "whole")
    # Interrupted when the last checkpoint was complete and its line was missing.
    whole = tmp_path / "whole"
    found, ended = pieces(whole), trained(whole)[1]
    lines = (whole / "pieces.jsonl").read_text().splitlines(keepends=True)
    (whole / "pieces.jsonl").write_text("".join(lines[:3]))
    process(*line, whole)
    assert pieces(whole) == found and list(found)[:3] == ["step 25", "step 50", "step 75"]
    jax.tree.map(np.testing.assert_array_equal, trained(whole)[1], ended)


IN_GARBAGE_COLLECTION = """
import gc, signal, time
from examples.shared import study

def main():
    gc.callbacks.append(lambda phase, _: signal.raise_signal(signal.SIGINT))
    gc.collect()
    raise AssertionError("the interrupt was lost")

study.command(main)
"""


def test_an_interrupt_in_a_callback_of_the_garbage_collector_is_not_lost(tmp_path):
    (tmp_path / "program.py").write_text(IN_GARBAGE_COLLECTION)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    # `-m` imports the package of a program first, as it does for examples.
    code = "import sys; sys.argv = ['-m']; import examples, program"
    assert process("-c", code, status=130, PYTHONPATH=path).stderr == STUDY


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with two checkpoints, a state of their structure, and the states."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    like = {"w": jnp.zeros((7, 3)), "count": jnp.zeros([], jnp.int32)}
    Run.prepare(folder, Config(model="softmax"))
    states = [jax.tree.map(lambda x, e=epoch: x + e, like) for epoch in (1, 2)]
    for epoch, state in enumerate(states, 1):
        entries = [dict.fromkeys(QUANTITIES, 1.0) | {"epoch": e} for e in range(1, epoch + 1)]
        Run(folder).write_metrics(entries)
        Run(folder).save(epoch, state)
    return SimpleNamespace(folder=folder, like=like, states=states)


@settings(max_examples=100, deadline=None, database=None)
@given(
    at=st.floats(0, 1, exclude_max=True),
    put=st.binary(max_size=3),
    drop=st.integers(0, 3) | st.just(10**6),
)
def test_a_checkpoint_with_other_numbers_is_never_restored(finished, at, put, drop):
    path = finished.folder / "checkpoints" / "2.npz"
    content = path.read_bytes()
    start = int(at * len(content))
    path.write_bytes(content[:start] + put + content[start + drop :])
    try:
        with contextlib.redirect_stderr(None):
            epochs, state = Run(finished.folder).restore(finished.like)
    finally:
        path.write_bytes(content)
    jax.tree.map(np.testing.assert_array_equal, state, finished.states[epochs - 1])


def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(whole, options, tmp_path):
    out = shutil.copytree(whole.out, tmp_path / "run")
    last = out / "checkpoints" / f"{EPOCHS}.npz"
    last.write_bytes(last.read_bytes()[:-100])
    said = run(*options, "--out", out, "--resume").stderr
    assert re.fullmatch(
        rf".*{EPOCHS}\.npz cannot be read .*; using that of epoch \d inst.*\n", said
    )
    assert result(out) == whole.result
    for path in (out / "checkpoints").iterdir():
        path.write_bytes(b"")
    said = run(*options, "--out", out, "--resume", status=1).stderr
    assert re.fullmatch(r"error: .*restore a copy, or train again with another --out\n", said)


def test_a_checkpoint_of_another_step_is_said(whole, options, tmp_path):
    its = Run(shutil.copytree(whole.out, tmp_path / "run"))
    epochs, state = its.restore(build(its.config, 1)[1])
    its.save(epochs, state._replace(step=state.step + 1))
    said = run(*options, "--out", its.folder, "--resume", status=1).stderr
    assert re.fullmatch(r"error: .* does not continue, step: .*, or train again .*\n", said)


texts = st.one_of(
    st.binary(max_size=50),
    st.dictionaries(
        st.sampled_from(("model", "epochs", "learning_rate", "data_dir", "seed", "more")),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    ).map(lambda value: json.dumps(value).encode()),
    st.integers(1, 3_000).map(lambda depth: b"[" * depth),
)


@settings(max_examples=100, deadline=None, database=None)
@given(content=texts)
def test_any_settings_and_metrics_are_a_run_or_a_user_error(finished, content):
    for name in ("config.json", "metrics.jsonl"):
        path = finished.folder / name
        good = path.read_bytes()
        path.write_bytes(content)
        try:
            Run(finished.folder).metrics(1)
        except UserError as error:
            assert str(path) in str(error)
        finally:
            path.write_bytes(good)


def test_more_epochs_end_with_the_bits_of_a_run_that_had_them_at_once(options, tmp_path):
    at_once, extended = tmp_path / "at once", tmp_path / "extended"
    more = ["--model", "softmax", "--schedule", "inverse-sqrt"]
    assert in_this_process(*options, *more, "--out", at_once) == 0
    assert in_this_process(*options, *more, "--epochs", 2, "--out", extended) == 0
    assert in_this_process("train", "--resume", "--epochs", EPOCHS, "--out", extended) == 0
    assert result(extended) == result(at_once)
    assert runs.settings(extended) == runs.settings(at_once)


def test_what_does_not_fit_the_run_is_one_line(whole, options):
    out = whole.out
    for more, words in (
        (["--resume", "--epochs", 1], f"is a run of {EPOCHS} epochs with a cosine schedule; got"),
        (["--resume", "--epochs", 9], "leave it out, or start a new run with another --out"),
        (["--resume", "--optimizer", "sgd"], "other settings (optimizer)"),
        ([], "already holds a run; continue it with --resume"),
        (["--resume", "--out", f"{out}-typo"], f"holds no run (no config.json); runs there: {out}"),
    ):
        assert words in refused(*options, "--out", out, *more)


def test_a_second_training_names_the_first_and_a_kill_leaves_no_lock(options, tmp_path):
    out = tmp_path / "run"
    with begin(command(*options, "--epochs", 999, "--out", out)) as process:
        while not process.stdout.readline().startswith("epoch 2/"):
            assert process.poll() is None
        os.kill(process.pid, signal.SIGSTOP)
        said = run(*options, "--epochs", 999, "--out", out, "--resume", status=1).stderr
        pattern = rf"error: {out} is in use by process {process.pid} on .* since .*another --out\n"
        assert re.fullmatch(pattern, said)
        assert run("evaluate", out).stderr == ""  # Readers need no lock.
        process.kill()
    with locked(out):
        assert (out / "lock").read_text().startswith(f"process {os.getpid()} on ")


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.argv[0] = "examples.mnist"
runpy.run_module("examples.mnist", run_name="__main__")
"""


def test_a_full_disk_is_one_line_and_the_run_goes_on_with_space(whole, options, tmp_path):
    line = [*options, "--out", tmp_path / "run"]
    said = process("-c", LIMITED, *line, status=1).stderr
    assert re.fullmatch(r"error: .*File too large.*\n", said)
    run(*line, "--resume")
    assert result(tmp_path / "run") == whole.result
