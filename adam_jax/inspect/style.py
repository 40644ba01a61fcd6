"""The style of printed tables and plots: columns, colours, plain axes, labels without overlap."""

import functools
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow, which is hard to see on white. Readers with any kind
# of colour vision can tell these apart: tests/examples/test_style.py simulates two kinds.
BLUE, VERMILION, GREEN, ORANGE = "#0072b2", "#d55e00", "#009e73", "#e69f00"
SKY, PINK, BLACK = "#56b4e9", "#cc79a7", "#000000"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, SKY, PINK, BLACK)
DASHES = ("-", "--", ":", "-.")
TEXT, GREY, AXIS, GRID = "#444444", "#b0b0b0", "#999999", "#ececec"


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Rows of cells as lines; the columns in `left` are left-aligned, others right-aligned."""
    lines = [""] * len(rows)
    for i, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        cells = [cell.ljust(width) if i in left else cell.rjust(width) for cell in column]
        lines = [f"{line}  {cell}" if i else cell for line, cell in zip(lines, cells, strict=True)]
    return "\n".join(line.rstrip() for line in lines)


def line_style(i: int) -> dict[str, Any]:
    """Colour and dashes of line number i: first all colours solid, then all dashed, and so on."""
    dashes = DASHES[i // len(PALETTE) % len(DASHES)]
    return {"color": PALETTE[i % len(PALETTE)], "linestyle": dashes}


def plain(axes: "Axes", grid: bool = True) -> None:
    """Light axes on the left and at the bottom, and a light grid behind the lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(AXIS)
    axes.tick_params(which="both", color=AXIS)
    axes.set_axisbelow(True)
    axes.grid(grid, **({"color": GRID, "linewidth": 0.8} if grid else {}))


def apart(ends: np.ndarray, gap: float) -> np.ndarray:
    """Positions from 0 to 1, near the ends and in their order, at least `gap` apart.

    The least-squares solution: neighbours that are too close are merged into one group.
    """
    order = np.argsort(ends, kind="stable")
    groups: list[tuple[float, int]] = []
    for i, end in enumerate(ends[order]):
        mean, size = float(end) - i * gap, 1
        while groups and groups[-1][0] > mean:
            before, many = groups.pop()
            mean, size = (before * many + mean * size) / (many + size), many + size
        groups.append((mean, size))
    shifts = np.repeat([mean for mean, _ in groups], [size for _, size in groups])
    places = np.empty_like(ends)
    last = 1 - (len(ends) - 1) * gap
    places[order] = np.clip(shifts, min(0, last), last) + np.arange(len(ends)) * gap
    return places


def empty_figure(caller: str) -> "Figure":
    """A figure that pyplot does not manage, and that a notebook shows.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{caller} needs matplotlib: pip install 'adam_jax[inspect]'."
        ) from error
    figure = Figure(layout="constrained")
    figure._repr_png_ = functools.partial(_png, figure)  # pyright: ignore[reportAttributeAccessIssue]
    return figure


def _png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
