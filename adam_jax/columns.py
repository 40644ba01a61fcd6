"""Text in columns, for what is printed."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Rows of cells as lines; the columns `left` are aligned to the left, the others to the right.

    Lines do not end in blanks.
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
