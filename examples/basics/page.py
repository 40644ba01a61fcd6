"""Shared parts of the pages: the interface of a page, its findings, the look of its plot."""

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from examples import style
from examples.mnist.data import Digits
from examples.study import Result


@dataclasses.dataclass(frozen=True)
class Setting:
    """The inputs that a page's results depend on.

    Attributes:
      seed: of all random numbers.
      digits: the handwritten digits.
      fast: fewer steps, to show that it runs.
    """

    seed: int
    digits: Digits
    fast: bool

    @property
    def key(self) -> jax.Array:
        """The key for JAX: a model's initial parameters, the order of the digits."""
        return jax.random.key(self.seed)

    def normal(self, *shape: int) -> np.ndarray:
        """Standard normal numbers, float32; the same at each call."""
        return np.random.default_rng(self.seed).standard_normal(shape, np.float32)


class Page(Protocol):
    """One experiment; each page is a module with these three functions."""

    def compute(self, setting: Setting, /) -> Result:
        """Runs the experiment; returns numbers and arrays."""
        ...

    def findings(self, result: Result, /) -> list[str]:
        """The findings: one claim per line, and whether it held."""
        ...

    def picture(self, result: Result, path: Path, /) -> None:
        """Draws them."""
        ...


def claim(holds: bool | np.bool_, text: str) -> str:
    """A line of findings: the claim with its numbers, and whether this run supports it."""
    return f"{'holds' if holds else 'DOES NOT HOLD'}: {text}"


def panels(columns: int, rows: int = 1, height: float = 3.8) -> tuple[Any, list[Any]]:
    """A figure and its axes, row by row."""
    return style.panels(rows, columns, height=height)


def contours(axis: Any, x: np.ndarray, y: np.ndarray, values: np.ndarray, lowest: float) -> None:
    """Contour lines of values [y, x] > 0, equally spaced in their logarithm, from `lowest` up."""
    levels = np.geomspace(lowest, values.max(), 24)
    axis.grid(False)
    axis.contour(x, y, values, levels, norm="log", cmap="Greys_r", linewidths=0.6, alpha=0.6)


def image(axis: Any, pixels: np.ndarray, title: str) -> None:
    """Weights [28, 28] as an image: blue is negative, red positive, white 0."""
    largest = np.abs(pixels).max()
    shown = axis.imshow(pixels, cmap="RdBu_r", vmin=-largest, vmax=largest)
    axis.figure.colorbar(shown, ax=axis, fraction=0.046)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.set_title(title, fontsize=10)


def save(figure: Any, title: str, path: Path) -> None:
    """Titles the figure and writes it as PNG."""
    style.save(figure, path, title)
