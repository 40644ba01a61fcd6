"""The results of the search, as a table and a plot."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm

from examples.shared import style
from examples.shared.study import Study
from examples.studies.population import Numbers
from examples.studies.tune.search import Rung, described, write_best

COLOURS = (style.GREY, style.SKY, style.BLUE, style.VERMILION, style.BLACK)
MARKERS = "osD^v"


def halving(
    work: Study, rungs: list[Rung], numbers: Numbers, found: dict[str, Any], winner: int
) -> None:
    """Prints the best member, writes runs.csv, best.json, table.md and search.png."""
    reached: dict[int, dict[int, float]] = {}  # By member, by steps: the held-out loss.
    for k, rung in enumerate(rungs):
        result = found[f"rung {k}"]
        for member, loss in zip(result["members"], result["validation_loss"], strict=True):
            reached.setdefault(member, {})[rung.steps] = loss
    by_member = {
        member: described({name: x[member] for name, x in numbers.items()}) for member in reached
    }
    order = sorted(reached, key=lambda m: (-len(reached[m]), list(reached[m].values())[-1]))
    columns = ["member", *by_member[winner], *(f"loss at {rung.steps}" for rung in rungs)]
    rows = [
        [
            member,
            *(x if isinstance(x, str) else f"{x:.4g}" for x in by_member[member].values()),
            *(f"{reached[member].get(rung.steps, float('nan')):.4f}" for rung in rungs),
        ]
        for member in order
    ]
    with (work.folder / "runs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    print(work.table(columns, rows[:5], "table"))
    test = found["test"]
    write_best(work.folder, by_member[winner] | test)
    numbers_text = ", ".join(
        f"{name} {x}" if isinstance(x, str) else f"{name} {x:.3g}"
        for name, x in by_member[winner].items()
    )
    print(f"best of {rungs[0].members}: {numbers_text}")
    print(
        f"held-out loss {test['validation_loss']:.4f}, test accuracy {test['test_accuracy']:.4f}"
        f" after {rungs[-1].steps} steps"
    )
    print(f"{work.folder}/runs.csv, best.json, search.png")
    picture(rungs, reached, by_member, found["heat map"], work.folder / "search.png")


def picture(
    rungs: list[Rung],
    reached: dict[int, dict[int, float]],
    by_member: dict[int, dict[str, Any]],
    heat: dict[str, Any],
    path: Path,
) -> None:
    """The members' losses by learning rate and number of steps; the heat map below."""
    figure, (upper, lower) = style.panels(2, 1, height=3.2)
    for k, rung in enumerate(rungs):
        here = [m for m in reached if rung.steps in reached[m]]
        upper.scatter(
            [by_member[m]["learning_rate"] for m in here],
            [reached[m][rung.steps] for m in here],
            color=COLOURS[k % len(COLOURS)],
            marker=MARKERS[k % len(MARKERS)],
            s=14 + 12 * k,
            zorder=2 + k,
            label=f"{rung.members} trials, {rung.steps:,} steps",
        )
    upper.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="held-out loss (nats)")
    best = min(loss for losses in reached.values() for loss in losses.values())
    upper.set_ylim(best / 1.2, 5)
    upper.set_title("Successive halving: the best third trains three times as long")
    upper.legend()
    heat_map(figure, lower, heat)
    style.save(figure, path)


def heat_map(figure: Any, axis: Any, heat: dict[str, Any]) -> None:
    """Held-out loss by learning rate and b2, with numbers in the cells."""
    loss = np.asarray(heat["validation_loss"])
    shown = np.minimum(loss, 3.0)
    axis.grid(False)
    image = axis.imshow(shown, norm=LogNorm(), cmap="cividis_r", origin="lower", aspect="auto")
    axis.set_xticks(range(len(heat["rates"])), [f"{x:.2g}" for x in heat["rates"]])
    axis.set_yticks(range(len(heat["b2"])), [f"{x:.4g}" for x in heat["b2"]])
    best = np.unravel_index(loss.argmin(), loss.shape)
    for (i, j), value in np.ndenumerate(loss):
        bold = "bold" if (i, j) == best else "normal"
        dark = shown[i, j] > np.sqrt(shown.min() * shown.max())
        text = f"{value:.2f}" if value < 10 else "-"
        colour = "white" if dark else "black"
        axis.text(j, i, text, ha="center", va="center", fontsize=8, color=colour, weight=bold)
    axis.set(xlabel="learning rate", ylabel="b2")
    axis.set_title("Held-out loss, other hyperparameters as in the best; lowest in bold")
    ticks = [
        x for x in (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3) if shown.min() <= x <= shown.max()
    ]
    bar = figure.colorbar(image, ax=axis, label=f"held-out loss after {heat['steps']} steps (nats)")
    bar.set_ticks(ticks, labels=[f"{x:g}" for x in ticks], minor=False)
    bar.minorticks_off()
