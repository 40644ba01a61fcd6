"""Two plots of a run: the training curves, and predictions for test digits."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples import style

COLOURS = {"train": style.BLUE, "test": style.VERMILION}
MARKERS = {"train": "o", "test": "s"}
FEW = 30  # Epochs; with more, markers would touch.


def curves(metrics: list[dict[str, float]], title: str, path: Path) -> None:
    """Loss, accuracy and learning rate by epoch."""
    figure, (losses, accuracies, rates) = style.panels(1, 3, width=4.0, height=3.6)
    epochs = [entry["epoch"] for entry in metrics]
    few = len(epochs) < FEW
    for axes, quantity in ((losses, "loss"), (accuracies, "accuracy")):
        for part, colour in COLOURS.items():
            values = [entry[f"{part}_{quantity}"] for entry in metrics]
            marker = MARKERS[part] if few else ""
            axes.plot(epochs, values, color=colour, marker=marker, label=part)
            if len(epochs) == 1:
                _note(axes, epochs[0], values[0], colour)
        style.legend(axes)
    losses.set_ylabel("cross-entropy (nats)")
    if len(epochs) > 1:
        losses.set_yscale("log")
    else:
        losses.set_ylim(0, None)
    accuracies.set_ylabel("accuracy")
    accuracies.margins(y=0.15)
    if len(epochs) > 1:
        _note(accuracies, epochs[-1], metrics[-1]["test_accuracy"], COLOURS["test"], (0, -14))
    learning_rates = [entry["learning_rate"] for entry in metrics]
    rates.plot(epochs, learning_rates, color=style.BLACK, marker="o" if few else "")
    rates.set(ylabel="learning rate at the end of the epoch", ylim=(0, None))
    if not any(learning_rates):
        rates.set_ylim(0, 1)  # A schedule that ends in its first epoch is 0 everywhere.
    for axes in (losses, accuracies, rates):
        axes.set(xlabel="epoch", xlim=(0, 1.05 * epochs[-1]))
        style.integers(axes.xaxis)
    style.save(figure, path, title, dpi=120)


def _note(
    axes: Axes, x: float, y: float, colour: str, offset: tuple[float, float] = (-8, 0)
) -> None:
    va = "center" if offset[1] == 0 else "baseline"
    axes.annotate(
        f"{y:.4f}", (x, y), offset, textcoords="offset points", ha="right", va=va, color=colour
    )


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
