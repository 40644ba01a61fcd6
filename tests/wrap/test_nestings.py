"""Random nestings and pairs of wrappers; `python -m tests.tools.nestings` draws more."""

import pytest

from tests.tools import trees
from tests.tools.nestings import Found, fuzz

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("standard_promotion")]


def test_nestings():
    found = Found()
    fuzz(16, 0, found, pairwise=False, derandomize=True)
    assert found["nestings"] == found["eager"] + found["under jit"] >= 16


def test_pairs():
    found = Found()
    fuzz(40, 0, found, pairwise=True, derandomize=True)
    assert found["a ValueError"] > 0 and found["the same state"] > 0


def test_trees():
    found = Found()
    trees.fuzz(16, 0, found, derandomize=True)
    assert found["trees"] >= 16 and min(found[kind] for kind in ("key", "int32", "float16")) > 0
