"""Shared parts of the pages: the interface of a page, its inputs."""

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from matplotlib.axes import Axes

from examples.mnist.data import Digits
from examples.shared.study import Result


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

    def findings(self, result: Result, /) -> list[tuple[Any, str]]:
        """Claims: whether this run supports each, and the claim with its numbers."""
        ...

    def picture(self, result: Result, path: Path, /) -> None:
        """Draws them."""
        ...


def contours(axis: Axes, x: np.ndarray, y: np.ndarray, values: np.ndarray, lowest: float) -> None:
    """Contour lines of values [y, x] > 0, equally spaced in their logarithm, from `lowest` up."""
    levels = np.geomspace(lowest, values.max(), 24)
    axis.grid(False)
    axis.contour(x, y, values, levels, norm="log", cmap="Greys_r", linewidths=0.6, alpha=0.6)
