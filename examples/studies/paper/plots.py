"""The papers' figures, from the results of this run."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from examples.shared import style
from examples.shared.study import Result
from examples.studies.paper import counterexample, vae
from examples.studies.paper.race import best

COLOURS = {
    "Adam": style.VERMILION,
    "SGD Nesterov": style.BLUE,
    "SGD Nesterov 0.9": style.BLUE,
    "SGD Nesterov 0.99": style.SKY,
    "AdaGrad α/√t": style.BLACK,
    "AdaGrad": style.GREEN,
    "RMSProp": style.PINK,
    "AdaDelta": style.SKY,
    "AMSGrad": style.BLUE,
    "corrected": style.VERMILION,
    "uncorrected": style.BLUE,
}


def race(results: Mapping[str, Result], title: str, path: Path) -> None:
    """Left, the best runs by epoch; right, the last cost by learning rate.

    Args:
      results: by optimizer: {"rates": [runs], "costs": [runs, epochs]}.
      title: the finding of the plot.
      path: of the picture.
    """
    figure, (left, right) = style.panels(1, 2)
    for name, result in results.items():
        run, colour = best(result), COLOURS[name]
        epochs = np.arange(1, len(run.costs) + 1)
        left.plot(epochs, run.costs, color=colour, label=f"{name}, {run.rate:.2g}")
        last = np.array(result["costs"], float)[:, -1]
        right.plot(result["rates"], last, color=colour, marker="o", markersize=4)
        right.plot(run.rate, run.costs[-1], color=colour, marker="*", markersize=14)
    lasts = np.concatenate([np.array(r["costs"], float)[:, -1] for r in results.values()])
    left.set(xlabel="epoch", ylabel="training cost (nats)", yscale="log")
    style.integers(left.xaxis)
    left.set_title("each at its best learning rate")
    left.legend(title="learning rate")
    # Diverged runs leave the plot at the top.
    ylim = (np.nanmin(lasts) / 1.2, min(np.nanmax(lasts) * 1.2, np.log(10) * 1.5))
    right.set(xscale="log", yscale="log", ylim=ylim)
    right.set(xlabel="learning rate", ylabel="training cost in the last epoch (nats)")
    right.set_title("by learning rate; star: the best")
    winner = min(results, key=lambda name: best(results[name]).costs[-1])
    style.save(figure, path, f"{title}: {winner} ends lowest")


def correction(results: Mapping[str, Result], title: str, path: Path) -> None:
    """Loss over step size with and without bias correction: a row per b1, a column per b2.

    Args:
      results: by optimizer and panel: {"log10_rates": [runs], "costs": [runs, epochs]}.
      title: the finding of the plot.
      path: of the picture.
    """
    figure, axes = style.panels(len(vae.B1), len(vae.B2), height=2.4, sharex=True, sharey=True)
    costs = np.array([result["costs"] for result in results.values()], float)
    lowest, highest = np.nanmin(costs), np.nanmax(costs[:, 0, 0])  # Of the smallest step size.
    top = highest * 1.1
    for axis, panel in zip(axes, vae.PANELS, strict=True):
        for name in vae.OPTIMIZERS:
            result, colour = results[f"{name} {panel}"], COLOURS[name]
            draw_losses(axis, result, name, colour, top)
        axis.set_title(panel.replace(" ", ", "))
        axis.set(yscale="log", ylim=(lowest * 0.9, top * 1.1))
    for axis in axes[-len(vae.B2) :]:
        axis.set_xlabel("step size")
    for axis in axes[:: len(vae.B2)]:
        axis.set_ylabel("loss (nats per digit)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    style.save(figure, path, title)


def draw_losses(axis: Axes, result: Result, name: str, colour: str, top: float) -> None:
    """First epoch dashed, last epoch solid; crosses at the top mark values beyond the plot."""
    rates, costs = 10.0 ** np.array(result["log10_rates"]), np.array(result["costs"], float)
    for epoch, dashes, alpha in ((0, "--", 0.6), (costs.shape[1] - 1, "-", 1.0)):
        loss = np.nan_to_num(costs[:, epoch], nan=np.inf)
        seen = loss <= top
        label = f"{name}, epoch {epoch + 1}"
        line = np.where(seen, loss, np.nan)
        axis.loglog(rates, line, dashes, color=colour, alpha=alpha, marker=".", label=label)
    offset = 1.12 if name == "corrected" else 1 / 1.12  # Side by side where both diverged.
    axis.plot(rates[~seen] * offset, np.full((~seen).sum(), top), "x", color=colour)


def regret(results: Mapping[str, Result], title: str, path: Path) -> None:
    """Above x, below the average regret, over the steps; a column per problem.

    Args:
      results: by problem and optimizer, from `counterexample.play`.
      title: the finding of the plot.
      path: of the picture.
    """
    count = len(counterexample.PROBLEMS)
    figure, axes = style.panels(2, count, height=2.3, sharex=True)
    for above, below, (name, problem) in zip(
        axes[:count], axes[count:], counterexample.PROBLEMS.items(), strict=True
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
        above.set_title(
            f"{name}: loss {problem.large:g}x ({rare}), else {problem.small:g}x", fontsize=7
        )
        if problem.period is None:
            below.set_title("line: mean; band: range of the seeds")
        above.set(ylim=(-1.1, 1.1), xscale="log")
        below.set_xlabel("step t")
        below.axhline(0, color=style.BLACK, lw=0.6)
    axes[0].set_ylabel("x, mean over recent steps")
    axes[count].set_ylabel("average regret relative to x = −1")
    axes[0].legend()
    style.save(figure, path, title)
