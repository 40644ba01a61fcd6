"""The comparison's table, its picture, and what can be said of it in words."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from examples.study import Result, Study

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

Results = dict[str, dict[str, Result]]
"""By model, by optimizer: what `measure` returned."""

WINDOW = 25
"""Steps over which a training loss is averaged before it is compared with the target."""


def best_rate(result: Result) -> int:
    """The index of the learning rate with the least held-out loss, over the seeds."""
    loss = np.asarray(result["validation_loss"], float).mean(axis=1)
    return int(np.where(np.isfinite(loss), loss, np.inf).argmin())


def running_loss(result: Result) -> np.ndarray:
    """The training loss at the best rate, a running mean: [seeds, steps - WINDOW + 1]."""
    losses = np.asarray(result["step_loss"], float)[best_rate(result)]
    window = np.ones(WINDOW) / WINDOW
    return np.stack([np.convolve(loss, window, mode="valid") for loss in losses])


def target(results: dict[str, Result]) -> float:
    """The loss to reach: where plain SGD ends, the mean of its seeds; else the worst last loss."""
    ends = {name: float(running_loss(result)[:, -1].mean()) for name, result in results.items()}
    return ends.get("sgd", max(ends.values()))


def steps_to(result: Result, loss: float) -> float:
    """Optimizer steps until the running loss is there, the median of the seeds; infinity if not."""
    reached = running_loss(result) <= loss
    first = [int(r.argmax()) + WINDOW if r.any() else np.inf for r in reached]
    return float(np.median(first))


def accuracies(result: Result) -> np.ndarray:
    """Test accuracy of each seed at the best rate."""
    return np.asarray(result["test_accuracy"])[best_rate(result)]


def ranked(results: dict[str, Result]) -> list[str]:
    """The optimizers, the most accurate first."""
    return sorted(results, key=lambda name: -accuracies(results[name]).mean())


def table(work: Study, results: Results) -> str:
    """Writes and returns the table: a row for each model and optimizer, the best first."""
    columns = ["model", "optimizer", "learning rate", "test accuracy", "lowest", "highest"]
    columns += ["test loss", "train loss", "steps to target", "seconds to target"]
    rows: list[list[Any]] = []
    for model, by_name in results.items():
        loss = target(by_name)
        for name in ranked(by_name):
            result = by_name[name]
            best, accuracy = best_rate(result), accuracies(result)
            steps = steps_to(result, loss)
            edge = best in (0, len(result["rates"]) - 1)
            rows.append(
                [
                    *(model, name, f"{result['rates'][best]:.2g}{' (edge)' if edge else ''}"),
                    *(f"{x:.4f}" for x in (accuracy.mean(), accuracy.min(), accuracy.max())),
                    f"{np.mean(result['test_loss'][best]):.4f}",
                    f"{running_loss(result)[:, -1].mean():.4f}",
                    f"{steps:.0f}" if np.isfinite(steps) else "-",
                    f"{steps * result['step_seconds']:.3f}" if np.isfinite(steps) else "-",
                ]
            )
    return work.table(columns, rows, "table")


def verdict(results: Results) -> str:
    """Who won, from whom its seeds cannot tell it; where Adam does not win, it says so."""
    lines = []
    for model, by_name in results.items():
        order = ranked(by_name)
        loss = target(by_name)
        fastest = min(order, key=lambda name: steps_to(by_name[name], loss))
        first = accuracies(by_name[order[0]])
        lines.append(
            f"{model}: {order[0]} is the most accurate ({first.mean():.4f}), and {fastest} the"
            f" first at the training loss {loss:.3f},"
            f" after {steps_to(by_name[fastest], loss):.0f} steps."
        )
        alike = [n for n in order[1:] if accuracies(by_name[n]).max() >= first.min()]
        lines.append(
            f"  The range of its seeds ({first.min():.4f} to {first.max():.4f}) overlaps those of"
            f" {len(alike)} of the {len(order) - 1} others: three seeds do not tell them apart."
        )
        if "adam" in by_name and order[0] != "adam":
            ours = accuracies(by_name["adam"])
            apart = "among" if "adam" in alike else "not among"
            lines.append(
                f"  Adam does not win: place {order.index('adam') + 1} of {len(order)},"
                f" {ours.mean():.4f} ({ours.min():.4f} to {ours.max():.4f}), {apart} those."
            )
    return "\n".join(lines)


# Optax's in dashes; colours that the colour-blind can tell apart, ten each.
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
COLOURS += ("#000000", "#ee8866", "#44bb99")
OPTAX = ("sgd", "momentum", "nesterov", "adagrad", "adadelta", "rmsprop")


def figure(results: Results, chunk: int, path: Path) -> None:
    """A row a model: training loss and held-out accuracy by step, and the test accuracies."""
    rows = len(results)
    picture, axes = plt.subplots(
        rows, 3, figsize=(17, 4.2 * rows), layout="constrained", squeeze=False
    )
    for (model, by_name), (left, middle, right) in zip(results.items(), axes, strict=True):
        styles = {name: style_of(name, by_name) for name in by_name}
        for name, result in by_name.items():
            loss, style = running_loss(result), styles[name]
            steps = np.arange(WINDOW, WINDOW + loss.shape[1])
            left.plot(steps, loss.mean(axis=0), label=name, **style)
            if name in ("adam", "sgd"):
                left.fill_between(
                    steps, loss.min(axis=0), loss.max(axis=0), color=style["color"], alpha=0.2
                )
            accuracy = np.asarray(result["accuracy"])[best_rate(result)]
            seen = chunk * np.arange(1, accuracy.shape[1] + 1)
            middle.plot(seen, accuracy.mean(axis=0), **style)
        left.axhline(target(by_name), color="black", linewidth=0.6, linestyle=":")
        left.set(xlabel="optimizer steps", ylabel="training loss (nats)", title=model)
        left.set_yscale("log")
        ends = [np.asarray(r["accuracy"])[best_rate(r), :, -1].mean() for r in by_name.values()]
        middle.set(xlabel="optimizer steps", ylabel="held-out accuracy", title=model)
        middle.set_ylim(max(0.0, min(ends) - 0.08), None)
        for y, name in enumerate(reversed(ranked(by_name))):
            seeds = accuracies(by_name[name])
            style = styles[name] | {"linewidth": 2.5}
            right.plot([seeds.min(), seeds.max()], [y, y], **style)
            right.plot(seeds.mean(), y, "o", color=style["color"])
        right.set_yticks(range(len(by_name)), reversed(ranked(by_name)))
        right.set(xlabel="test accuracy: mean and range of the seeds", title=model)
        for axis in (left, middle, right):
            axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=8, frameon=False)
    picture.suptitle(
        "Each optimizer at its best learning rate, mean of three seeds (bands: the range of sgd and"
        " adam). Dashed: Optax's. Dotted: the target, where SGD ends."
    )
    picture.savefig(path, dpi=100)
    plt.close(picture)


def style_of(name: str, by_name: dict[str, Result]) -> dict[str, Any]:
    """A colour of its own among Optax's, or among ours; Optax's are dashed."""
    alike = [n for n in by_name if (n in OPTAX) == (name in OPTAX)]
    dashed = "--" if name in OPTAX else "-"
    return {"color": COLOURS[alike.index(name)], "linestyle": dashed, "linewidth": 1.4}
