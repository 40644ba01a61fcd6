"""The picture of a coordinate check."""

import math
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from adam_jax.pictures import TEXT, VERMILION, apart, plain, show_in_notebooks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from adam_jax.transfer.coordinates import CoordinateCheck

# Vermilion stands out from greys and blues for every kind of colour vision, and in print by its
# line width.
_RIGHT = ("#6b87a3", "#93a3ad", "#7d8c7c", "#a29bb5")
_HEADING: Any = {"loc": "left", "fontsize": 10, "color": "#333333"}
_LINE_HEIGHT = 11.5  # Points from one label to the next.


def draw(check: "CoordinateCheck") -> "Figure":
    """Two panels, RMS and change by width.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "CoordinateCheck.plot needs matplotlib: pip install 'adam_jax[inspect]'."
        ) from error
    steps = len(check.rms) - 1
    after = f"after {steps} optimizer step{'s' if steps > 1 else ''}"
    width = 9.5 + 0.13 * max(map(len, check.names))
    title = textwrap.fill(
        f"Coordinate check. {check.summary}", int(9 * width), break_long_words=False
    )
    inside = max(3.0, len(check.names) * _LINE_HEIGHT / 72)
    height = inside + 1.25 + 0.22 * title.count("\n")
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)  # pyright: ignore
    figure.suptitle(
        title.replace("$", r"\$"),
        x=0.012,
        ha="left",
        fontsize=11.5,
        fontweight="bold",
        color="#333333" if check.ok else VERMILION,
    )
    left, right = figure.subplots(1, 2)
    _draw_panel(left, check, check.rms[-1], check.slopes, -math.inf, inside)
    _draw_panel(right, check, check.change[-1], check.change_slopes, -check.tolerance, inside)
    left.set_title(f"Size {after}: flat or falling is right", **_HEADING)
    right.set_title(f"Change {after}: flat is right", **_HEADING)
    left.set_ylabel("RMS of each activation", fontsize=9)
    right.set_ylabel("RMS of the difference from before the first step", fontsize=9)
    show_in_notebooks(figure)
    return figure


def _draw_panel(
    axes: "Axes",
    check: "CoordinateCheck",
    sizes: np.ndarray,
    slopes: dict[str, float],
    least: float,
    inside: float,
) -> None:
    """Draws lines that are labelled at their ends.

    Args:
      axes: of the panel.
      check: its verdicts determine the colours of lines.
      sizes: the sizes to draw, [widths, names].
      slopes: of the sizes.
      least: the smallest correct slope in this panel. Lines of wrong activations are thick if this
        panel shows the fault.
      inside: inches from the bottom to the top of the axes.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    drawn = np.where(np.isfinite(sizes) & (sizes > 0), sizes, np.nan)  # [widths, names]
    low, high = _limits(drawn, check.widths)
    ends = np.log(np.where(np.isnan(drawn[-1]), low, drawn[-1]) / low) / math.log(high / low)
    places = apart(ends, _LINE_HEIGHT / (72 * inside))
    for i, (name, verdict) in enumerate(check.verdicts.items()):
        wrong = verdict != "ok"
        seen = wrong and not least <= slopes[name] <= check.tolerance
        color = VERMILION if wrong else _RIGHT[i % len(_RIGHT)]
        axes.plot(
            check.widths,
            drawn[:, i],
            color=color,
            linewidth=2.8 if seen else 1.3,
            marker="o",
            markersize=5 if seen else 3,
            zorder=3 if wrong else 2,
            clip_on=False,
        )
        if np.isnan(drawn[-1, i]):
            label = f"{name}: {sizes[-1, i]:g}"
        elif seen and not math.isnan(slopes[name]):
            label = f"{name} ∝ width^{slopes[name]:.2f}"
        else:
            label = name
        axes.annotate(
            label.replace("$", r"\$"),
            (1, ends[i]),
            (1.06, places[i]),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            fontweight="bold" if seen else "normal",
            color=VERMILION if wrong else TEXT,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.7,
                "relpos": (0, 0.5),
                "shrinkA": 2,
            },
        )
    axes.set(xscale="log", yscale="log", ylim=(low, high))
    axes.set_xlim(check.widths[0], check.widths[-1])
    axes.xaxis.set_major_locator(FixedLocator(check.widths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda width, _: f"{width:g}"))
    subs = (1.0, 2.0, 5.0) if high / low < 100 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    axes.set_xlabel("width", fontsize=9)
    axes.tick_params(labelsize=8)
    plain(axes)


def _limits(drawn: np.ndarray, widths: tuple[int, ...]) -> tuple[float, float]:
    """The limits of the sizes; at least as many decades as the widths, so that noise looks flat."""
    if np.isnan(drawn).all():
        return 0.1, 10.0
    low, high = np.log10(np.nanmin(drawn)), np.log10(np.nanmax(drawn))
    more = max(0.1 * (high - low), 0.05, (math.log10(widths[-1] / widths[0]) - high + low) / 2)
    return float(10 ** (low - more)), float(10 ** (high + more))
