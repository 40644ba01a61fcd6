"""The settings of a training run: defaults, JSON, and extension to more epochs."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from examples.mnist.errors import UserError
from examples.mnist.models import MODELS


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run: everything except the digits that its result depends on.

    Attributes:
      earlier_epochs: the numbers of epochs that the schedule covered before it was stretched to
        `epochs`. Empty if the schedule was never stretched.
    """

    model: str = "cnn"
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    epochs: int = 4
    batch_size: int = 64
    seed: int = 0
    augment: bool = False
    data_dir: str | None = None
    earlier_epochs: tuple = ()


def to_json(config: Config) -> str:
    """The text of config.json."""
    return json.dumps(dataclasses.asdict(config), indent=1, allow_nan=False) + "\n"


def from_json(text: str) -> Config:
    """Settings from their JSON. Raises ValueError, TypeError or RecursionError for other text."""
    from examples.mnist.train import OPTIMIZERS, SCHEDULES  # It imports this file.

    config = Config(**json.loads(text))
    if isinstance(config.earlier_epochs, list):
        config = dataclasses.replace(config, earlier_epochs=tuple(config.earlier_epochs))
    allowed: dict[str, Callable[[Any], bool]] = {
        "model": MODELS.__contains__,
        "optimizer": OPTIMIZERS.__contains__,
        "schedule": SCHEDULES.__contains__,
        "learning_rate": lambda rate: 0 <= rate < float("inf"),
        **dict.fromkeys(("epochs", "batch_size"), lambda count: count >= 1),
        "seed": lambda seed: abs(seed) < 2**63,
        "earlier_epochs": lambda counts: all(isinstance(n, int) and n >= 1 for n in counts),
    }
    for field in dataclasses.fields(Config):
        value: Any = getattr(config, field.name)
        right = isinstance(value, field.type)  # type: ignore[arg-type]
        if not (right and allowed.get(field.name, lambda _: True)(value)):
            raise ValueError(f"{field.name} is {str(value)[:80]!r}")
    return config


def resumed(before: Config, given: Mapping[str, Any], stretch: bool, folder: object) -> Config:
    """The settings of a resumed run: its own, with more epochs if the command asks for them.

    Args:
      before: the settings of the run.
      given: the settings named in the command; the others are the run's.
      stretch: stretch a schedule that ends with the run to the new number of epochs.
      folder: of the run, for error messages.

    Raises:
      UserError: a setting differs, the epochs are fewer, or the schedule would have to be
        stretched and `stretch` is False.
    """
    differing = [n for n in given if n != "epochs" and getattr(before, n) != given[n]]
    if differing:
        raise UserError(
            f"{folder} was trained with other settings ({', '.join(differing)});"
            f" resume with the same, or choose another --out"
        )
    epochs = given.get("epochs", before.epochs)
    if epochs < before.epochs:
        raise UserError(
            f"{folder} is a run of {before.epochs} epochs; --epochs must be at least that,"
            f" got {epochs}: leave it out, or choose another --out"
        )
    if epochs == before.epochs:
        return before
    from examples.mnist.train import ENDING, SCHEDULES

    if before.schedule not in ENDING:
        return dataclasses.replace(before, epochs=epochs)
    if not stretch:
        # In thousandths of an epoch, because the number of steps per epoch is unknown here.
        schedule = SCHEDULES[before.schedule](before.learning_rate, 1000 * epochs)
        raise UserError(
            f"{folder} has a {before.schedule} schedule that ends with epoch {before.epochs};"
            f" add --stretch to spread it over {epochs} epochs (after epoch {before.epochs} the"
            f" learning rate is then {float(schedule(1000 * before.epochs)):.3g}), or start"
            f" a new run with another --out"
        )
    earlier = (*before.earlier_epochs, before.epochs)
    return dataclasses.replace(before, epochs=epochs, earlier_epochs=earlier)
