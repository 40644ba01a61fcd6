"""Command lines: types of options with errors that name the range, and the ends of a program."""

import argparse
import logging
import sys
from collections.abc import Callable
from typing import TypeVar

import examples

N = TypeVar("N", int, float)


class UserError(ValueError):
    """One line for the user: the place, what was found, what to do."""


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


def run(main: Callable[[], None], resume: str) -> None:
    """Runs a program.

    A UserError or OSError is one line on stderr, with exit status 1.

    Args:
      main: the program.
      resume: how to continue after ctrl-C, which ends it with exit status 130.
    """
    logging.getLogger("jax").setLevel(logging.ERROR)
    examples.advice = resume
    # A program that is interrupted does not flush.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        main()
    except (UserError, OSError) as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        sys.exit(1)
    examples.finished()


def clock(seconds: float) -> str:
    """A duration rounded for people."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
