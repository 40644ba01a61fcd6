"""Compares optimizers: each has a grid of learning rates and is judged by its best."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from examples.mnist import data
from examples.shared.study import Piece, Result
from examples.studies.paper.training import Digits, Loss, Optimizer, train


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is computed.

    Attributes:
      digits: of the training set.
      epochs: passes through it.
      rates: learning rates per optimizer, from the middle of its grid.
      batch_size: as in the paper.
    """

    digits: int
    epochs: int
    rates: int
    batch_size: int = 128


class Entrant(NamedTuple):
    """An optimizer with an argument `learning_rate`, which may be traced, and its rising grid."""

    optimizer: Optimizer
    rates: tuple[float, ...]

    def middle(self, count: int) -> tuple[float, ...]:
        """That many rates from the middle of the grid."""
        first = (len(self.rates) - count) // 2
        return self.rates[first : first + count]


def pieces(
    figure: str,
    entrants: Mapping[str, Entrant],
    model: Callable[[], tuple[Loss, Any]],
    digits: data.Digits,
    scale: Scale,
    seed: int,
    cost: float,
) -> list[Piece]:
    """A piece per optimizer, which trains with all its learning rates at once.

    Args:
      figure: the start of each piece's name.
      entrants: by name.
      model: returns the loss and the initial parameters, the same for all.
      digits: the data.
      scale: how much is computed.
      seed: of the order of the digits and of the noise, the same for all.
      cost: of each piece, in seconds.
    """

    def race(entrant: Entrant) -> Result:
        loss, params = model()
        rates = entrant.middle(scale.rates)
        costs = train(
            loss,
            params,
            entrant.optimizer,
            {"learning_rate": rates},
            Digits.of(digits, scale.digits),
            epochs=scale.epochs,
            batch_size=scale.batch_size,
            seed=seed,
        )
        return {"rates": rates, "costs": costs}

    return [
        Piece(f"{figure} {name}", functools.partial(race, entrant), cost)
        for name, entrant in entrants.items()
    ]


class Best(NamedTuple):
    """The run with the lowest last cost of a grid.

    Attributes:
      rate: its learning rate.
      costs: its training cost, float64 [epochs].
      inside: the grid extends to both sides; otherwise a better rate may lie outside.
    """

    rate: float
    costs: np.ndarray
    inside: bool


def best(result: Result) -> Best:
    """Picks from {"rates": [runs], "costs": [runs, epochs]}; diverged runs rank last."""
    costs = np.array(result["costs"], float)
    i = int(np.nan_to_num(costs[:, -1], nan=np.inf).argmin())
    return Best(result["rates"][i], costs[i], 0 < i < len(costs) - 1)


def epochs_to(costs: np.ndarray, target: float) -> int | None:
    """The first epoch, counted from 1, whose cost is at most the target; None if there is none."""
    reached = np.flatnonzero(costs <= target)
    return int(reached[0]) + 1 if len(reached) else None


def standings(bests: Mapping[str, Best]) -> str:
    """Optimizers, from the best to the worst: last cost and learning rate."""
    ranked = sorted(bests.items(), key=lambda item: item[1].costs[-1])
    return ", ".join(
        f"{name} {run.costs[-1]:.4g} (rate {run.rate:.2g}{'' if run.inside else ', edge of grid'})"
        for name, run in ranked
    )
