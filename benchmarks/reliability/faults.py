"""Faults of a training: each is injected into a process of the MNIST example."""

import contextlib
import dataclasses
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from examples.mnist import data
from examples.mnist.runs import Run
from examples.mnist.train import build

ROOT = Path(__file__).parents[2]

# A process that limits itself: forking this one for it could deadlock.
LIMITED = """
import resource, runpy, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
runpy.run_module("examples.mnist", run_name="__main__")
"""

# XLA's log of a broken connection: a line with the time, and continuation lines.
LOGGED = r"([EFW]\d{4} .*\n)?"

BOUND = 60  # seconds in which all must end after a kill, on a heavily loaded machine


class Passed(Exception):
    """The fault came too late: the training had already ended."""


@dataclasses.dataclass(frozen=True)
class Training:
    """An undisturbed training: the expected result of all others.

    Attributes:
      out: its folder.
      options: of the command.
      start: seconds from the start of the process to the end of the first epoch.
      rest: seconds from there to the end of the last.
      state: the bits of its last checkpoint.
      metrics: without the seconds.
    """

    out: Path
    options: list[str]
    start: float
    rest: float
    state: list[bytes]
    metrics: list[dict[str, float]]

    @property
    def epochs(self) -> int:
        """The number of epochs."""
        return len(self.metrics)


def write_digits(folder: Path, train: int, test: int) -> None:
    """The four files of MNIST with few digits."""
    digits = data.load()
    for part, images, labels in (
        ("train", digits.train_images[:train], digits.train_labels[:train]),
        ("t10k", digits.test_images[:test], digits.test_labels[:test]),
    ):
        header = struct.pack(">4I", 2051, len(images), 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">2I", 2049, len(labels))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())


def damage(folder: Path, rng: random.Random) -> str:
    """Damages one file in a folder; returns the kind of damage and the file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    # Half of the time all files are equally likely, half of the time all bytes.
    sizes = [path.stat().st_size for path in files]
    path = rng.choices(files, None if rng.random() < 0.5 else sizes)[0]
    content, how = path.read_bytes(), rng.choice(["a bit", "cut", "zeroed", "deleted"])
    if how == "a bit" and content:
        at = rng.randrange(len(content))
        changed = bytes([content[at] ^ 1 << rng.randrange(8)])
        path.write_bytes(content[:at] + changed + content[at + 1 :])
    elif how == "cut":
        path.write_bytes(content[: rng.randrange(max(1, len(content)))])
    elif how == "zeroed":
        path.write_bytes(bytes(len(content)))
    else:
        path.unlink()
    return f"{how}: {path.relative_to(folder)}"


def leaves(state: Any) -> list[bytes]:
    """The bits of a state."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def command(options: list[str], out: Path) -> dict[str, Any]:
    """The arguments of subprocess: starts the training, or resumes it."""
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"} | os.environ
    line = [sys.executable, "-m", "examples.mnist", "train", *options, "--out", str(out)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return {"args": [*line, "--resume"], "cwd": ROOT, "env": environment} | pipes


def begin(options: list[str], out: Path) -> "subprocess.Popen[str]":
    """Starts a training, or resumes it; its output can be read."""
    arguments: dict[str, Any] = {**command(options, out), "stdout": subprocess.PIPE}
    return subprocess.Popen(**arguments)


def epochs_of(process: "subprocess.Popen[str]") -> Iterator[float]:
    """The time at which each epoch of a training ends."""
    for line in process.stdout or ():
        if line.startswith("epoch "):
            yield time.perf_counter()


def result(out: Path) -> tuple[list[bytes], list[dict[str, float]]]:
    """The bits of a finished run's state, and its metrics without the times."""
    run = Run.open(out)
    _, like, _, _ = build(run.config, steps=1)
    metrics = [{k: v for k, v in entry.items() if k != "seconds"} for entry in run.metrics()]
    found = leaves(run.restore(like)), metrics
    run.close()
    return found


def undisturbed(folder: Path, epochs: int, digits: int, processes: int = 1) -> Training:
    """Trains once, for the result and the time."""
    write_digits(folder, digits, 256)
    options = ["--model", "mlp" if processes == 1 else "softmax", "--batch-size", "32"]
    options += ["--epochs", str(epochs), "--processes", str(processes)]
    options += ["--augment", "--schedule", "cosine", "--data-dir", str(folder)]
    out, began = folder / f"whole-{processes}", time.perf_counter()
    with begin(options, out) as process:
        ends = [end - began for end in epochs_of(process)]
        _, stderr = process.communicate()
    if process.returncode:
        raise AssertionError(f"an undisturbed training failed: {stderr}")
    return Training(out, options, ends[0], ends[-1] - ends[0], *result(out))


def resumed(training: Training, out: Path) -> str:
    """Trains to the end and compares every bit; returns the text on stderr."""
    done = subprocess.run(**command(training.options, out))
    if done.returncode:
        raise AssertionError(f"could not be resumed: {done.stderr}")
    state, metrics = result(out)
    if state != training.state or metrics != training.metrics:
        raise AssertionError("ended with other parameters or metrics than if nothing had happened")
    return done.stderr


def saved(out: Path) -> int:
    """Epochs of the last checkpoint that has its final name."""
    names = [path.name for path in (out / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def partial(out: Path) -> bool:
    """Whether there is a checkpoint without its final name yet."""
    return any((out / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def kill(process: "subprocess.Popen[str]", rng: random.Random) -> str:
    """Kills the process that trains, or one of several; returns the messages after all have ended.

    Raises:
      Passed: it had already ended.
      AssertionError: the others continued, or did not report in one line what to do.
    """
    trains = subprocess.run(
        ["pgrep", "--parent", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(rng.choice(trains)) if trains else process.pid, signal.SIGKILL)
    began = time.perf_counter()
    try:
        _, stderr = process.communicate(timeout=BOUND)
    except subprocess.TimeoutExpired as error:
        process.kill()
        raise AssertionError(f"went on for {BOUND} s after one was killed") from error
    if process.returncode == 0:
        raise Passed
    if not trains and process.returncode == -signal.SIGKILL:
        return stderr
    _refused(stderr, process.returncode, LOGGED)
    print(f"the others ended {time.perf_counter() - began:.1f} s later", file=sys.stderr)
    return stderr


def killed_at_start(training: Training, out: Path, rng: random.Random) -> str:
    """Kills at any moment between the start of the process and the end of the first epoch."""
    with begin(training.options, out) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, training.start))
        kill(process, rng)
    return "before the first checkpoint" if not saved(out) else "after it"


def killed(training: Training, out: Path, rng: random.Random) -> str:
    """Kills at any moment between the ends of the first and of the last epoch."""
    with begin(training.options, out) as process:
        if next(epochs_of(process), None) is None:
            _, stderr = process.communicate()
            if process.returncode:
                raise AssertionError(f"could not be resumed: {stderr}")
            raise Passed
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, training.rest))
        kill(process, rng)
    if partial(out):
        return "while a checkpoint was written"
    epochs = saved(out)
    if epochs == training.epochs:
        return "after the last epoch"
    return "between checkpoints" if epochs else "before the first checkpoint"


def killed_in_checkpoint(training: Training, out: Path, rng: random.Random) -> str:
    """Kills up to 50 ms, the time of a write, after the start of a checkpoint."""
    if saved(out) == training.epochs:  # An earlier kill came after the last one.
        raise Passed
    epochs = rng.randint(saved(out) + 1, training.epochs)
    with begin(training.options, out) as process:
        while process.poll() is None:
            if any((out / "checkpoints").glob(f"{epochs}.orbax-checkpoint-tmp*")):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(rng.uniform(0, 0.05))
                break
        kill(process, rng)
    return "it was incomplete" if partial(out) else "it had just got its name"


def corrupted(training: Training, out: Path, rng: random.Random) -> str:
    """Damages the last checkpoint of the finished training, and resumes."""
    shutil.copytree(training.out, out)
    how = damage(out / "checkpoints" / str(training.epochs), rng)
    stderr = resumed(training, out)
    aside = (out / "checkpoints" / f"{training.epochs}.corrupt").exists()
    if not stderr:
        return "Orbax's marks: no values in them"
    if (
        stderr.count("\n") != 1
        or f"using that of epoch {training.epochs - 1} instead" not in stderr
        or not aside
    ):
        raise AssertionError(f"{how}: {stderr}")
    return "fell back by one, said so in a line"


def _refused(stderr: str, returncode: int, besides: str = "") -> str:
    right = re.fullmatch(rf"(?s:{besides})error: [^\n]*--resume[^\n]*\n", stderr)
    if returncode != 1 or not right or "Traceback" in stderr:
        raise AssertionError(f"exit status {returncode}: {stderr}")
    return "one line, exit status 1"


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of that many bytes; PermissionError if mounting is not permitted."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise PermissionError("no mount here") from error
    if done.returncode:
        raise PermissionError(done.stderr.strip())
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full_disk(training: Training, out: Path, rng: random.Random) -> str:
    """Trains on a disk that is too small, frees space, and resumes."""
    files = (path for path in training.out.rglob("*") if path.is_file())
    needed = sum(path.stat().st_size for path in files)
    with small_disk(out, rng.randint(1 << 16, int(0.9 * needed))):
        done = subprocess.run(**command(training.options, out / "run"))
        _refused(done.stderr, done.returncode)
        epochs = saved(out / "run")
        subprocess.run(["mount", "-o", "remount,size=64m", str(out)], check=True)
        resumed(training, out / "run")
    return f"one line, exit status 1, resumed from epoch {epochs}"


def file_limit(training: Training, out: Path, rng: random.Random) -> str:
    """Trains with a limit on file sizes (RLIMIT_FSIZE): writes fail as on a full disk."""
    limit = round(2 ** rng.uniform(6, 18))  # 64 bytes to 256 KB; the largest file is larger.
    before, fault = saved(out), command(training.options, out)
    fault["args"][1:3] = ["-c", LIMITED, str(limit)]
    done = subprocess.run(**fault)
    said = _refused(done.stderr, done.returncode)
    if saved(out) != before:
        raise AssertionError("a checkpoint that could not be written got its name")
    return said
