"""The figures of the comparison that tables, pages and pictures show."""

from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from examples import strict_json
from examples.study import Result

Results = dict[str, dict[str, Result]]
"""By model and optimizer: the result of `measure`."""

WINDOW = 25
"""Steps over which a training loss is averaged before it is compared with the target."""


class Row(TypedDict):
    """The figures of one optimizer on one model, at its best learning rate.

    Attributes:
      accuracy: on the test digits, the mean over the seeds.
      lowest: the lowest accuracy of a seed.
      highest: the highest.
      steps: optimizer steps to the target; infinite if it is not reached.
      edge: the best rate is at the end of its grid.
    """

    accuracy: float
    lowest: float
    highest: float
    steps: float
    edge: bool


Models = dict[str, dict[str, Row]]
"""By model, by optimizer."""


class Figures(TypedDict):
    """The content of figures.json.

    Attributes:
      seconds: of work in total.
      models: the rows by model and optimizer.
    """

    seconds: int
    models: Models


def best_rate(result: Result) -> int:
    """The index of the learning rate with the lowest held-out loss, over the seeds."""
    loss = np.asarray(result["validation_loss"], float).mean(axis=1)
    return int(np.where(np.isfinite(loss), loss, np.inf).argmin())


def running_loss(result: Result) -> np.ndarray:
    """The training loss at the best rate, a running mean: [seeds, steps - WINDOW + 1]."""
    losses = np.asarray(result["step_loss"], float)[best_rate(result)]
    window = np.ones(WINDOW) / WINDOW
    return np.stack([np.convolve(loss, window, mode="valid") for loss in losses])


def target(results: dict[str, Result]) -> float:
    """The target loss: plain SGD's final loss, mean of its seeds; else the worst final loss."""
    ends = {name: float(running_loss(result)[:, -1].mean()) for name, result in results.items()}
    return ends.get("sgd", max(ends.values()))


def steps_to(result: Result, loss: float) -> float:
    """Steps until the running loss reaches the target, median of the seeds; infinity if never."""
    reached = running_loss(result) <= loss
    first = [int(r.argmax()) + WINDOW if r.any() else np.inf for r in reached]
    return float(np.median(first))


def row(result: Result, loss: float) -> Row:
    """The figures of one optimizer on one model, for that target loss."""
    best = best_rate(result)
    accuracies = np.asarray(result["test_accuracy"], float)[best]
    mean, lowest, highest = (round(float(f(accuracies)), 5) for f in (np.mean, np.min, np.max))
    return {
        "accuracy": mean,
        "lowest": lowest,
        "highest": highest,
        "steps": steps_to(result, loss),
        "edge": best in (0, len(result["rates"]) - 1),
    }


def figures(results: Results, seconds: float) -> Figures:
    """The figures of all models."""
    models = {}
    for model, by_name in results.items():
        loss = target(by_name)
        models[model] = {name: row(result, loss) for name, result in by_name.items()}
    return {"seconds": round(seconds), "models": models}


def ranked(rows: dict[str, Row]) -> list[str]:
    """The optimizers, the most accurate first."""
    return sorted(rows, key=lambda name: -rows[name]["accuracy"])


def fastest(rows: dict[str, Row]) -> str:
    """The optimizer that reaches the target first."""
    return min(ranked(rows), key=lambda name: rows[name]["steps"])


def alike(rows: dict[str, Row]) -> list[str]:
    """The optimizers with a seed at least as accurate as the best optimizer's worst seed."""
    first, *others = ranked(rows)
    return [name for name in others if rows[name]["highest"] >= rows[first]["lowest"]]


def write(path: Path, found: Figures) -> None:
    """Writes one row per line, so that diffs are readable."""
    lines = []
    for model, rows in found["models"].items():
        each = (f"   {strict_json.dumps(n)}: {strict_json.dumps(r)}" for n, r in rows.items())
        lines.append(f"  {strict_json.dumps(model)}: {{\n" + ",\n".join(each) + "\n  }")
    models = ",\n".join(lines)
    path.write_text(f'{{\n "seconds": {found["seconds"]},\n "models": {{\n{models}\n }}\n}}\n')


def read(path: Path) -> Figures:
    """Reads the file of `write`."""
    found: Any = strict_json.loads(path.read_text())
    return found
