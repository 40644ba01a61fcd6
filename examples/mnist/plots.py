"""Two pictures of a run: how it went, and what the model says to digits it has not seen."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

TRAIN, TEST, WRONG = "#4477aa", "#ee6677", "#cc3311"


def curves(metrics: list[dict[str, float]], title: str, path: Path) -> None:
    """Loss, accuracy and learning rate by epoch."""
    epochs = [entry["epoch"] for entry in metrics]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    marker = "o" if len(epochs) < 30 else ""
    for axis, quantity in zip(axes, ("loss", "accuracy"), strict=False):
        for part, colour in (("train", TRAIN), ("test", TEST)):
            values = [entry[f"{part}_{quantity}"] for entry in metrics]
            axis.plot(epochs, values, color=colour, marker=marker, label=part)
        axis.set(xlabel="epoch", ylabel=quantity)
        axis.legend(frameon=False)
    axes[0].set_yscale("log")
    axes[0].set_ylabel("cross-entropy (nats)")
    last = metrics[-1]["test_accuracy"]
    axes[1].annotate(
        f"{last:.4f}", (epochs[-1], last), (0, -14), textcoords="offset points", ha="right"
    )
    axes[2].plot(
        epochs, [entry["learning_rate"] for entry in metrics], color="black", marker=marker
    )
    axes[2].set(xlabel="epoch", ylabel="learning rate, end of epoch", ylim=(0, None))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def predictions(images: np.ndarray, labels: np.ndarray, p: np.ndarray, path: Path) -> None:
    """A grid of digits with what the model takes them for; wrong ones in red, with the truth.

    The lower half are mistakes, the most confident first, as far as there are any. The upper half
    are the first digits of the set that are not shown below.
    """
    rows, columns = 6, 12
    guesses = p.argmax(axis=1)
    wrong = np.flatnonzero(guesses != labels)
    wrong = wrong[np.argsort(-p[wrong].max(axis=1))][: rows * columns // 2]
    usual = np.setdiff1d(np.arange(len(labels)), wrong)[: rows * columns // 2]
    figure = Figure(figsize=(12, 7.4), layout="constrained")
    axes = figure.subplots(rows, columns)
    cells = list(axes.flat)
    for cell in cells:
        cell.axis("off")
    half = len(cells) // 2
    for cell, i in [
        *zip(cells[:half], usual, strict=False),
        *zip(cells[half:], wrong, strict=False),
    ]:
        right = guesses[i] == labels[i]
        cell.imshow(images[i], cmap="gray_r", vmin=0, vmax=255)
        text = f"{guesses[i]}" if right else f"{guesses[i]}, not {labels[i]}"
        cell.set_title(f"{text}\n{p[i].max():.0%}", fontsize=9, color="black" if right else WRONG)
    accuracy = (guesses == labels).mean()
    errors = int((guesses != labels).sum())
    figure.suptitle(
        f"{len(labels):,} digits, {errors} wrong (accuracy {accuracy:.4f})."
        f" Above: the first of the others. Below, in red: the most confident mistakes."
    )
    figure.savefig(path, dpi=110)
