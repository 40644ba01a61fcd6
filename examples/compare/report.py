"""The comparison's table and its picture."""

from pathlib import Path
from typing import Any

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes

from examples import style
from examples.compare import figures
from examples.compare.figures import WINDOW, Models, Results, Row, best_rate, running_loss
from examples.compare.optimizers import OPTAX
from examples.study import Result, Study


def table(work: Study, results: Results, models: Models) -> str:
    """Writes and returns the table: a row per model and optimizer, the best first."""
    columns = ["model", "optimizer", "learning rate", "test accuracy", "lowest", "highest"]
    columns += ["test loss", "train loss", "steps to target", "seconds to target"]
    cells: list[list[Any]] = []
    for model, rows in models.items():
        for name in figures.ranked(rows):
            result, row = results[model][name], rows[name]
            best, steps = best_rate(result), row["steps"]
            rate = f"{result['rates'][best]:.2g}{' (edge)' if row['edge'] else ''}"
            cells.append(
                [
                    *(model, name, rate),
                    *(f"{x:.4f}" for x in (row["accuracy"], row["lowest"], row["highest"])),
                    f"{np.mean(result['test_loss'][best]):.4f}",
                    f"{running_loss(result)[:, -1].mean():.4f}",
                    f"{steps:.0f}" if np.isfinite(steps) else "-",
                    f"{steps * result['step_seconds']:.3f}" if np.isfinite(steps) else "-",
                ]
            )
    return work.table(columns, cells, "table")


# Optimizers that readers look for have a colour and a label. The others are grey, because twenty
# colours cannot be told apart.
ROLES = {
    "adam": style.BLUE,
    "sgd": style.BLACK,
    "the most accurate": style.VERMILION,
    "the first at the target": style.GREEN,
    "the last": style.PINK,
}


def colours(rows: dict[str, Row]) -> dict[str, str]:
    """The colours of the highlighted optimizers; of two roles the first in the list wins."""
    first, last = figures.ranked(rows)[0], figures.ranked(rows)[-1]
    inside = {
        "adam": "adam",
        "sgd": "sgd",
        "the most accurate": first,
        "the first at the target": figures.fastest(rows),
        "the last": last,
    }
    found: dict[str, str] = {}
    for role, name in inside.items():
        if name in rows:
            found.setdefault(name, ROLES[role])
    return found


def picture(results: Results, models: Models, chunk: int, path: Path) -> None:
    """A row per model: training loss and held-out accuracy by step, and the test accuracies.

    Args:
      results: of all models.
      models: their figures.
      chunk: optimizer steps between two measurements of the held-out accuracy.
      path: of the PNG.
    """
    height = max(3.6, 1.3 + 0.17 * max(map(len, models.values())))
    drawing, axes = style.panels(len(models), 3, width=4.5, height=height)
    rows_of_axes = zip(axes[::3], axes[1::3], axes[2::3], strict=True)
    labels: list[tuple[Axes, dict[str, np.ndarray], dict[str, str]]] = []
    for (model, rows), (left, middle, right) in zip(models.items(), rows_of_axes, strict=True):
        own, by_name = colours(rows), results[model]
        losses = {name: running_loss(result) for name, result in by_name.items()}
        accuracies = {name: held_out(result) for name, result in by_name.items()}
        for panel, curves, start, every in (
            (left, losses, WINDOW, 1),
            (middle, accuracies, chunk, chunk),
        ):
            for name, curve in curves.items():
                x = start + every * np.arange(curve.shape[1])
                panel.plot(x, curve.mean(axis=0), **look(name, own))
            panel.set(xlabel="optimizer steps")
            panel.margins(x=0)
            labels.append((panel, curves, own))
        left.axhline(figures.target(by_name), color=style.BLACK, linewidth=0.8, linestyle=":")
        left.set_yscale("log")
        left.set(ylabel=f"training loss (nats), mean of {WINDOW} batches", title=model)
        ends = [curve[:, -1].mean() for curve in accuracies.values()]
        middle.set_ylim(max(0.0, min(ends) - 0.08), None)
        middle.set(ylabel="held-out accuracy", title=model)
        intervals(right, rows, own)
        right.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
        right.set(xlabel="test accuracy", title=f"{model}: mean and range, 3 seeds")
        right.title.set_fontsize(10)
    drawing.suptitle(
        "Each optimizer at its best learning rate, mean of three seeds. Blue: adam; black: sgd."
        "\nOn each model, vermilion: most accurate; green: first at the target; pink: least"
        " accurate; grey: the others. Dashed lines, hollow dots: Optax's."
        "\nDotted: the target, sgd's final training loss. Shaded: range of the most accurate.",
        fontsize=10,
    )
    for panel, curves, own in labels:
        ends = {name: (float(curves[name][:, -1].mean()), own[name]) for name in own}
        style.label_ends(panel, ends)
    style.save(drawing, path, dpi=100)


def held_out(result: Result) -> np.ndarray:
    """The held-out accuracy at the best rate: [seeds, chunks]."""
    return np.asarray(result["accuracy"], float)[best_rate(result)]


def look(name: str, own: dict[str, str]) -> dict[str, Any]:
    """The style of a line; lines with a colour are in front."""
    front = name in own
    return {
        "color": own.get(name, style.GREY),
        "linestyle": "--" if name in OPTAX else "-",
        "linewidth": 1.8 if front else 0.9,
        "zorder": 3 if front else 2,
    }


def intervals(panel: Axes, rows: dict[str, Row], own: dict[str, str]) -> None:
    """Mean and range of the seeds' test accuracies, the most accurate optimizer on top."""
    names = figures.ranked(rows)[::-1]
    best = rows[names[-1]]
    panel.axvspan(best["lowest"], best["highest"], color="#eeeeee", zorder=0)
    panel.grid(False)
    for y, name in enumerate(names):
        row, colour = rows[name], own.get(name, "#777777")
        panel.plot([row["lowest"], row["highest"]], [y, y], color=colour, linewidth=1.8)
        inside = "white" if name in OPTAX else colour
        panel.plot(row["accuracy"], y, "o", markersize=5, color=colour, markerfacecolor=inside)
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.set_ylim(-0.7, len(names) - 0.3)
    for label, name in zip(panel.get_yticklabels(), names, strict=True):
        label.set_color(own.get(name, "#333333"))
