"""Groups: other hyperparameters for some leaves, in one pass with one count; frozen leaves."""

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax.core.trees import leaf_paths
from tests.catalogue import one_kind_of_state
from tests.catalogue.runs import raised
from tests.catalogue.training import trained

PARAMS = {
    "head": {"kernel": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "bias": jnp.ones(4)},
    "frozen": {"kernel": jnp.ones((2, 2))},
    "norm": {"scale": jnp.full(3, 2.0)},
    "body": [jnp.linspace(1.0, 2.0, 6).reshape(2, 3), jnp.ones(())],
}
GROUPS = {
    r".*bias|norm/.*": {"learning_rate": 3e-2},
    r"head/.*": {"learning_rate": 1e-1, "b1": 0.8, "b2": 0.95},
    r"frozen/.*": None,
}
LABELS = {
    "head": {"kernel": "head", "bias": "bias"},
    "frozen": {"kernel": "frozen"},
    "norm": {"scale": "bias"},
    "body": ["rest", "rest"],
}


@one_kind_of_state
def test_groups_do_what_a_transformation_each_does(member):
    tx = adam_jax.groups(member.alias, GROUPS, learning_rate=1e-2)
    apart = optax.partition(
        {
            "bias": member.alias(**GROUPS[r".*bias|norm/.*"]),
            "head": member.alias(**GROUPS[r"head/.*"]),
            "frozen": optax.set_to_zero(),
            "rest": member.alias(1e-2),
        },
        LABELS,
    )
    together, state = trained(tx, PARAMS, through="update")
    for other, through in ((apart, "update"), (tx, "step")):
        expected, _ = trained(other, PARAMS, through=through)
        chex.assert_trees_all_close(together, expected, rtol=1e-6, atol=1e-7)
    chex.assert_trees_all_equal(together["frozen"], PARAMS["frozen"])
    for slot, moment in member.moments(state).items():
        assert moment["frozen"]["kernel"] == optax.MaskedNode(), slot
        assert moment["head"]["kernel"].shape == (3, 4)
    counts = [x for x in jax.tree.leaves(state) if x.dtype == jnp.int32]
    assert len(counts) == len(member.counts(state)) and all(c == 3 for c in counts)


def test_schedules_of_all_groups_read_one_count():
    half = adam_jax.schedules.inverse_sqrt_schedule(1.0)
    tx = adam_jax.groups(adam_jax.adamw, {"b": {"learning_rate": 0.25}}, learning_rate=half)
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    state = tx.init(params)
    assert [x for x in jax.tree.leaves(state) if x.dtype == jnp.int32] == [0]
    for t in range(1, 4):
        updates, state = tx.update(params, state, params)
        np.testing.assert_allclose(updates["a"], -(1 + 1e-4) / np.sqrt(t), rtol=1e-5)
        np.testing.assert_allclose(updates["b"], -0.25 * (1 + 1e-4), rtol=1e-5)


def test_the_state_is_the_members_own():
    tx = adam_jax.groups(adam_jax.adamw, {"body/.*": {"weight_decay": 0.0}}, learning_rate=1e-2)
    assert jax.tree.structure(tx.init(PARAMS)) == jax.tree.structure(optax.adamw(1).init(PARAMS))
    same = adam_jax.groups(adam_jax.adamw, {"body/.*": {"weight_decay": 0}}, learning_rate=0.01)
    assert same == tx and hash(same) == hash(tx)


def test_the_first_match_wins_and_the_whole_path_counts():
    tx = adam_jax.groups(
        adam_jax.adam,
        {"a": {"learning_rate": 0.0}, "a.*": {"learning_rate": 0.5}},
        learning_rate=1.0,
    )
    params = {"a": jnp.ones(1), "ab": jnp.ones(1), "ba": jnp.ones(1)}
    updates, _ = tx.update(params, tx.init(params), params)
    sizes = {name: round(float(u[0]), 5) for name, u in updates.items()}
    assert sizes == {"a": 0.0, "ab": -0.5, "ba": -1.0}


def test_none_leaves_and_none_gradients():
    tx = adam_jax.groups(adam_jax.adamw, {"frozen": None, "b": {"b1": 0.5}}, learning_rate=0.1)
    params = {"a": jnp.ones(2), "b": jnp.ones(2), "none": None, "frozen": jnp.ones(2)}
    grads = {"a": None, "b": jnp.ones(2), "none": None, "frozen": jnp.ones(2)}
    state = tx.init(params)
    updates, state = tx.update(grads, state, params)
    assert updates["a"] is None and updates["none"] is None
    assert (updates["frozen"] == 0).all() and (updates["b"] < 0).all()
    moved, _ = adam_jax.step(tx, grads, state, params)
    chex.assert_trees_all_equal(moved["a"], params["a"])
    chex.assert_trees_all_equal(moved["frozen"], params["frozen"])


def test_paths_of_nnx_and_of_dataclasses():
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([nnx.Linear(2, 3, rngs=nnx.Rngs(i)) for i in (0, 1)])

    tx = adam_jax.groups(
        adam_jax.adam, {"layers/0/.*": None, ".*/bias": {"b1": 0.0}}, learning_rate=0.1
    )
    params = nnx.state(Net(), nnx.Param)
    moved, _ = trained(tx, params)
    moved = jax.tree.map(lambda x, y: bool((x != y).any()), moved, params)["layers"]
    assert [jax.tree.leaves(moved[i]["kernel"]) for i in (0, 1)] == [[False], [True]]

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Point:
        x: jax.Array
        value: jax.Array

    tx = adam_jax.groups(adam_jax.adam, {"x": None, ".*/value": None}, learning_rate=0.1)
    point = Point(x=jnp.ones(1), value=jnp.ones(1))
    assert leaf_paths({"a": point, "b": None}) == ["a/x", "a/value", "b"]
    with pytest.raises(ValueError, match=r"'\.\*/value' matches nothing: .*\['x', 'value'\]"):
        tx.init(point)
    tx = adam_jax.groups(adam_jax.adam, {"x": None}, learning_rate=0.1)
    updates, _ = tx.update(point, tx.init(point), point)
    assert updates.x == 0 and updates.value < 0


@pytest.mark.parametrize(
    ("expressions", "defaults", "words"),
    [
        ({"boddy/.*": {"b1": 0.5}}, {"learning_rate": 0.1}, ["'boddy/.*'", "nothing", "body/0"]),
        (
            {"head/.*": {"b1": 0.5}, "head/bias": {"b1": 0.1}},
            {"learning_rate": 0.1},
            ["'head/bias'", "before it took"],
        ),
        ({"head/.*": {"learning_rate": 1.0}}, {}, ["body/0", "norm/scale", "learning_rate=1e-3"]),
    ],
)
def test_expressions_that_do_not_fit_the_leaves(expressions, defaults, words):
    tx = adam_jax.groups(adam_jax.adamw, expressions, **defaults)
    message = raised(lambda: tx.init(PARAMS))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda g: g(adam_jax.adam, {"(": {}}, learning_rate=0.1), "must be a regular expression"),
        (lambda g: g(adam_jax.adam, {".*": None}), "must leave a leaf that moves"),
        (lambda g: g(optax.adam, {}, learning_rate=0.1), r"groups\(\{expression: optimizer"),
        (lambda g: g(adam_jax.adam, {"a": {"l2": 0.1}}, learning_rate=0.1), "keep the same state"),
        (lambda g: g(adam_jax.adam, {"a": {"b1": 1.0}}, learning_rate=0.1), "'a': b1 must be in"),
        (lambda g: g(adam_jax.adam(0.1), {"a": {}}), "adamw without its arguments"),
        (lambda g: g(adam_jax.adam, ["a"], learning_rate=0.1), "must be a dict"),
        (lambda g: g(adam_jax.adam, {"a": 0.1}, learning_rate=0.1), "'a': must have a dict"),
        (
            lambda g: g(adam_jax.with_hyperparams(adam_jax.adam), {}, learning_rate=0.1),
            "got WithHyperparams: .*functools.partial",
        ),
    ],
)
def test_groups_that_cannot_be_made(make, message):
    with pytest.raises(ValueError, match=message):
        make(adam_jax.groups)


def test_an_unknown_hyperparameter():
    with pytest.raises(TypeError, match=re.escape("adam() got an unexpected")):
        adam_jax.groups(adam_jax.adam, {"a": {"wd": 1}}, learning_rate=0.1)


def test_paths_of_none_in_a_variable():
    from flax import nnx

    state = nnx.State({"w": nnx.Param(jnp.ones(2)), "b": nnx.Param(None)})
    assert leaf_paths(state) == ["b", "w"] and leaf_paths(state, none_is_leaf=False) == ["w"]


def test_states_without_leaves():
    tx = adam_jax.groups(adam_jax.adamw, GROUPS, learning_rate=0.1)
    assert tx.init(None)[0].mu is None
    state = optax.tree.map_params(tx, lambda x: x + 1.0, tx.init(PARAMS))
    assert (state[0].mu["head"]["kernel"] == 1).all() and state[0].count == 0


def test_members_that_remember_only_their_count():
    rate = adam_jax.schedules.inverse_sqrt_schedule(1.0)
    tx = adam_jax.groups(
        adam_jax.scale_by_learning_rate, {"a": {"learning_rate": 0.25}}, learning_rate=rate
    )
    params = {"a": jnp.ones(1), "b": jnp.ones(1)}
    state = tx.init(params)
    for t in range(1, 4):
        updates, state = tx.update(params, state)
        np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [-0.25, -(t**-0.5)])
    assert state.count == 3


def test_decay_mask():
    assert adam_jax.decay_mask(PARAMS | {"none": None, "number": 2.0}) == {
        "head": {"kernel": True, "bias": False},
        "frozen": {"kernel": True},
        "norm": {"scale": False},
        "body": [True, False],
        "none": None,
        "number": False,
    }
