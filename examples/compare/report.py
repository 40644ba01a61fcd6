"""The comparison's table and its picture."""

from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np

from examples.compare import figures
from examples.compare.figures import WINDOW, Models, Results, Row, best_rate, running_loss
from examples.compare.optimizers import OPTAX
from examples.labels import apart
from examples.study import Result, Study

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402


def table(work: Study, results: Results, models: Models) -> str:
    """Writes and returns the table: a row for each model and optimizer, the best first."""
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


# Those that a reader looks for have a colour and a label, the others are grey: no eye tells twenty
# colours apart. Okabe and Ito's, which are told apart with every kind of colour vision.
ROLES = {
    "adam": "#0072b2",
    "sgd": "#000000",
    "the most accurate": "#d55e00",
    "the first at the target": "#009e73",
    "the last": "#cc79a7",
}
GREY = "#b8b8b8"
LABEL = 0.06  # The height of a label, as a part of the panel's.


def colours(rows: dict[str, Row]) -> dict[str, str]:
    """The colours of the optimizers that have one; of two roles the first in the list counts."""
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
    """A row a model: training loss and held-out accuracy by step, and the test accuracies.

    Args:
      results: of all models.
      models: their figures.
      chunk: optimizer steps between two measurements of the held-out accuracy.
      path: of the PNG.
    """
    height = 1.3 + 0.17 * max(map(len, models.values()))
    drawing, axes = plt.subplots(
        *(len(models), 3),
        figsize=(15, max(3.6, height) * len(models)),
        layout="constrained",
        squeeze=False,
    )
    for (model, rows), (left, middle, right) in zip(models.items(), axes, strict=True):
        own, by_name = colours(rows), results[model]
        losses = {name: running_loss(result) for name, result in by_name.items()}
        accuracies = {name: held_out(result) for name, result in by_name.items()}
        for panel, curves, start, every in (
            (left, losses, WINDOW, 1),
            (middle, accuracies, chunk, chunk),
        ):
            for name, curve in curves.items():
                x = start + every * np.arange(curve.shape[1])
                panel.plot(x, curve.mean(axis=0), **style(name, own))
            panel.set(xlabel="optimizer steps")
        left.axhline(figures.target(by_name), color="black", linewidth=0.6, linestyle=":")
        left.set_yscale("log")
        left.set(ylabel="training loss (nats)", title=model)
        ends = [curve[:, -1].mean() for curve in accuracies.values()]
        middle.set_ylim(max(0.0, min(ends) - 0.08), None)
        middle.set(ylabel="held-out accuracy", title=model)
        label_ends(left, losses, own, upwards=True)
        label_ends(middle, accuracies, own, upwards=False)
        intervals(right, rows, own)
        right.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
        right.set(xlabel="test accuracy: mean and range of the seeds", title=model)
        for panel in (left, middle, right):
            panel.spines[["top", "right"]].set_visible(False)
    drawing.suptitle(
        "Each optimizer at its best learning rate, mean of three seeds. Blue: adam; black: sgd; of"
        " each model orange: the most accurate, green: the first at the target, pink: the last."
        "\nDashed or hollow: Optax's. Dotted: the target, where sgd ends. Shaded: the seeds of the"
        " most accurate.",
        fontsize=10,
    )
    drawing.savefig(path, dpi=100)
    plt.close(drawing)


def held_out(result: Result) -> np.ndarray:
    """The held-out accuracy at the best rate: [seeds, chunks]."""
    return np.asarray(result["accuracy"], float)[best_rate(result)]


def style(name: str, own: dict[str, str]) -> dict[str, Any]:
    """Of a line; those with a colour are in front."""
    front = name in own
    return {
        "color": own.get(name, GREY),
        "linestyle": "--" if name in OPTAX else "-",
        "linewidth": 1.8 if front else 0.9,
        "zorder": 3 if front else 2,
    }


def label_ends(
    panel: Axes, curves: dict[str, np.ndarray], own: dict[str, str], upwards: bool
) -> None:
    """The names of the coloured lines at their last points, moved apart in one direction."""
    ends = {name: curves[name][:, -1].mean() for name in own}
    to_panel = panel.transScale + panel.transLimits
    heights = [float(to_panel.transform((1.0, y))[1]) for y in ends.values()]
    sign = 1 if upwards else -1
    places = [sign * y for y in apart([(0.0, sign * y) for y in heights], LABEL)]
    for name, y in zip(ends, places, strict=True):
        panel.annotate(
            f" {name}",
            (1.0, y),
            xycoords="axes fraction",
            va="center",
            color=own[name],
            fontsize=9,
            annotation_clip=False,
        )
    panel.margins(x=0)


def intervals(panel: Axes, rows: dict[str, Row], own: dict[str, str]) -> None:
    """Mean and range of the seeds' test accuracies, the most accurate optimizer on top."""
    names = figures.ranked(rows)[::-1]
    best = rows[names[-1]]
    panel.axvspan(best["lowest"], best["highest"], color="#eeeeee", zorder=0)
    for y, name in enumerate(names):
        row, colour = rows[name], own.get(name, "#777777")
        panel.plot([row["lowest"], row["highest"]], [y, y], color=colour, linewidth=1.8)
        inside = "white" if name in OPTAX else colour
        panel.plot(row["accuracy"], y, "o", markersize=5, color=colour, markerfacecolor=inside)
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.set_ylim(-0.7, len(names) - 0.3)
    for label, name in zip(panel.get_yticklabels(), names, strict=True):
        label.set_color(own.get(name, "#333333"))
