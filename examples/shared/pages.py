"""Parts of Markdown pages that a program writes, between comments that name them."""

import re
from collections.abc import Mapping


def replaced(page: str, parts: Mapping[str, str]) -> str:
    """The page with each part inserted between `<!-- NAME -->` and `<!-- end of NAME -->`.

    A part is words within a line, or whole lines that begin and end with a line break. No line may
    begin with the comment of an inline part: Markdown treats such a line as HTML.

    Raises:
      ValueError: a part that does not occur on the page exactly once.
    """
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
        made = f"{begin}{part}{end}"
        page, found = re.subn(pattern, lambda _, made=made: made, page, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"a page must have {begin} ... {end} once, got it {found} times.")
    return page
