"""Plots the results of `benchmarks.step`.

python -m benchmarks.plot FILE.json OUT.png

Bars are ratios of medians, each to the base named in its panel or label; a line across a bar is the
largest allowed ratio. Needs matplotlib.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from examples.shared import strict_json, style

OURS, OTHERS, MISSED, TARGET = style.BLUE, style.GREY, style.VERMILION, style.BLACK
OTHER_LIBRARIES = ("optax", "torch", "flashoptim")
KEY = {
    "adam_jax": Patch(color=OURS),
    "adam_jax, above its target": Patch(color=MISSED),
    "another library": Patch(color=OTHERS),
    "target: at most": Line2D([], [], color=TARGET, linewidth=2.5),
    "base": Line2D([], [], color=TARGET, linewidth=0.8, linestyle=":"),
}
BAR = 0.3  # Inches.
HEADING = 2.2  # Height of a panel's heading, in bars.


def colour(row: dict[str, Any]) -> str:
    if row["case"].startswith(OTHER_LIBRARIES):
        return OTHERS
    return MISSED if row["target"] and row["ratio"] > row["target"] else OURS


def label(row: dict[str, Any], bases: int) -> str:
    return row["case"] if bases == 1 else f"{row['case']} / {row['base']}"


def draw(axes: Axes, title: str, rows: list[dict[str, Any]]) -> None:
    """A panel: the rows from top to bottom."""
    bases = list(dict.fromkeys(row["base"] for row in rows))
    ratios, places = [row["ratio"] for row in rows], range(len(rows))
    axes.barh(places, ratios, color=[colour(row) for row in rows], height=0.66)
    end = max(1.0, *ratios, *(row["target"] or 0.0 for row in rows))
    for place, row in zip(places, rows, strict=True):
        target, right = row["target"], row["ratio"]
        if target:
            axes.plot([target] * 2, [place - 0.45, place + 0.45], color=TARGET, linewidth=2.5)
            # Keep the number clear of the mark, if that is further right.
            right = max(right, target)
        text = f"{row['ratio']:.2f}" + (f"  (≤ {target:g})" if target else "")
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(right + 0.02 * end, place, text, va="center", fontsize=8, bbox=behind)
    axes.axvline(1.0, color=TARGET, linewidth=0.8, linestyle=":", zorder=0)
    axes.set_yticks(places, [label(row, len(bases)) for row in rows], fontsize=8)
    axes.set(xlim=(0, 1.2 * end), ylim=(len(rows) - 0.4, -0.6))
    axes.tick_params(left=False)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    relative = f": relative to {bases[0]}" if len(bases) == 1 else ""
    axes.set_title(f"{title}{relative}", loc="left", fontsize=9, fontweight="bold")


def chart(results: dict[str, Any]) -> Figure:
    """A panel for each table that has ratios."""
    panels: dict[str, list[dict[str, Any]]] = {}
    for row in results["rows"]:
        if row["ratio"] is not None:
            panels.setdefault(row["table"], []).append(row)
    if not panels:
        raise ValueError("there is no ratio among the rows: run benchmarks.step on more tables")
    # Steps on the left, compilation on the right.
    columns = [list(group) for _, group in itertools.groupby(panels, key=lambda t: t.split(",")[0])]
    heights = [[len(panels[title]) + HEADING for title in column] for column in columns]
    size = (7.5 * len(columns), max(sum(column) for column in heights) * BAR + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    parts = figure.subfigures(1, len(columns), wspace=0.03, squeeze=False)[0]
    for part, column, height in zip(parts, columns, heights, strict=True):
        grid = part.subplots(len(column), 1, squeeze=False, height_ratios=height)
        for axes, title in zip(grid[:, 0], column, strict=True):
            draw(axes, title, panels[title])
        grid[-1, 0].set_xlabel("ratio of median times (lower is faster)", fontsize=8)
    figure.suptitle(results["machine"], fontsize=8, color="#555555")
    entries = dict(handles=list(KEY.values()), labels=list(KEY), ncols=5 if len(columns) > 1 else 3)
    figure.legend(**entries, loc="outside lower center", fontsize=8, frameon=False)
    return figure


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("file", metavar="FILE.json", type=Path)
    arguments.add_argument("out", metavar="OUT.png", type=Path)
    args = arguments.parse_args()
    chart(strict_json.loads(args.file.read_text())).savefig(args.out, dpi=130)


if __name__ == "__main__":
    main()
