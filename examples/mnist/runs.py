"""The files of a training run: its settings, its metrics, its checkpoints.

RUN/lock             held while the run is trained; names the holder (examples/lock.py)
RUN/config.json      the settings
RUN/metrics.jsonl    one line per epoch; a NaN loss is the string "NaN" (strict_json.py)
RUN/checkpoints/N/   the training state after N epochs (Orbax), the last two
RUN/checkpoints/N/b2sums     the checksums of its files, as `b2sum --check b2sums` reads them
RUN/checkpoints/N.corrupt/   a checkpoint with wrong checksums, moved when N was saved again
RUN/curves.png, RUN/predictions.png
RUN/model.stablehlo  the model as one file, after `export`
"""

import contextlib
import hashlib
import itertools
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from examples import strict_json
from examples.mnist import config, distributed
from examples.mnist.config import Config, to_json
from examples.mnist.errors import UserError
from examples.study import write_whole

# The numbers in a line of metrics.jsonl.
QUANTITIES = {"epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy"}
QUANTITIES |= {"learning_rate", "seconds"}
WRITING = 60  # seconds that a checkpoint may take to write


class RunError(UserError):
    """One line for the user about a run's folder."""


def settings(folder: Path) -> Config:
    """The settings of the run in a folder. Raises RunError if there are none."""
    path = folder / "config.json"
    try:
        return config.from_json(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"{folder} holds no run (no config.json); train one with --out {folder}"
        ) from None
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read ({error}); expected a run's settings") from error


def _checksums(checkpoint: Path) -> bytes:
    """BLAKE2b of each file of the state, a line each.

    Files outside the state, with which Orbax marks the checkpoint complete, hold only a time.
    """
    lines = []
    for path in sorted(p for p in (checkpoint / "default").rglob("*") if not p.is_dir()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "blake2b").hexdigest()
        lines.append(f"{digest}  {path.relative_to(checkpoint).as_posix()}\n")
    return "".join(lines).encode()


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint has the bytes that were saved."""
    try:
        written = (checkpoint / "b2sums").read_bytes()
        return bool(written) and written == _checksums(checkpoint)
    except OSError:
        return False


def _of_the_disk(error: BaseException | None) -> str | None:
    """The system's message if a file could not be written; None for other errors.

    TensorStore, which writes for Orbax, raises a ValueError with the system's error number.
    """
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        if number := re.search(r"os_error_code='(\d+)'", str(error)):
            return os.strerror(int(number[1]))
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns errors of the disk into RunErrors."""
    try:
        yield
    except Exception as error:
        if (reason := _of_the_disk(error)) is None:
            raise
        free = shutil.disk_usage(path.parent).free / 1e6
        raise RunError(
            f"{path} cannot be written ({reason}; {free:.1f} MB are free there);"
            f" fix that or free space, then continue with --resume"
        ) from error


_report = sys.unraisablehook


def _report_once(unraisable: Any) -> None:
    """Drops redundant messages when a checkpoint cannot be written.

    Orbax closes its loop at the first array that fails; each other array then fails to report to
    it.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        _report(unraisable)


class Run:
    """A folder with one run in it.

    Checkpoints are written in the background and appear under their name when they are complete,
    including checksums. A run that is killed during a write resumes from the previous checkpoint,
    and so does a run whose last checkpoint no longer matches its checksums.
    """

    def __init__(self, folder: Path, config: Config):
        self.folder, self.config = folder, config
        self._directory = (folder / "checkpoints").absolute()
        self._saving = 0  # The epochs of the checkpoint being written.
        self._readable: int | None = None  # Not determined yet.
        self._unreadable: list[int] = []
        # One line reports the error. Orbax would add a traceback for each thread involved.
        absl_logging.set_verbosity(absl_logging.FATAL)  # And a line for each file it writes.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        sys.unraisablehook = _report_once
        # For each array that is not written after the first one fails.
        warnings.filterwarnings("ignore", "coroutine .*write_fragment.*never awaited")
        background = ocp.options.AsyncOptions(
            # If one process cannot write, the others wait for it: with Orbax for 20 minutes.
            timeout_secs=WRITING,
            # Called when all files of a state are written and the name is still temporary.
            post_finalization_callback=self._write_checksums,
        )
        with _writing(self._directory):
            self._checkpoints = ocp.CheckpointManager(
                self._directory,
                options=ocp.CheckpointManagerOptions(max_to_keep=2, async_options=background),
            )

    @staticmethod
    def check_new(folder: Path) -> None:
        """Raises RunError if the folder already holds a run."""
        if (folder / "config.json").exists():
            raise RunError(
                f"{folder} already holds a run; continue it with --resume, or choose another --out"
            )

    @staticmethod
    def prepare(folder: Path, config: Config) -> None:
        """Creates the folder of a new run; one process does, then all open it."""
        Run.check_new(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # A run that was killed before it wrote its settings has nothing to resume.
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        with _writing(folder / "config.json"):
            (folder / "metrics.jsonl").write_text("")
            write_whole(folder / "config.json", to_json(config))

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """An existing run. Raises RunError if there is none."""
        return cls(folder, settings(folder))

    @staticmethod
    def extend(folder: Path, config: Config) -> None:
        """Replaces a run's settings by those with more epochs; everything else stays."""
        with _writing(folder / "config.json"):
            write_whole(folder / "config.json", to_json(config))

    @property
    def epochs_saved(self) -> int:
        """Epochs completed in the last readable checkpoint; 0 if there never was one.

        Warns on stderr if that is not the last one. Raises RunError if none is readable.
        """
        if self._readable is None:
            self._wait()
            steps, readable = self._look()
            self._unreadable = [n for n in steps if n > readable]
            if self._unreadable:
                paths = [self.folder / "checkpoints" / str(n) for n in self._unreadable]
                names = ", ".join(map(str, paths))
                fault = f"{names} cannot be read: the bytes are not those that were saved"
                if not readable:
                    raise RunError(f"{fault}; restore a copy, or train again with another --out")
                if distributed.speaks():
                    print(f"{fault}; using that of epoch {readable} instead", file=sys.stderr)
            self._readable = readable
        return self._readable

    def _look(self) -> tuple[list[int], int]:
        """The epochs of all checkpoints, last first; the last readable one, or 0."""
        before: list[int] = []
        while True:
            self._checkpoints.reload()
            steps = sorted(self._checkpoints.all_steps(), reverse=True)
            if steps == before:
                return steps, 0
            readable = next((n for n in steps if _is_whole(self._directory / str(n))), 0)
            if readable:
                return steps, readable
            before = steps  # Were they bad, or did a training delete them meanwhile?

    def save(self, epochs: int, state: Any) -> None:
        """Writes a checkpoint in the background. Raises RunError if the previous one failed."""
        self._wait()
        with _writing(self._directory):
            self._set_aside()
            self._saving, self._readable = epochs, None
            self._checkpoints.save(epochs, args=ocp.args.StandardSave(state))

    def restore(self, like: Any) -> Any:
        """The state of the last readable checkpoint, with the types and shardings of `like`."""
        epochs = self.epochs_saved
        if not epochs:
            raise RunError(f"{self.folder} has no checkpoint yet; finish an epoch with --resume")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._checkpoints.restore(epochs, args=ocp.args.StandardRestore(abstract))

    def close(self) -> None:
        """Waits until the last checkpoint is complete. Raises RunError if the disk is full."""
        with _writing(self._directory):
            self._checkpoints.close()

    def _wait(self) -> None:
        with _writing(self._directory):
            self._checkpoints.wait_until_finished()

    def _set_aside(self) -> None:
        if not self._unreadable:
            return
        for epochs in self._unreadable if distributed.speaks() else ():
            path = aside = self._directory / str(epochs)
            for n in itertools.count(1):
                aside = path.with_name(f"{epochs}.corrupt" + f"-{n}" * (n > 1))
                if not aside.exists():
                    break
            path.rename(aside)
        self._unreadable = []
        distributed.wait_for_all("set aside what cannot be read")
        self._checkpoints.reload()

    def _write_checksums(self) -> None:
        (folder,) = self._directory.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        (folder / "b2sums").write_bytes(_checksums(folder))

    def metrics(self) -> list[dict[str, float]]:
        """One entry per epoch, up to the last readable checkpoint.

        Later lines belong to epochs that will run again; a torn line is from a kill during a write.

        Raises:
          RunError: if one of the other lines is not as written.
        """
        path, epochs = self.folder / "metrics.jsonl", self.epochs_saved
        entries: list[Any] = []
        with contextlib.suppress(OSError, ValueError, RecursionError):
            entries += map(strict_json.loads, path.read_bytes().splitlines()[:epochs])
        for epoch in range(1, epochs + 1):
            entry: Any = entries[epoch - 1] if epoch <= len(entries) else None
            right = isinstance(entry, dict) and entry.keys() == QUANTITIES
            numbers = right and all(isinstance(value, int | float) for value in entry.values())
            if not (numbers and entry["epoch"] == epoch):
                raise RunError(
                    f"{path} has no metrics of epoch {epoch} in line {epoch};"
                    f" restore a copy, or train again with another --out"
                )
        return entries

    def write_metrics(self, metrics: list[dict[str, float]]) -> None:
        """Rewrites the lines atomically. Raises RunError if the disk is full."""
        text = "".join(strict_json.dumps(entry) + "\n" for entry in metrics)
        with _writing(self.folder / "metrics.jsonl"):
            write_whole(self.folder / "metrics.jsonl", text)
