"""What a training run leaves on disk: its settings, its metrics, its checkpoints.

RUN/config.json      the settings
RUN/metrics.jsonl    one line an epoch
RUN/checkpoints/N/   the training state after N epochs (Orbax), the last two
RUN/curves.png, RUN/predictions.png
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from examples.study import write_whole


class RunError(ValueError):
    """One line for the user about a run's folder."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run; all that its result depends on, besides the digits."""

    model: str = "cnn"
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    epochs: int = 4
    batch_size: int = 64
    seed: int = 0
    augment: bool = False
    data_dir: str | None = None


class Run:
    """A folder with one run in it.

    Checkpoints are written in the background and appear under their name once they are complete:
    a run that is killed while it writes one goes on from the one before.
    """

    def __init__(self, folder: Path, config: Config):
        self.folder, self.config = folder, config
        options = ocp.CheckpointManagerOptions(max_to_keep=2)
        self._checkpoints = ocp.CheckpointManager(
            (folder / "checkpoints").absolute(), options=options
        )

    @classmethod
    def create(cls, folder: Path, config: Config) -> "Run":
        """A new run. Raises RunError if the folder already holds one."""
        if (folder / "config.json").exists():
            raise RunError(
                f"{folder} holds a run already; go on with --resume, or choose another --out"
            )
        folder.mkdir(parents=True, exist_ok=True)
        # A run that was killed before it wrote its settings has nothing to go on from.
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        (folder / "metrics.jsonl").write_text("")
        text = json.dumps(dataclasses.asdict(config), indent=1) + "\n"
        write_whole(folder / "config.json", text)
        return cls(folder, config)

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """A run of before. Raises RunError if there is none."""
        path = folder / "config.json"
        try:
            return cls(folder, Config(**json.loads(path.read_text())))
        except FileNotFoundError:
            raise RunError(
                f"{folder} holds no run (no config.json); train one with --out {folder}"
            ) from None
        except (OSError, TypeError, ValueError) as error:
            raise RunError(f"{path} cannot be read ({error}); expected a run's settings") from error

    @property
    def epochs_saved(self) -> int:
        """Epochs completed in the last whole checkpoint; 0 if there is none."""
        return self._checkpoints.latest_step() or 0

    def save(self, epochs: int, state: Any) -> None:
        """Writes a checkpoint in the background."""
        self._checkpoints.save(epochs, args=ocp.args.StandardSave(state))

    def restore(self, like: Any) -> Any:
        """The state of the last whole checkpoint, with the types and shardings of `like`."""
        epochs = self.epochs_saved
        if not epochs:
            raise RunError(f"{self.folder} has no checkpoint yet; finish an epoch with --resume")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._checkpoints.restore(epochs, args=ocp.args.StandardRestore(abstract))

    def close(self) -> None:
        """Waits for the last checkpoint to be whole."""
        self._checkpoints.close()

    def metrics(self) -> list[dict[str, float]]:
        """One entry an epoch, up to the last whole checkpoint.

        A line after that is of an epoch that will be run again, a torn one of a kill while writing.
        """
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines[: self.epochs_saved]]

    def write_metrics(self, metrics: list[dict[str, float]]) -> None:
        """Rewrites the lines, all of them or none."""
        text = "".join(json.dumps(entry) + "\n" for entry in metrics)
        write_whole(self.folder / "metrics.jsonl", text)
