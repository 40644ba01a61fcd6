"""The figures of the comparison, and what is made of them: a table and a picture.

python -m examples.studies.compare.report    makes those of the documentation from figures.json
"""

import statistics
from pathlib import Path
from typing import Any

import numpy as np

from examples.shared import strict_json, style
from examples.shared.pages import replaced
from examples.shared.study import Result
from examples.studies.compare.optimizers import OPTAX

ROOT = Path(__file__).parents[3]
FIGURES = Path(__file__).with_name("figures.json")
PICTURE, PAGE = ROOT / "docs" / "compare.png", ROOT / "examples" / "README.md"
MODELS = {"softmax": "softmax regression", "mlp": "MLP", "small-cnn": "small CNN"}
WINDOW = 25
"""Steps over which a training loss is averaged before it is compared with the target."""

Figures = dict[str, dict[str, dict[str, float]]]
"""By model and optimizer, at its best learning rate.

mean, lowest and highest accuracy of the seeds on the test digits; optimizer steps to the target,
infinite if it is not reached; edge: 1 if the best rate is at the end of its grid, else 0.
"""


def best_rate(result: Result) -> int:
    """The index of the learning rate with the lowest held-out loss, over the seeds."""
    loss = np.asarray(result["validation_loss"], float).mean(axis=1)
    return int(np.where(np.isfinite(loss), loss, np.inf).argmin())


def running_loss(result: Result) -> np.ndarray:
    """The training loss at the best rate, a running mean: [seeds, steps - WINDOW + 1]."""
    losses = np.asarray(result["step_loss"], float)[best_rate(result)]
    window = np.ones(WINDOW) / WINDOW
    return np.stack([np.convolve(loss, window, mode="valid") for loss in losses])


def figures(results: dict[str, dict[str, Result]]) -> Figures:
    """The figures of the results by model and optimizer.

    The target is plain SGD's final training loss, or the worst one where it is missing.
    """
    found: Figures = {}
    for model, by_name in results.items():
        losses = {name: running_loss(result) for name, result in by_name.items()}
        ends = {name: loss[:, -1].mean() for name, loss in losses.items()}
        target = ends.get("sgd", max(ends.values()))
        found[model] = {}
        for name, result in by_name.items():
            best = best_rate(result)
            accuracies = np.asarray(result["test_accuracy"], float)[best]
            reached = losses[name] <= target
            steps = [int(r.argmax()) + WINDOW if r.any() else np.inf for r in reached]
            found[model][name] = {
                "mean": round(float(accuracies.mean()), 5),
                "lowest": round(float(accuracies.min()), 5),
                "highest": round(float(accuracies.max()), 5),
                "steps": float(np.median(steps)),
                "edge": float(best in (0, len(result["rates"]) - 1)),
            }
    return found


def ranked(found: Figures) -> list[str]:
    """The optimizers by mean accuracy over the models, the best first."""
    names = next(iter(found.values()))
    return sorted(names, key=lambda n: -statistics.mean(rows[n]["mean"] for rows in found.values()))


def table(found: Figures) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: accuracy with its range, and steps to the target; the best is bold."""
    rows = [[f"`{name}`"] for name in ranked(found)]
    for by_name in found.values():
        best = max(row["mean"] for row in by_name.values())
        for cells, name in zip(rows, ranked(found), strict=True):
            row = by_name[name]
            text = f"{row['mean']:.4f} ({row['lowest']:.4f} to {row['highest']:.4f})"
            text += " (edge)" if row["edge"] else ""
            steps = f"{row['steps']:.0f}" if np.isfinite(row["steps"]) else "-"
            cells += [f"**{text}**" if row["mean"] == best else text, steps]
    columns = [cell for model in found for cell in (MODELS[model], "steps")]
    return ["optimizer", *columns], rows


def picture(found: Figures, path: Path) -> None:
    """The accuracy of each optimizer, a panel per model."""
    names = ranked(found)
    height = 1.0 + 0.19 * len(names)
    drawing, axes = style.panels(1, len(found), height=height, sharey=True)
    colours = {name: style.VERMILION if name in OPTAX else style.BLUE for name in names}
    for panel, (model, rows) in zip(axes, found.items(), strict=True):
        style.ranges(panel, {name: rows[name] for name in names}, colours)
        panel.set(xlabel="test accuracy", title=MODELS[model])
    title = "Each optimizer at its best learning rate: mean and range of three seeds"
    drawing.suptitle(f"{title}\nblue: adam_jax, vermilion: Optax; the best on average on top")
    style.save(drawing, path)


def write(path: Path, found: Figures) -> None:
    """Writes one row per line, so that diffs are readable."""
    models = []
    for model, rows in found.items():
        lines = (f"  {strict_json.dumps(n)}: {strict_json.dumps(r)}" for n, r in rows.items())
        models.append(f" {strict_json.dumps(model)}: {{\n" + ",\n".join(lines) + "\n }")
    path.write_text("{\n" + ",\n".join(models) + "\n}\n")


def parts(found: Figures) -> dict[str, str]:
    """By name: the part of the page that shows them."""
    columns, rows = table(found)
    lines = [columns, ["---"] * len(columns), *rows]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return {"compare-table": f"\n{text}"}


def publish(found: Any) -> None:
    """Writes page and picture of the documentation."""
    PAGE.write_text(replaced(PAGE.read_text(), parts(found)))
    picture(found, PICTURE)


if __name__ == "__main__":
    publish(strict_json.loads(FIGURES.read_text()))
