"""The table of docs/interchange.md has the largest differences of benchmarks/RESULTS.md."""

import re
from pathlib import Path

from benchmarks.interchange import __main__ as interchange
from benchmarks.interchange.conversions import optax_conversions

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "interchange.md").read_text()


def rows(text):
    lines = [line for line in text.splitlines() if re.match(r"\| (from|to) ", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_is_the_largest_of_each_way_in_the_results():
    _, _, results = (
        (ROOT / "benchmarks" / "RESULTS.md")
        .read_text()
        .partition("\n## From another library, and back\n")
    )
    largest = {}
    for way, name, _, single, double, _ in rows(results.partition("\n## ")[0]):
        kind = f"{way}, 8 bits" if "8 bits" in name else way
        old = largest.get(kind, (0.0, 0.0))
        largest[kind] = max(old[0], float(single)), max(old[1], float(double))
    _, _, table = PAGE.partition("\n## How far apart")
    shown = {way: (float(x), float(y)) for way, x, y in rows(table)}
    assert shown == largest and len(largest) == 6


def test_the_benchmark_measures_and_prints_a_row():
    [conversion] = [c for c in optax_conversions() if c.name == "`optax.lion`"][:1]
    found = interchange.measure(conversion)
    assert found.float32 < 1e-6 and found.float64 < 1e-12 and found.new_state > 0.1
    [row] = rows(interchange.markdown([found]))
    assert row[:2] == ["from Optax", "`optax.lion`"] and float(row[3]) < 1e-6
