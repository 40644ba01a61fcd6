"""Plots a selection of the table of steps compiled for TPUs.

python -m benchmarks.tpu.plot OUT.png

Reads benchmarks/COMPILED.md. Left: bytes through HBM on v5e, with the floor, the bytes that a step
must read or write, and the bytes where XLA compiles all. Right: the larger of cycles and bytes,
relative to float32 AdamW, on three generations. Needs matplotlib.
"""

import argparse
import re
from pathlib import Path

from examples import style

PAGE = Path(__file__).parents[1] / "COMPILED.md"
GENERATIONS = {"v5e": ("o", style.BLUE), "v6e": ("s", style.VERMILION), "v5p": ("^", style.GREEN)}
ROUNDED = "bf16 weights, stochastic rounding"
CASES = {
    "adam_jax.adamw": "float32",
    "bf16 moments": "bfloat16 moments",
    "Adam-mini": "Adam-mini",
    "factored nu": "factored nu",
    "8-bit moments": "8-bit moments",
    "4-bit moments": "4-bit moments",
    ROUNDED: "bfloat16 weights, stochastic",
    "bf16 weights, residual 16": "bfloat16 weights, residual of 16",
    "bf16 weights, residual 8": "bfloat16 weights, residual of 8",
    "bf16 weights, residual 16, 8-bit moments": "bfloat16 weights, residual of 16, 8-bit moments",
    "bf16 weights, residual 8, 8-bit moments": "bfloat16 weights, residual of 8, 8-bit moments",
    f"{ROUNDED}, 8-bit moments": "bfloat16 weights, stochastic, 8-bit moments",
    f"{ROUNDED}, 4-bit moments": "bfloat16 weights, stochastic, 4-bit moments",
}


def rows() -> dict[str, list[list[float]]]:
    """By case: the floor; then for each generation bytes, temporaries, bundles and time."""
    found = {}
    for line in PAGE.read_text().splitlines():
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if len(cells) == 1 + len(GENERATIONS) and re.match(r"[\d.]+$", cells[0]):
            found[name] = [
                [float(x) for x in cell.replace(" -", " 0").split(",")] for cell in cells
            ]
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("out", metavar="OUT.png", type=Path)
    out = arguments.parse_args().out
    found, names = rows(), list(CASES)
    figure, (moved, time) = style.panels(1, 2, sharey=True, width=4.6, height=5.0)
    for place, name in enumerate(names):
        [floor], (number, *_), *_ = found[name]
        if by_xla := found.get(f"{name}, by XLA"):
            moved.barh(place, by_xla[1][0], color=style.SKY, height=0.66)
        moved.barh(place, number, color=style.BLUE, height=0.66)
        moved.plot([floor] * 2, [place - 0.42, place + 0.42], color=style.BLACK, linewidth=2)
        moved.text(0.5, place, f"{number:.1f}", va="center", color="white")
    for i, (generation, (marker, colour)) in enumerate(GENERATIONS.items(), start=1):
        places = [place + 0.22 * (i - 2) for place in range(len(names))]
        ratios = [found[name][i][-1] for name in names]
        look = {"marker": marker, "color": colour, "label": generation, "clip_on": False}
        time.scatter(ratios, places, **look, s=24, zorder=3)
    moved.set_yticks(range(len(names)), CASES.values())
    moved.set(xlim=(0, 36), ylim=(len(names) - 0.4, -0.6), xlabel="bytes per parameter, v5e")
    moved.set_title("through HBM (black: floor; light: XLA alone)", loc="left", fontsize=9)
    time.set(xlim=(0, 1.1), xlabel="relative to AdamW in float32")
    time.set_title("the larger of cycles and bytes", loc="left", fontsize=9)
    style.legend(time, loc="lower left")
    style.save(figure, out)


if __name__ == "__main__":
    main()
