"""The files of a training run: its settings, its metrics, its checkpoints.

RUN/lock                names the process that trains the run
RUN/config.json         the settings
RUN/metrics.jsonl       one line per epoch; a NaN loss is the string "NaN" (strict_json.py)
RUN/telemetry.jsonl     measurements: `python -m adam_jax watch RUN`
RUN/checkpoints/N.npz   the training state after N epochs, the last two
RUN/curves.png, RUN/predictions.png
RUN/model.stablehlo     the model as one file, after `export`
"""

import dataclasses
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from examples.mnist.models import MODELS
from examples.mnist.optimizers import ENDING, OPTIMIZERS, SCHEDULES
from examples.shared import files, strict_json
from examples.shared.command_line import UserError
from examples.shared.files import write_whole

# The numbers in a line of metrics.jsonl.
QUANTITIES = {"epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy"}
QUANTITIES |= {"learning_rate", "seconds"}


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run: everything except the digits that its result depends on."""

    model: str = "cnn"
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    epochs: int = 4
    batch_size: int = 64
    seed: int = 0
    augment: bool = False
    rewind_after: int = 0
    data_dir: str | None = None

    def __post_init__(self) -> None:
        choices = {"model": MODELS, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}
        lowest = {"epochs": 1, "batch_size": 1, "seed": 0, "learning_rate": 0, "rewind_after": 0}
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            allowed = choices.get(name)
            right = isinstance(value, field.type)  # type: ignore[arg-type]
            right = right and (allowed is None or value in allowed)
            if not right or (name in lowest and not lowest[name] <= value < float("inf")):
                expected = f"one of {', '.join(allowed)}" if allowed else "another number"
                raise UserError(f"{name} is {str(value)[:80]!r}; expected {expected}")


def settings(folder: Path) -> Config:
    """The settings of the run in a folder. Raises UserError if there are none."""
    path = folder / "config.json"
    try:
        return Config(**json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        runs = sorted(str(found.parent) for found in folder.parent.glob("*/config.json"))
        there = f"; runs there: {', '.join(runs)}" if runs else ""
        raise UserError(f"{folder} holds no run (no config.json){there}") from None
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); expected a run's settings") from error


def resumed(folder: Path, given: Mapping[str, Any]) -> Config:
    """The settings of a run that is resumed: its own, with more epochs if the command names them.

    Args:
      folder: of the run.
      given: the settings named in the command; the others are the run's.

    Raises:
      UserError: there is no run, or a setting does not fit it.
    """
    before = settings(folder)
    differing = [n for n in given if n != "epochs" and getattr(before, n) != given[n]]
    if differing:
        raise UserError(
            f"{folder} was trained with other settings ({', '.join(differing)});"
            f" resume with the same, or choose another --out"
        )
    epochs = given.get("epochs", before.epochs)
    if epochs < before.epochs or (epochs > before.epochs and before.schedule in ENDING):
        raise UserError(
            f"{folder} is a run of {before.epochs} epochs with a {before.schedule} schedule; got"
            f" --epochs {epochs}: leave it out, or start a new run with another --out"
        )
    return dataclasses.replace(before, epochs=epochs)


class Run:
    """A folder with one run in it.

    A run that is killed resumes from its last checkpoint, and from the one before if the last is
    damaged.
    """

    def __init__(self, folder: Path):
        """Opens a run. Raises UserError if there is none."""
        self.folder, self.config = folder, settings(folder)

    @staticmethod
    def prepare(folder: Path, config: Config) -> None:
        """Creates the folder of a new run, or replaces the settings of one that is resumed."""
        if not (folder / "config.json").exists():
            # A run that was killed before it wrote its settings has nothing to resume.
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            (folder / "checkpoints").mkdir(parents=True)
        write_whole(folder / "config.json", json.dumps(dataclasses.asdict(config), indent=1) + "\n")

    def save(self, epochs: int, state: Any) -> None:
        """Writes a checkpoint; keeps the last two."""
        files.save(self._checkpoint(epochs), state)
        self._checkpoint(epochs - 2).unlink(missing_ok=True)

    def restore(self, like: Any) -> tuple[int, Any]:
        """The number of epochs and the state of the last readable checkpoint.

        Args:
          like: the state at step 0, which is returned if there is no checkpoint.

        Raises:
          UserError: there are checkpoints, but none can be read.
        """
        found = [int(path.stem) for path in (self.folder / "checkpoints").glob("*.npz")]
        problem = None
        for epochs in sorted(found, reverse=True):
            try:
                state = files.load(self._checkpoint(epochs), like)
            except UserError as error:
                problem = error
                continue
            if problem:
                print(f"{problem}; using that of epoch {epochs} instead", file=sys.stderr)
            return epochs, state
        if problem:
            raise UserError(f"{problem}; restore a copy, or train again with another --out")
        return 0, like

    def metrics(self, epochs: int) -> list[dict[str, float]]:
        """An entry for each of the first epochs; later lines belong to epochs that run again.

        Raises:
          UserError: a line is not as written.
        """
        path = self.folder / "metrics.jsonl"
        lines = path.read_bytes().splitlines()[:epochs] if epochs else []
        try:
            entries = list(map(strict_json.loads, lines))
            right = [entry["epoch"] for entry in entries] == list(range(1, epochs + 1))
            if right and all(entry.keys() == QUANTITIES for entry in entries):
                return entries
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        raise UserError(
            f"{path} has not the metrics of {epochs} epochs;"
            f" restore a copy, or train again with another --out"
        )

    def write_metrics(self, metrics: list[dict[str, float]]) -> None:
        """Replaces the lines."""
        text = "".join(strict_json.dumps(entry) + "\n" for entry in metrics)
        write_whole(self.folder / "metrics.jsonl", text)

    def _checkpoint(self, epochs: int) -> Path:
        return self.folder / "checkpoints" / f"{epochs}.npz"
