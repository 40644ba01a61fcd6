"""Types of command-line options: numbers in a range, with errors that name the range."""

import argparse
from collections.abc import Callable
from typing import TypeVar

N = TypeVar("N", int, float)


def number(kind: type[N], allowed: str, within: Callable[[N], bool]) -> Callable[[str], N]:
    """The type of an option.

    If a type raises ValueError, argparse shows the name of the function and no reason.

    Args:
      kind: int or float.
      allowed: the range in words, after "must be".
      within: whether a number is in the range.
    """

    def read(text: str) -> N:
        try:
            found = kind(text)
        except ValueError:
            found = None
        if found is None or not within(found):
            raise argparse.ArgumentTypeError(f"must be {allowed}, got {text[:80]!r}")
        return found

    return read


def whole(low: int, high: int) -> Callable[[str], int]:
    """The type of a whole number from `low` to `high`."""
    return number(int, f"a whole number from {low} to {high}", lambda n: low <= n <= high)


positive = number(int, "a whole number of at least 1", lambda n: n >= 1)
rate = number(float, "a number in [0, inf)", lambda x: 0 <= x < float("inf"))
above_0 = number(float, "a number in (0, inf)", lambda x: 0 < x < float("inf"))
seed = whole(0, 2**32 - 1)  # NumPy's and JAX's generators take these.
