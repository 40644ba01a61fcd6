"""The papers' figures, from the results of this run."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # Files only: no window system is needed.

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import LogLocator  # noqa: E402

from examples.paper import counterexample, vae  # noqa: E402
from examples.paper.race import best  # noqa: E402
from examples.study import Result  # noqa: E402

COLOURS = {
    "Adam": "#ee6677",
    "SGD Nesterov": "#4477aa",
    "SGD Nesterov 0.9": "#4477aa",
    "SGD Nesterov 0.99": "#66ccee",
    "AdaGrad α/√t": "#ccbb44",
    "AdaGrad": "#228833",
    "RMSProp": "#aa3377",
    "AdaDelta": "#66ccee",
    "AMSGrad": "#4477aa",
    "corrected": "#ee6677",
    "uncorrected": "#4477aa",
}


def save(figure: Figure, path: Path) -> None:
    """Writes a picture, without the frames' upper and right lines."""
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def race(results: Mapping[str, Result], title: str, path: Path) -> None:
    """Left the best runs by epoch, right the last cost by learning rate.

    Args:
      results: by optimizer: {"rates": [runs], "costs": [runs, epochs]}.
      title: says what one sees.
      path: of the picture.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name, result in results.items():
        run, colour = best(result), COLOURS[name]
        epochs = np.arange(1, len(run.costs) + 1)
        left.plot(epochs, run.costs, color=colour, label=f"{name}, {run.rate:.2g}")
        last = np.array(result["costs"], float)[:, -1]
        right.plot(result["rates"], last, color=colour, marker="o", markersize=4)
        right.plot(run.rate, run.costs[-1], color=colour, marker="*", markersize=14)
    lasts = np.concatenate([np.array(r["costs"], float)[:, -1] for r in results.values()])
    left.set(xlabel="epoch", ylabel="training cost (nats)", yscale="log")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.set_title("each at its best learning rate", fontsize=10)
    left.legend(frameon=False, title="learning rate")
    # What diverged leaves the picture upwards.
    ylim = (np.nanmin(lasts) / 1.2, min(np.nanmax(lasts) * 1.2, np.log(10) * 1.5))
    right.set(xscale="log", yscale="log", ylim=ylim)
    right.set(xlabel="learning rate", ylabel="cost in the last epoch (nats)")
    right.set_title("all learning rates; the star is the best", fontsize=10)
    for axis in (left, right):
        label_logs(axis)
    winner = min(results, key=lambda name: best(results[name]).costs[-1])
    figure.suptitle(f"{title}: {winner} ends lowest")
    save(figure, path)


def correction(results: Mapping[str, Result], title: str, path: Path) -> None:
    """Loss over step size with and without bias correction: a row for each b1, a column for b2.

    Args:
      results: by optimizer and panel: {"log10_rates": [runs], "costs": [runs, epochs]}.
      title: says what one sees.
      path: of the picture.
    """
    figure, axes = plt.subplots(
        len(vae.B1), len(vae.B2), figsize=(11, 6.4), layout="constrained", sharex=True, sharey=True
    )
    costs = np.array([result["costs"] for result in results.values()], float)
    lowest, highest = np.nanmin(costs), np.nanmax(costs[:, 0, 0])  # Of the smallest step size.
    top = highest * 1.1
    for axis, panel in zip(axes.flat, vae.PANELS, strict=True):
        for name in vae.OPTIMIZERS:
            result, colour = results[f"{name} {panel}"], COLOURS[name]
            draw_losses(axis, result, name, colour, top)
        axis.set_title(panel.replace(" ", ", "), fontsize=10)
        axis.set(yscale="log", ylim=(lowest * 0.9, top * 1.1))
        label_logs(axis)
    for axis in axes[-1]:
        axis.set_xlabel("log10 of the step size")
    for axis in axes[:, 0]:
        axis.set_ylabel("loss (nats per digit)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title)
    save(figure, path)


def label_logs(axis: Axes) -> None:
    """Plain numbers on a logarithmic axis that spans a decade or two."""
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("")


def draw_losses(axis: Axes, result: Result, name: str, colour: str, top: float) -> None:
    """The first epoch dashed, the last solid, with a cross at the top where it is beyond that."""
    rates, costs = np.array(result["log10_rates"]), np.array(result["costs"], float)
    for epoch, style, alpha in ((0, "--", 0.6), (costs.shape[1] - 1, "-", 1.0)):
        loss = np.nan_to_num(costs[:, epoch], nan=np.inf)
        seen = loss <= top
        label = f"{name}, epoch {epoch + 1}"
        line = np.where(seen, loss, np.nan)
        axis.plot(rates, line, style, color=colour, alpha=alpha, marker=".", label=label)
    offset = 0.05 if name == "corrected" else -0.05  # Side by side where both diverged.
    axis.plot(rates[~seen] + offset, np.full((~seen).sum(), top), "x", color=colour)


def regret(results: Mapping[str, Result], title: str, path: Path) -> None:
    """Above x, below the average regret, over the steps; a column for each problem.

    Args:
      results: by problem and optimizer: what `counterexample.play` returns.
      title: says what one sees.
      path: of the picture.
    """
    figure, axes = plt.subplots(
        2, len(counterexample.PROBLEMS), figsize=(11, 5.8), layout="constrained", sharex=True
    )
    for (above, below), (name, problem) in zip(
        axes.T, counterexample.PROBLEMS.items(), strict=True
    ):
        for optimizer in counterexample.OPTIMIZERS:
            result, colour = results[f"{name} {optimizer}"], COLOURS[optimizer]
            for axis, quantity in ((above, "x"), (below, "regret")):
                values = np.array(result[quantity])
                if len(values) > 1:
                    axis.fill_between(
                        result["steps"], values.min(0), values.max(0), color=colour, alpha=0.2, lw=0
                    )
                axis.plot(result["steps"], values.mean(0), color=colour, label=optimizer)
        rare = "p = 0.01" if problem.period is None else f"every {problem.period} steps"
        above.set_title(f"{name}: {problem.large:g}x ({rare}), else {problem.small:g}x", fontsize=9)
        if problem.period is None:
            below.set_title("line: mean of the seeds; band: all of them", fontsize=9)
        above.set(ylim=(-1.1, 1.1), xscale="log")
        below.set_xlabel("step t")
        below.axhline(0, color="black", lw=0.6)
    axes[0, 0].set_ylabel("x, mean of the last steps")
    axes[1, 0].set_ylabel("average regret, next to x = -1")
    axes[0, 0].legend(frameon=False)
    figure.suptitle(title)
    save(figure, path)
