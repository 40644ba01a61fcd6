"""Parts of Markdown pages that a program writes, between comments that name them."""

import re
from collections.abc import Mapping


def replaced(page: str, parts: Mapping[str, str]) -> str:
    """The page with each part between `<!-- NAME -->` and `<!-- end of NAME -->` in its place.

    A part may be some words of a line, or lines, which begin and end with a line break. A line must
    not begin with the comment of words: Markdown takes all of it for HTML.

    Raises:
      ValueError: a part that is not on the page exactly once.
    """
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
        made = f"{begin}{part}{end}"
        page, found = re.subn(pattern, lambda _, made=made: made, page, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"a page must have {begin} ... {end} once, got it {found} times.")
    return page
