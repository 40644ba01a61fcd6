"""Random nestings and pairs of wrappers; `python -m tests.tools.nestings` draws more."""

import jax
import jax.numpy as jnp
import pytest

import adam_jax
from tests.catalogue import plain
from tests.tools import trees
from tests.tools.nestings import TREES, Case, Found, Member, Wrap, check_nesting, check_pair, fuzz

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("standard_promotion")]
ADAM = Member("adam")


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


def test_a_wrong_step_is_noticed(monkeypatch):
    check_nesting(Case(Wrap("clip", ADAM), TREES[1], 1, ""), jit=False)
    monkeypatch.setitem(plain.MEMBERS, "adam", plain.MEMBERS["adamax"])
    with pytest.raises(AssertionError, match="step and the plain version"):
        check_nesting(Case(Wrap("clip", ADAM), TREES[1], 1, ""), jit=False)


def test_a_state_taken_wrongly_is_noticed(monkeypatch):
    case = Case(ADAM, TREES[1], 0, "", steps=1)
    assert check_pair(case, ADAM, TREES[1]) == "the same state"
    assert check_pair(case, Member("lion"), TREES[1]) == "a ValueError"
    step = adam_jax.step

    def widened(tx, grads, state, params):
        params, state = step(tx, grads, state, params)
        return params, jax.tree.map(lambda x: jnp.stack([x]), state)

    case = Case(ADAM, TREES[1], 0, "", steps=0)
    monkeypatch.setattr(adam_jax, "step", widened)
    with pytest.raises(AssertionError, match="the state changes"):
        check_pair(case, ADAM, TREES[1])

    def broken(tx, grads, state, params):
        raise KeyError("mu")

    monkeypatch.setattr(adam_jax, "step", broken)
    with pytest.raises(AssertionError, match="not a ValueError"):
        check_pair(case, ADAM, TREES[1])
