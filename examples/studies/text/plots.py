"""The loss of a run by step."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from examples.shared import style
from examples.shared.study import Result

TRAIN, VALIDATION, YARDSTICK = style.BLUE, style.VERMILION, style.TEXT


def loss_curves(
    stretches: list[Result], yardsticks: dict[str, float], rates: np.ndarray, path: Path
) -> None:
    """Losses by step, with n-gram models for comparison; below, the learning rate.

    Args:
      stretches: of training, each with step, train_losses and validation_loss.
      yardsticks: losses by model name.
      rates: the learning rate of each step.
      path: of the PNG.
    """
    figure, (losses, rate) = style.panels(2, 1, height=2.3, height_ratios=(4, 1), sharex=True)
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
    losses.set(ylabel="cross-entropy (nats per character)")
    losses.legend(loc="upper center")
    bits = losses.secondary_yaxis("right", (_bits, _nats))
    bits.set_ylabel("bits per character")
    bits.spines["right"].set_color(losses.spines["left"].get_edgecolor())
    rate.plot(steps, rates, color=style.BLACK)
    rate.set(xlabel="step", ylabel="learning rate", ylim=(0, None), xlim=(0, len(rates) + 1))
    style.save(figure, path)


def _bits(nats: Any) -> Any:
    return nats / math.log(2)


def _nats(bits: Any) -> Any:
    return bits * math.log(2)
