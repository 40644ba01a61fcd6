"""The layout of printed tables."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Rows of cells as lines; the columns in `left` are left-aligned, others right-aligned."""
    lines = [""] * len(rows)
    for i, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        cells = [cell.ljust(width) if i in left else cell.rjust(width) for cell in column]
        lines = [f"{line}  {cell}" if i else cell for line, cell in zip(lines, cells, strict=True)]
    return "\n".join(line.rstrip() for line in lines)
