"""Selects leaves by regular expressions that match their whole paths."""

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
    """The index of the first expression that matches each leaf's path, or None.

    Args:
      expressions: regular expressions, in order of precedence.
      paths: the path of each leaf.
      moving: whether a step updates each leaf; a leaf that is not updated need not match.
      check: require each expression to be the first match of some leaf.
      instead: what the error tells the user to write if an updated leaf matches nothing. None
        allows unmatched leaves.

    Raises:
      ValueError: `check` or `instead` is violated; the message lists the paths.
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
                f" path of a leaf, such as one of {paths}."
            )
    return found
