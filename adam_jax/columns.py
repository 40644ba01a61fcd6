"""Text in aligned columns, for printing."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Formats rows of cells as lines; the columns in `left` are left-aligned, others right-aligned.

    Lines have no trailing spaces.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = [i % len(widths) for i in left]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
