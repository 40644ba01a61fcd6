"""Two plots of a run: the training curves, and predictions for test digits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from examples.shared import style

COLOURS = {"train": style.BLUE, "test": style.VERMILION}
FEW = 30  # Epochs; with more, markers would touch.


def curves(
    metrics: list[dict[str, float]], schedule: Callable[[np.ndarray], Any], title: str, path: Path
) -> None:
    """Loss, accuracy and learning rate by epoch; the schedule maps steps to learning rates."""
    figure, (losses, accuracies, rates) = style.panels(1, 3, height=2.8)
    epochs = [entry["epoch"] for entry in metrics]
    marker = "o" if len(epochs) < FEW else ""
    for axes, quantity in ((losses, "loss"), (accuracies, "accuracy")):
        for part, colour in COLOURS.items():
            values = [entry[f"{part}_{quantity}"] for entry in metrics]
            axes.plot(epochs, values, color=colour, marker=marker, label=part)
        axes.legend()
    losses.set(ylabel="cross-entropy (nats)", yscale="log")
    accuracies.set(ylabel="accuracy")
    last = metrics[-1]["test_accuracy"]
    accuracies.annotate(
        f"{last:.4f}",
        (epochs[-1], last),
        (0, -14),
        textcoords="offset points",
        ha="right",
        color=COLOURS["test"],
    )
    steps = np.linspace(0, metrics[-1]["step"], 500)
    by_step = [float(schedule(step)) for step in steps]
    rates.plot(steps / metrics[0]["step"], by_step, color=style.BLACK)
    rates.set(ylabel="learning rate", ylim=(0, None))
    for axes in (losses, accuracies, rates):
        axes.set(xlabel="epoch", xlim=(0, 1.05 * epochs[-1]))
        style.integers(axes.xaxis)
    style.save(figure, path, title)


def predictions(images: np.ndarray, labels: np.ndarray, p: np.ndarray, path: Path) -> None:
    """Above, the first correct predictions; below, the most confident mistakes.

    The title of a digit is the prediction and its probability; if it is wrong, also the true digit.
    """
    rows, columns = 3, 12
    figure = Figure(figsize=(12, 7.8), layout="constrained")
    guesses = p.argmax(axis=1)
    right, wrong = np.flatnonzero(guesses == labels), np.flatnonzero(guesses != labels)
    wrong = wrong[np.argsort(-p[wrong].max(axis=1))]
    titles = (
        f"Correct: {len(right):,} of {len(labels):,} (accuracy {len(right) / len(labels):.4f});"
        " the first ones, with the probability of the predicted digit",
        f"Wrong: {len(wrong):,}; the most confident mistakes",
    )
    halves = figure.subfigures(2, 1, squeeze=False, hspace=0.03)[:, 0]
    for half, title, chosen in zip(halves, titles, (right, wrong), strict=True):
        half.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
        cells = list(half.subplots(rows, columns).flat)
        for cell in cells:
            cell.axis("off")
        for cell, i in zip(cells, chosen, strict=False):
            mistake = guesses[i] != labels[i]
            cell.imshow(images[i], cmap="gray_r", vmin=0, vmax=255)
            text = f"{guesses[i]}, not {labels[i]}" if mistake else f"{guesses[i]}"
            colour = style.VERMILION if mistake else style.BLACK
            cell.set_title(f"{text}\n{p[i].max():.0%}", fontsize=9, color=colour)
    figure.savefig(path, dpi=110)
