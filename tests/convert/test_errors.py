"""Errors of the converters for wrong arguments, and step counts beyond the largest count.

PyTorch is not needed: plain dictionaries and objects with its attributes replace it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from adam_jax import convert
from tests.catalogue.runs import raised

PARAMS = {"w": jnp.ones(2), "b": jnp.ones(3)}
ORDER = ["w", "b"]
TX = adam_jax.adamw(1e-3)
LARGEST = 2**31 - 1


def state_dict(step, **rest):
    entries = {
        i: {"step": step, "exp_avg": np.ones(size), "exp_avg_sq": np.ones(size), **rest}
        for i, size in enumerate((2, 3))
    }
    return {"state": entries, "param_groups": [{"params": [0, 1]}]}


class FakeOptimizer:
    def __init__(self):
        self.state, self.param_groups = {}, [{"params": [object(), object()]}]

    def state_dict(self):
        return {"state": {}, "param_groups": [{"params": [0, 1]}]}


def by_torch(state):
    return convert.from_torch(state, PARAMS, TX, order=ORDER)


@pytest.mark.parametrize("wrong", [FakeOptimizer(), None, [1, 2], {}, {"w": np.ones(2)}, TX])
def test_something_else_than_a_state_dict(wrong):
    message = raised(lambda: by_torch(wrong))
    assert message.startswith("state_dict must be that of an optimizer, with 'state' and")
    assert message.endswith("write optimizer.state_dict().")
    if not isinstance(wrong, dict):
        assert f"got {type(wrong).__name__}:" in message


def test_an_optimizer_without_steps():
    message = raised(lambda: by_torch(FakeOptimizer().state_dict()))
    assert "has taken a step" in message and "state = tx.init(params)" in message


@pytest.mark.parametrize("step", [0, -1, 1.5, np.nan, np.inf, None, "7", np.ones(2)])
def test_steps_that_are_no_count(step):
    message = raised(lambda: by_torch(state_dict(step)))
    assert "the step of 'b' must be a whole number of steps taken, 1 or more, got" in message


@pytest.mark.parametrize("step", [1e12, 10**12, 2**31, np.float32(2**31), LARGEST])
def test_steps_past_the_largest_count_are_the_largest(step):
    """Counts saturate and do not wrap: there the bias corrections are 1."""
    state = by_torch(state_dict(step))
    assert int(state[0].count) == LARGEST
    updates, new = TX.update(PARAMS, state, PARAMS)
    assert int(new[0].count) == LARGEST
    assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))


def test_the_largest_count_goes_to_pytorch_and_back():
    state = by_torch(state_dict(LARGEST))
    there = convert.to_torch(state, PARAMS, TX, FakeOptimizer().state_dict(), order=ORDER)
    assert int(by_torch(there)[0].count) == LARGEST


def test_momenta_of_many_steps():
    """The product is 0 after thousands of steps; a list of all momenta would not fit in memory."""
    tx = adam_jax.nadam(2e-3, momentum_decay=0.004)
    state = state_dict(1e12, mu_product=0.0)
    assert int(convert.from_torch(state, PARAMS, tx, order=ORDER)[0].count) == LARGEST


ATTENTION = {name: jnp.ones((4, 4)) for name in ("q", "k", "v")}
FUSED = {"step": 3.0, "exp_avg": np.ones((12, 4)), "exp_avg_sq": np.ones((12, 4))}


@pytest.mark.parametrize(
    "names", [None, {"q": "in_proj_weight"}, dict.fromkeys(ATTENTION, "in_proj_weight")]
)
def test_query_key_and_value_in_one(names):
    """The conversion is a sample of docs/migrating/pytorch.md, which the page tests run."""
    state = {"state": {0: FUSED}, "param_groups": [{"params": [0]}]}
    order = ["in_proj_weight"]
    arrays = {"in_proj_weight": np.ones((12, 4))}
    for call in (
        lambda: convert.from_torch(state, ATTENTION, TX, order=order, names=names),
        lambda: convert.params_from_named(arrays, ATTENTION, names=names),
    ):
        message = raised(call)
        assert "is split before it is converted: docs/migrating/pytorch.md" in message
