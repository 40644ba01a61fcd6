"""A claim of a paper, and whether this run supports it."""

from typing import NamedTuple


class Claim(NamedTuple):
    """One row of the table.

    Attributes:
      claim: the paper's statement, and in brackets the criterion used here.
      source: paper and section.
      held: whether it holds in this run.
      figures: the numbers that decided it.
    """

    claim: str
    source: str
    held: bool
    figures: str

    def row(self) -> tuple[str, str, str, str]:
        """Cells of the table."""
        return (self.claim, self.source, "held" if self.held else "did not hold", self.figures)


COLUMNS = ("claim", "source", "here", "figures")
