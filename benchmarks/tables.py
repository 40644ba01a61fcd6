"""Rows of measurements, as Markdown."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Row:
    """A median, and its ratio to the base's."""

    table: str
    case: str
    unit: str
    median: float
    base: str | None = None
    base_median: float | None = None
    ratio: float | None = None
    target: float | None = None  # Of the ratio, at most.
    temporary: float | None = None  # Bytes per parameter.
    temporary_target: float | None = None
    share: float | None = None  # Of the copy bandwidth, if the step were 28 bytes per parameter.


Column = tuple[str, str, str]
COLUMNS: list[Column] = [
    ("case", "case", ""),
    ("{unit}", "median", ".3g"),
    ("base", "base", ""),
    ("its {unit}", "base_median", ".3g"),
    ("ratio", "ratio", ".3f"),
    ("target", "target", "at most"),
    ("temp B/p", "temporary", ".3f"),
    ("target", "temporary_target", "at most"),
    ("28 B/p floor / time", "share", ".2f"),
]


def _cell(value: Any, form: str) -> str:
    if value is None:
        return ""
    return f"<= {value:g}" if form == "at most" else format(value, form)


def _significant(rows: list[Row], column: Column) -> bool:
    return any(getattr(row, column[1]) is not None for row in rows)


def markdown(rows: list[Row]) -> str:
    """The rows of one table, without columns that are empty."""
    columns = [column for column in COLUMNS if _significant(rows, column)]
    lines = [[title.format(unit=rows[0].unit) for title, _, _ in columns], ["---"] * len(columns)]
    lines += [[_cell(getattr(row, key), form) for _, key, form in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
