"""The style of all plots of the examples and the benchmarks.

A plot begins with `panels` and ends with `save`, which formats every axis with plain numbers.
pyplot is not used: no window, no figure to close.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogFormatterMathtext,
    LogLocator,
    MaxNLocator,
    NullLocator,
    ScalarFormatter,
)

# Okabe and Ito's palette without its yellow, which is hard to see on white. Readers with any kind
# of colour vision can tell these apart: tests/examples/test_style.py simulates two kinds.
BLUE, VERMILION, GREEN, ORANGE = "#0072b2", "#d55e00", "#009e73", "#e69f00"
SKY, PINK, BLACK = "#56b4e9", "#cc79a7", "#000000"
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, SKY, PINK, BLACK)
DASHES = ("-", "--", ":", "-.")
TEXT, GREY, AXIS, GRID = "#444444", "#b0b0b0", "#999999", "#ececec"
# Ticks within a decade, by the number of decades that a logarithmic axis spans; fewer on the
# x axis, where labels are side by side.
UPRIGHT = ((1.2, (1.0, 2.0, 3.0, 5.0)), (2.2, (1.0, 2.0, 5.0)), (3.2, (1.0, 3.0)))
ACROSS = ((0.8, (1.0, 2.0, 3.0, 5.0)), (1.3, (1.0, 2.0, 5.0)), (3.2, (1.0, 3.0)))
# For `plt.rcParams |= NOTEBOOK`: notebooks draw with pyplot.
NOTEBOOK = {
    "axes.axisbelow": True,
    "axes.edgecolor": AXIS,
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 90,
    "legend.frameon": False,
    "xtick.color": AXIS,
    "xtick.labelcolor": BLACK,
    "ytick.color": AXIS,
    "ytick.labelcolor": BLACK,
}
LABEL = 9.0  # Font size of labels in the picture, in points.


def line_style(i: int) -> dict[str, Any]:
    """Colour and dashes of line number i: first all colours solid, then all dashed, and so on."""
    dashes = DASHES[i // len(PALETTE) % len(DASHES)]
    return {"color": PALETTE[i % len(PALETTE)], "linestyle": dashes}


def plain(axes: Axes) -> None:
    """Light axes on the left and at the bottom, and a light grid behind the lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(AXIS)
    axes.tick_params(which="both", color=AXIS)
    axes.set_axisbelow(True)
    axes.grid(True, color=GRID, linewidth=0.8)


def panels(
    rows: int, columns: int, width: float = 4.4, height: float = 3.8, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with rows of panels, each of that size in inches; returns the panels row by row."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **options)
    for axes in grid.flat:
        plain(axes)
    return figure, list(grid.flat)


def sequence(count: int) -> list[str]:
    """Colours from dark to light for ordered sizes; they keep their order in greyscale."""
    return [to_hex(c) for c in colormaps["viridis"](np.linspace(0, 0.85, count))]


def legend(axes: Axes, **options: Any) -> None:
    """A legend without a frame, readable on top of lines."""
    look = {"fontsize": LABEL, "title_fontsize": LABEL, "facecolor": "white", "edgecolor": "none"}
    axes.legend(**look | options)


def label_ends(axes: Axes, ends: Mapping[str, tuple[float, str]], fontsize: float = LABEL) -> None:
    """Writes names to the right of the lines' last points, instead of a legend.

    Call it when the limits and the size of the panel are final.

    Args:
      axes: of the panel; the lines must end at its right edge.
      ends: by the name of a line: the y of its last point, and its colour.
      fontsize: in points.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # Computes the layout, and so the panel's height.
    inches = axes.get_window_extent().height / figure.dpi
    transform = axes.transScale + axes.transLimits
    right = axes.get_xlim()[1]
    heights = np.array([transform.transform((right, y))[1] for y, _ in ends.values()], float)
    places = apart(np.clip(heights, 0, 1), 1.2 * fontsize / 72 / inches)
    for (name, (_, colour)), y in zip(ends.items(), places, strict=True):
        axes.annotate(
            name.replace("$", r"\$"),
            (1, y),
            (4, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=fontsize,
            annotation_clip=False,
        )


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


def integers(axis: Axis) -> None:
    """Ticks at whole numbers only: epochs, steps."""
    axis.set_major_locator(MaxNLocator(6, integer=True))


def number(x: float) -> str:
    """A number on a logarithmic axis: 0.002, 1,000, 10⁻⁵."""
    if x == 0:
        return "0"
    power = math.log10(abs(x))
    if -3.5 < power < 4.5:
        return f"{x:,.8g}".replace("-", "−")
    exponent = math.floor(power + 1e-9)
    factor = x / 10.0**exponent
    begin = "" if math.isclose(factor, 1) else rf"{factor:.3g}\cdot"
    return f"${begin}10^{{{exponent}}}$"


def save(figure: Figure, path: Path, title: str | None = None, dpi: int = 110) -> None:
    """Formats the axes with plain numbers, sets the title, and writes a PNG."""
    if title is not None:
        figure.suptitle(title)
    tidy(figure)
    figure.savefig(path, dpi=dpi)


def tidy(figure: Figure) -> None:
    """Plain numbers on all axes, for their current limits."""
    for axes in figure.axes:
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            _number(axis, limits)


def _number(axis: Axis, limits: tuple[float, float]) -> None:
    """Plain numbers on one axis; explicitly chosen ticks stay."""
    spacing = ACROSS if isinstance(axis, XAxis) else UPRIGHT
    if axis.get_scale() == "log" and isinstance(axis.get_major_locator(), LogLocator):
        low, high = (math.log10(x) for x in sorted(limits))
        decades = high - low
        # Do not mix 0.001 and 10⁻⁴: an axis with powers of ten has only these.
        powers = decades > 1.5 and not -3.5 < low < high < 4.5
        if decades < 0.6:
            axis.set_major_locator(MaxNLocator(5))
        else:
            subs = next((subs for most, subs in spacing if decades < most), (1.0,))
            axis.set_major_locator(LogLocator(subs=(1.0,) if powers else subs, numticks=12))
        if decades < spacing[-1][0] and not powers:
            axis.set_minor_locator(NullLocator())
        if powers:
            axis.set_major_formatter(LogFormatterMathtext())
        else:
            axis.set_major_formatter(FuncFormatter(lambda x, _: number(x)))
        axis.set_minor_formatter(FuncFormatter(lambda x, _: ""))
    elif type(formatter := axis.get_major_formatter()) is ScalarFormatter:
        if max(map(abs, limits)) >= 10_000:
            axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}".replace("-", "−")))
        else:
            formatter.set_useOffset(False)
            formatter.set_scientific(False)
