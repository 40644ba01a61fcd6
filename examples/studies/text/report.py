"""The comparison on text as a table, sentences and a picture, from the rows of its optimizers.

python -m examples.studies.text.report    makes those of the documentation from figures.json
"""

from pathlib import Path
from typing import Any

from examples.shared import strict_json, style
from examples.shared.pages import replaced

ROOT = Path(__file__).parents[3]
FIGURES = Path(__file__).with_name("figures.json")
PICTURE = ROOT / "docs" / "text-compare.png"
PAGES = {
    ROOT / "examples" / "README.md": "../docs/text-compare.png",
    ROOT / "docs" / "choosing.md": "text-compare.png",
}
"""Pages that show it, and the path of the picture relative to each."""
COLUMNS = ["optimizer", "held-out loss", "lowest", "highest", "rate of matrices", "of the rest"]
COLUMNS.append("state, B/p")

Figures = dict[str, dict[str, float]]
"""By optimizer: mean, lowest and highest loss of the seeds; the two rates, bytes of state."""


def ranked(found: Figures) -> list[str]:
    """The optimizers, the lowest loss first."""
    return sorted(found, key=lambda name: found[name]["mean"])


def table(found: Figures) -> list[list[str]]:
    """A row for each optimizer, the best first."""
    rows = []
    for name in ranked(found):
        row = found[name]
        losses = [f"{row[key]:.3f}" for key in ("mean", "lowest", "highest")]
        rates = [f"{row[key]:.2g}" for key in ("matrices", "rest")]
        rows.append([f"`{name}`", *losses, *rates, f"{row['bytes']:.2f}"])
    return rows


def picture(found: Figures, path: Path) -> None:
    """The losses of the seeds."""
    figure, (axes,) = style.panels(1, 1, height=1.0 + 0.24 * len(found))
    colours = dict.fromkeys(found, style.BLUE)
    style.ranges(axes, {name: found[name] for name in ranked(found)}, colours)
    axes.set(xlabel="held-out loss (nats per character)")
    title = "Character transformer, each optimizer at its best learning rates"
    style.save(figure, path, f"{title}: mean and range of three seeds")


def part(found: Figures, path: str) -> str:
    """The text of a page that shows the picture at that path."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *table(found)]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    alt = "mean and range of the held-out losses of three seeds, by optimizer"
    return f"\n{text}\nLoss in nats per character.\n\n![{alt}]({path})\n"


def publish(found: Any) -> None:
    """Writes pages and picture of the documentation."""
    for page, path in PAGES.items():
        page.write_text(replaced(page.read_text(), {"comparison on text": part(found, path)}))
    picture(found, PICTURE)


if __name__ == "__main__":
    publish(strict_json.loads(FIGURES.read_text()))
