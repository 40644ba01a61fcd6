"""Leaves chosen by regular expressions that match the whole of their paths."""

import re
from collections.abc import Sequence


def first_matches(
    expressions: Sequence[str],
    paths: list[str],
    moving: list[bool],
    *,
    check: bool,
    instead: str | None,
) -> list[int | None]:
    """For each leaf the index of the first expression that matches its path; None where none does.

    Args:
      expressions: the first match goes before the others.
      paths: of the leaves.
      moving: whether steps move the leaf; one that they do not need not match.
      check: each expression must be the first for some leaf.
      instead: what to write where a leaf that moves matches none; None if it need not.

    Raises:
      ValueError: see `check` and `instead`; the message lists the paths.
    """
    found = []
    for path in paths:
        matching = (i for i, e in enumerate(expressions) if re.fullmatch(e, path))
        found.append(next(matching, None))
    rows = zip(paths, moving, found, strict=True)
    unmatched = [path for path, moved, i in rows if moved and i is None]
    if unmatched and instead is not None:
        raise ValueError(
            f"every leaf must match an expression, got none for {unmatched}: {instead}."
        )
    for i, expression in enumerate(expressions):
        if check and i not in found:
            taken = any(re.fullmatch(expression, path) for path in paths)
            why = "only leaves that expressions before it took" if taken else "nothing"
            raise ValueError(
                f"the expression {expression!r} matches {why}: it must match the whole"
                f" path of a leaf, as one of {paths}."
            )
    return found
