"""Two plots of a run: the loss by step, and the benefit of a longer context."""

import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from examples import style
from examples.study import Result

TRAIN, VALIDATION, YARDSTICK = style.BLUE, style.VERMILION, style.TEXT


def loss_curves(
    stretches: list[Result], yardsticks: dict[str, float], rates: np.ndarray, title: str, path: Path
) -> None:
    """Losses by step, with n-gram models for comparison; below, the learning rate.

    Args:
      stretches: of training, each with step, train_losses and validation_loss.
      yardsticks: losses by model name.
      rates: the learning rate of each step.
      title: of the plot.
      path: of the PNG.
    """
    figure, (losses, rate) = style.panels(
        2, 1, width=8, height=3.2, height_ratios=(4, 1), sharex=True
    )
    steps = np.arange(1, len(rates) + 1)
    train = np.concatenate([stretch["train_losses"] for stretch in stretches])
    losses.plot(steps, train, color=TRAIN, linewidth=0.8, label="training batch")
    losses.plot(
        [stretch["step"] for stretch in stretches],
        [stretch["validation_loss"] for stretch in stretches],
        color=VALIDATION,
        marker="o",
        markersize=4,
        label="validation",
    )
    for name, loss in yardsticks.items():
        losses.axhline(loss, color=YARDSTICK, linestyle=(0, (4, 3)), linewidth=1)
        losses.annotate(
            f"{name}, {loss:.2f}",
            (1, loss),
            (-6, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="bottom",
            color=YARDSTICK,
        )
    losses.set(ylabel="cross-entropy (nats per character)", title=title)
    style.legend(losses, loc="upper center")
    bits = losses.secondary_yaxis("right", (_bits, _nats))
    bits.set_ylabel("bits per character")
    bits.spines["right"].set_color(losses.spines["left"].get_edgecolor())
    rate.plot(steps, rates, color=style.BLACK)
    rate.set(xlabel="step", ylabel="learning rate", ylim=(0, None), xlim=(0, len(rates) + 1))
    style.save(figure, path)


def context_curves(transformer: list[float], ngrams: list[float], title: str, path: Path) -> None:
    """Validation loss by the number of characters before the predicted one.

    Args:
      transformer: losses with 1, 2, ... characters seen.
      ngrams: losses with 0, 1, 2, ... characters seen.
      title: of the plot.
      path: of the PNG.
    """
    figure, (axis,) = style.panels(1, 1, width=8, height=4.6)
    seen, means = _octaves(np.asarray(transformer))
    axis.plot(seen, means, color=VALIDATION, marker="o", markersize=4, label="transformer")
    axis.plot(
        range(1, len(ngrams)),
        ngrams[1:],
        color=TRAIN,
        marker="s",
        markersize=4,
        label="n-grams (Witten-Bell)",
    )
    axis.set_xscale("log", base=2)
    powers = 2 ** np.arange(int(np.log2(len(transformer))) + 1)
    axis.set_xticks(powers, map(str, powers))
    axis.set(
        xlabel="characters seen before the predicted one",
        ylabel="validation loss (nats per character)",
    )
    axis.set_title(textwrap.fill(title, 100), fontsize=10)
    style.legend(axis)
    style.save(figure, path)


def _bits(nats: Any) -> Any:
    return nats / math.log(2)


def _nats(bits: Any) -> Any:
    return bits * math.log(2)


def _octaves(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over quarters of octaves, because single losses are noisy."""
    edges = np.unique((2 ** np.arange(0, np.log2(len(losses) + 1) + 0.25, 0.25)).astype(int))
    edges = np.append(edges[edges < len(losses)], len(losses) + 1)
    parts = [np.arange(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return np.array([part.mean() for part in parts]), np.array(
        [losses[part - 1].mean() for part in parts]
    )
