"""Plots the output of `benchmarks.tpu --json`: bytes per parameter, a panel per generation.

python -m benchmarks.tpu.plot FILE.json OUT.png

Bars are bytes through HBM; a line across a bar is the floor, all bytes that must be read or
written. Needs matplotlib.
"""

import argparse
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks.plot import BAR, HEADING, MISSED, OTHERS, OURS, TARGET
from examples import strict_json

KEY = {
    "within its bounds": Patch(color=OURS),
    "not within its bounds": Patch(color=MISSED),
    "without bounds": Patch(color=OTHERS),
    "floor": Line2D([], [], color=TARGET, linewidth=2.5),
}


def colour(row: dict[str, Any]) -> str:
    return {"holds": OURS, "": OTHERS}.get(row["verdict"], MISSED)


def draw(axes: Axes, generation: str, cases: list[str], rows: dict[str, dict[str, Any]]) -> None:
    """A panel with the cases from top to bottom; an unknown case has no bar."""
    end = max(row["HBM B/p"] for row in rows.values())
    for place, case in enumerate(cases):
        if case not in rows:
            continue
        row = rows[case]
        bytes_, floor = row["HBM B/p"], row["floor B/p"]
        axes.barh(place, bytes_, color=colour(row), height=0.66)
        axes.plot([floor] * 2, [place - 0.45, place + 0.45], color=TARGET, linewidth=2.5)
        axes.text(bytes_ + 0.03 * end, place, f"{bytes_:.1f}", va="center", fontsize=8)
    axes.set_yticks(range(len(cases)), cases, fontsize=8)
    axes.set(xlim=(0, 1.15 * end), ylim=(len(cases) - 0.4, -0.6))
    axes.tick_params(left=False)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("bytes per parameter through HBM", fontsize=8)
    axes.set_title(generation, loc="left", fontsize=9, fontweight="bold")


def chart(results: dict[str, Any]) -> Figure:
    """A panel for each generation."""
    panels: dict[str, dict[str, dict[str, Any]]] = {}
    for row in results["rows"]:
        if "HBM B/p" in row:
            panels.setdefault(row["generation"], {})[row["case"]] = row
    if not panels:
        raise ValueError("there are no bytes among the rows: run benchmarks.tpu --json FILE")
    cases = list(dict.fromkeys(case for rows in panels.values() for case in rows))
    size = (3 + 2.5 * len(panels), (len(cases) + HEADING) * BAR + 1)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)
    for axes, (generation, rows) in zip(grid[0], panels.items(), strict=True):
        draw(axes, generation, cases, rows)
    versions = ", ".join(" ".join(version) for version in results["versions"].items())
    figure.suptitle(versions, fontsize=8, color="#555555")
    entries = dict(handles=list(KEY.values()), labels=list(KEY), ncols=min(4, 1 + len(panels)))
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
