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
from matplotlib import colormaps, rcParams
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
# A page shows 760 pixels, 100 an inch; twice as many are stored, for screens with small pixels.
WIDTH, LABEL = 7.6, 9.0  # Inches; the font size in points.
# The background is white: the site darkens pictures in its dark mode.
rcParams.update(
    {
        "axes.axisbelow": True,
        "axes.edgecolor": AXIS,
        "axes.grid": True,
        "axes.prop_cycle": cycler(color=PALETTE),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": LABEL,
        "figure.titlesize": 1.1 * LABEL,
        "font.size": LABEL,
        "grid.color": GRID,
        "legend.edgecolor": "none",
        "legend.facecolor": "white",
        "savefig.dpi": 200,
        "xtick.color": AXIS,
        "xtick.labelcolor": BLACK,
        "ytick.color": AXIS,
        "ytick.labelcolor": BLACK,
    }
)


def line_style(i: int) -> dict[str, Any]:
    """Colour and dashes of line number i: first all colours solid, then all dashed, and so on."""
    dashes = DASHES[i // len(PALETTE) % len(DASHES)]
    return {"color": PALETTE[i % len(PALETTE)], "linestyle": dashes}


def panels(
    rows: int, columns: int, width: float | None = None, height: float = 3.0, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure and its panels row by row, each of that size in inches; default: a page's width."""
    size = (width * columns if width else WIDTH, height * rows)
    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def ranges(axes: Axes, rows: dict[str, dict[str, float]], colours: Mapping[str, str]) -> None:
    """The mean of each row as a dot, on a line from its lowest to its highest; first on top."""
    for y, (name, row) in enumerate(reversed(list(rows.items()))):
        axes.plot([row["lowest"], row["highest"]], [y, y], color=colours[name], linewidth=1.8)
        axes.plot(row["mean"], y, "o", markersize=4.5, color=colours[name])
    axes.set_yticks(range(len(rows)), list(reversed(rows)))
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(4))


def sequence(count: int) -> list[str]:
    """Colours from dark to light for ordered sizes; they keep their order in greyscale."""
    return [to_hex(c) for c in colormaps["viridis"](np.linspace(0, 0.85, count))]


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


def save(figure: Figure, path: Path, title: str | None = None) -> None:
    """Sets the title, formats the axes with plain numbers for their limits, and writes a PNG."""
    if title is not None:
        figure.suptitle(title)
    for axes in figure.axes:
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            _number(axis, limits)
    figure.savefig(path)


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
