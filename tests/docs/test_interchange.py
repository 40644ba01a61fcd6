"""The table of docs/interchange.md has the largest differences of benchmarks/RESULTS.md."""

from benchmarks.interchange import __main__ as interchange
from benchmarks.interchange.conversions import optax_conversions
from tests.catalogue.pages import DOCS, ROOT, table


def test_the_table_is_the_largest_of_each_way_in_the_results():
    largest = {}
    for row in table(ROOT / "benchmarks" / "RESULTS.md", "## From another library, and back"):
        way = f"{row['way']}, 8 bits" if "8 bits" in row["optimizer"] else row["way"]
        single, double = largest.get(way, (0.0, 0.0))
        largest[way] = max(single, float(row["in 20 steps"])), max(double, float(row["in float64"]))
    page = table(DOCS / "interchange.md", "## How far apart the runs are")
    shown = {way: (float(x), float(y)) for way, x, y in (row.values() for row in page)}
    assert shown == largest and len(largest) == 6


def test_the_benchmark_measures_and_prints_a_row():
    [conversion] = [c for c in optax_conversions() if c.name == "`optax.lion`"][:1]
    found = interchange.measure(conversion)
    assert found.float32 < 1e-6 and found.float64 < 1e-12 and found.new_state > 0.1
    *_, row = interchange.markdown([found]).splitlines()
    assert row.startswith("| from Optax | `optax.lion` | ")
