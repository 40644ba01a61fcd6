"""A second program on a locked folder names the first, and a killed program leaves no lock."""

import contextlib
import errno
import fcntl
import io
import os
import re
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks.reliability import faults
from examples import study
from examples.lock import locked
from examples.mnist.errors import UserError
from tests.examples.processes import ROOT, environment, in_this_process, run

pytestmark = pytest.mark.slow

EPOCHS = 4


def refused(folder, pid):
    """The error message of a second program, as a pattern."""
    folder, host = re.escape(str(folder)), re.escape(socket.gethostname())
    return (
        rf"error: {folder} is in use by process {pid} on {host} since"
        r" \d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4};"
        r" wait until it ends, end it, or choose another --out\n"
    )


def here(*arguments):
    """The exit status and the output of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = in_this_process(*arguments)
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    faults.write_digits(folder, 512, 64)
    return folder


@contextlib.contextmanager
def halted(options, out):
    """A training process that stops after its second epoch and keeps its lock."""
    process = faults.begin(options, out)
    try:
        ends = faults.epochs_of(process)
        assert next(ends, None) and next(ends, None), process.communicate()
        os.kill(process.pid, signal.SIGSTOP)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def second(digits, tmp_path_factory):
    """Statuses and messages of other commands during training, and of one after the kill."""
    out = tmp_path_factory.mktemp("locked") / "run"
    options = ["--model", "softmax", "--epochs", str(EPOCHS), "--batch-size", "32"]
    options += ["--data-dir", str(digits)]
    digit = ROOT / "examples" / "mnist" / "digit.png"
    with halted(options, out) as process:
        trains = [here("train", *options, "--out", out, "--resume")]
        trains.append(run("train", *options, "--out", out, status=1))
        reads = [here("evaluate", out), here("predict", out, digit)]
        reads.append(here("export", out, out / "model"))
    after = here("train", *options, "--out", out, "--resume")
    return SimpleNamespace(out=out, pid=process.pid, trains=trains, reads=reads, after=after)


def test_a_second_training_says_who_trains(second):
    for done in second.trains:
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(refused(second.out, second.pid), done.stderr)


def test_who_reads_is_not_held_up(second):
    for done in second.reads:
        assert done.stdout and done.stderr == ""


def test_a_killed_training_leaves_no_lock_and_goes_on(second):
    epochs = re.findall(r"^epoch \d", second.after.stdout, re.MULTILINE)
    assert second.after.stderr == "" and len(epochs) in (EPOCHS - 1, EPOCHS - 2)
    state, metrics = faults.result(second.out)
    assert len(state) > 3 and [entry["epoch"] for entry in metrics] == [1, 2, 3, 4]
    assert (second.out / "lock").read_text() == ""


def test_of_several_processes_the_first_holds_it(digits, tmp_path):
    out = tmp_path / "run"
    options = ["--model", "softmax", "--epochs", "9999", "--batch-size", "32"]
    options += ["--data-dir", str(digits), "--processes", "2"]
    with faults.begin(options, out) as process:
        assert next(faults.epochs_of(process))
        trains = subprocess.run(
            ["pgrep", "--parent", str(process.pid)], capture_output=True, text=True
        ).stdout.split()
        done = here("train", *options[:-2], "--out", out, "--resume")
        assert done.returncode == 1
        assert re.fullmatch(refused(out, rf"({'|'.join(trains)})"), done.stderr), done.stderr
        process.kill()
        with (out / "lock").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # Blocks until that process is dead.
        process.communicate()
    with locked(out):
        assert (out / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_the_lock_is_given_back_however_the_program_ends(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), locked(tmp_path / "new"):
            with pytest.raises(UserError, match=f"is in use by process {os.getpid()} on"):
                with locked(tmp_path / "new"):
                    pass
            raise KeyboardInterrupt


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys):
    def flock(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path):
        said = capsys.readouterr().err
    assert re.fullmatch(
        r".*lock cannot be locked \(.*No locks.*\); start nothing else there\n", said
    )


STUDY = """
import os, signal, sys
from pathlib import Path
from examples import study

def halt():
    print("halted", flush=True)
    signal.pause()

def main():
    work = study.Study(Path(sys.argv[1]), {})
    work.run([study.Piece("first", lambda: {"x": 1}), study.Piece("second", halt)])

study.command(main)
"""


def test_two_studies_in_one_folder_do_not_mix(tmp_path):
    command = {"args": [sys.executable, "-c", STUDY, str(tmp_path)], "cwd": ROOT}
    command |= {"env": environment(), "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(**command, stdout=subprocess.PIPE) as first:
        while first.stdout.readline() != "halted\n":
            assert first.poll() is None
        # Half a line, as of a piece that is still being written.
        with (tmp_path / "pieces.jsonl").open("a") as file:
            file.write('{"name": ')
        before = (tmp_path / "pieces.jsonl").read_bytes()
        done = subprocess.run(**command, stdout=subprocess.PIPE, timeout=60)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(refused(tmp_path, first.pid), done.stderr)
        assert (tmp_path / "pieces.jsonl").read_bytes() == before
        first.kill()
    assert study.Study(tmp_path, {}).done == {"first": {"x": 1}}


def test_what_another_study_has_computed_is_not_computed_again(tmp_path):
    calls = []
    piece = study.Piece("first", lambda: calls.append(1) or {"x": 1})
    early, late = study.Study(tmp_path, {}), study.Study(tmp_path, {})
    assert early.run([piece]) == late.run([piece]) == {"first": {"x": 1}}
    assert calls == [1]
