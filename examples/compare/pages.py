"""Writes the comparison's results from figures.json to docs/choosing.md and examples/README.md.

python -m examples.compare.pages
"""

import statistics
from collections.abc import Iterable
from pathlib import Path

from examples.compare.figures import Figures, Models, Row, alike, fastest, ranked, read
from examples.pages import replaced

ROOT = Path(__file__).parents[2]
FIGURES = Path(__file__).with_name("figures.json")
PICTURE = ROOT / "docs" / "compare.png"
CHOOSING, EXAMPLES = ROOT / "docs" / "choosing.md", ROOT / "examples" / "README.md"
MODELS = {"softmax": "softmax regression", "mlp": "the MLP", "small-cnn": "the small CNN"}
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth".split()


def parts(figures: Figures) -> dict[Path, dict[str, str]]:
    """By page and name: the text between the page's comments."""
    models = figures["models"]
    count = str(len(next(iter(models.values()))))
    places = [f"{place('adam', rows)} on {MODELS[model]}" for model, rows in models.items()]
    overlaps = listed(str(len(alike(rows))) for rows in models.values())
    behind = max(behind_the_first("adamw", rows) for rows in models.values())
    edges = [
        f"`{name}` on {MODELS[model]}"
        for model, rows in models.items()
        for name, row in rows.items()
        if row["edge"]
    ]
    choosing = {
        "compare-count": count,
        "compare-adamw-behind": points(behind),
        "compare-lion-on-the-mlp": place("lion", models["mlp"]),
        "compare-steps-of-radam": times("radam", "adam", models),
        "compare-adams-places": listed(places),
        "compare-overlaps": f"{overlaps} of the {int(count) - 1} others",
    }
    examples = {
        "compare-count": count,
        "compare-seconds": str(figures["seconds"]),
        "compare-edges": listed(edges) or "none",
        "compare-table": f"\n{table(figures)}\n",
        "compare-verdict": f"\n{verdict(figures)}\n",
    }
    return {CHOOSING: choosing, EXAMPLES: examples}


def table(figures: Figures) -> str:
    """Accuracy and steps of all, sorted by mean accuracy; the best of each model is bold."""
    models = figures["models"]
    names = list(next(iter(models.values())))
    mean = {n: statistics.mean(rows[n]["accuracy"] for rows in models.values()) for n in names}
    lines = [f"| optimizer | {' | '.join(f'{model} | steps' for model in models)} |"]
    lines.append("|---|" + "---|---|" * len(models))
    for name in sorted(names, key=lambda n: -mean[n]):
        cells = [f"`{name}`"]
        for rows in models.values():
            row = rows[name]
            low, high = (of_a_seed(x) for x in (row["lowest"], row["highest"]))
            text = f"{row['accuracy']:.4f} ({low} to {high})"
            cells += [f"**{text}**" if name == ranked(rows)[0] else text, steps(row)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def of_a_seed(accuracy: float) -> str:
    """The accuracy of one seed on 2,000 digits: in steps of 0.0005."""
    return f"{accuracy:.4f}".removesuffix("0")


def verdict(figures: Figures) -> str:
    """A list item per model: the most accurate, the first to reach the target, Adam, the last."""
    lines = []
    for model, rows in figures["models"].items():
        first, *others = ranked(rows)
        quick, near = fastest(rows), alike(rows)
        lines.append(
            f"- On {MODELS[model]} `{first}` is the most accurate, {rows[first]['accuracy']:.4f};"
            f" the seed ranges of {len(near)} of the {len(others)} others overlap its range."
        )
        lines.append(f"  `{quick}` reaches the target first, after {steps(rows[quick])} steps.")
        if "adam" in others:
            overlap = "the ranges overlap" if "adam" in near else "all its seeds are lower"
            gap = points(behind_the_first("adam", rows))
            lines.append(f"  `adam` is {place('adam', rows)}, {gap} points behind; {overlap}.")
        if others and others[-1] != "adam":
            gap = points(behind_the_first(others[-1], rows))
            lines.append(f"  `{others[-1]}` is last, {gap} points behind.")
    return "\n".join(lines)


def place(name: str, rows: dict[str, Row]) -> str:
    """Its rank by accuracy, in words."""
    number = ranked(rows).index(name) + 1
    if 1 < number == len(rows):
        return "last"
    if number <= len(ORDINALS):
        return ORDINALS[number - 1]
    last = 0 if number in (11, 12, 13) else number % 10
    return str(number) + {1: "st", 2: "nd", 3: "rd"}.get(last, "th")


def behind_the_first(name: str, rows: dict[str, Row]) -> float:
    """How much less accurate it is than the most accurate one."""
    return rows[ranked(rows)[0]]["accuracy"] - rows[name]["accuracy"]


def points(share: float) -> str:
    """Percentage points."""
    return f"{100 * share:.1f}" if share >= 0.0005 else "less than 0.1"


def steps(row: Row) -> str:
    """The steps to the target."""
    return f"{row['steps']:.0f}" if row["steps"] < float("inf") else "-"


def times(name: str, other: str, models: Models) -> str:
    """Steps to the target relative to another optimizer's: the smallest and the largest ratio."""
    ratios = [rows[name]["steps"] / rows[other]["steps"] for rows in models.values()]
    return f"{min(ratios):.1f} to {max(ratios):.1f} times"


def listed(words: Iterable[str]) -> str:
    """`a, b and c`."""
    *most, last = list(words) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def write(figures: Figures) -> None:
    """Writes the parts into their pages."""
    for page, its in parts(figures).items():
        page.write_text(replaced(page.read_text(), its))


if __name__ == "__main__":
    write(read(FIGURES))
