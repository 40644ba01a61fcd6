"""Errors name the argument, the value and the allowed range, and say what to write instead."""

import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from tests.catalogue import MEMBERS, every_kind_of_state, every_member
from tests.catalogue.runs import raised

NAN, INF = float("nan"), float("inf")


WRONG = [
    ("b1", 1.0, "[0, 1)"),
    ("b1", 1.5, "[0, 1"),
    ("b1", -0.1, "[0, 1"),
    ("b1", "0.9", "[0, 1"),
    ("b1", None, "[0, 1"),
    ("b2", NAN, "[0, 1"),
    ("b2", np.float32(1.0), "[0, 1)"),
    ("b2", jnp.float32(1.5), "[0, 1"),
    ("b2", np.ones(3), "shape (3,)"),
    ("eps", -1, "[0, inf)"),
    ("eps", np.asarray(-1.0), "[0, inf)"),
    ("eps_root", NAN, "[0, inf)"),
    ("learning_rate", INF, "(-inf, inf)"),
    ("learning_rate", -INF, "(-inf, inf)"),
    ("learning_rate", np.ones(3), "shape (3,)"),
    ("learning_rate", True, "(-inf, inf)"),
    ("mu_dtype", "int16", "float32"),
    ("nu_dtype", "float33", "float32"),
    ("nu_dtype", jnp.float8_e4m3b11fnuz, "float32"),
    ("weight_decay", -INF, "(-inf, inf)"),
    ("l2", NAN, "(-inf, inf)"),
    ("b3", 1.5, "[0, 1"),
    ("alpha", -1.0, "[0, inf)"),
    ("eps_hat", INF, "[0, inf)"),
    ("threshold", 3.0, "[4, inf)"),
    ("momentum_decay", -1.0, "[0, inf)"),
    ("change_weight", -1.0, "[0, inf)"),
    ("initial_accumulator_value", -1.0, "[0, inf)"),
    ("smooth_beta", NAN, "[0, inf)"),
]


def refusal(member, argument, value):
    arguments = {"learning_rate": 1e-3, **member.keywords, **member.ours, argument: value}
    return raised(lambda: member.function(**arguments))


@pytest.mark.parametrize(("argument", "value", "interval"), WRONG)
def test_each_rule_of_numbers_and_dtypes(argument, value, interval):
    """On the first member with the argument; the next test covers all members."""
    member = next(m for m in MEMBERS if m.has(argument))
    message = refusal(member, argument, value)
    assert message.startswith(argument) and interval in message and ": " in message


@every_member
def test_every_number_and_dtype_is_checked(member):
    # A bound may be open for one member and closed for another.
    rows = {argument: value for argument, value, interval in WRONG if interval != "[0, 1)"}
    for argument, value in rows.items():
        if member.has(argument):
            assert refusal(member, argument, value).startswith(argument), argument


@pytest.mark.parametrize(
    "make",
    [
        lambda: adam_jax.scale_by_learning_rate(NAN),
        lambda: adam_jax.schedules.inverse_sqrt_schedule(INF),
    ],
)
def test_numbers_elsewhere(make):
    with pytest.raises(ValueError, match=r"must be in (\[0, |\(-inf, inf)"):
        make()


PARAMS = {"a": {"kernel": jnp.ones((2, 3))}, "b": jnp.ones(4)}


@every_kind_of_state
@pytest.mark.parametrize(
    ("grads", "words"),
    [
        ({"a": {"kernel": jnp.ones((2, 3))}}, ["'b'", "init"]),
        ({**PARAMS, "c": jnp.ones(1)}, ["'c'", "init"]),
        ({"a": {"bias": jnp.ones((2, 3))}, "b": jnp.ones(4)}, ["'a/kernel'", "init"]),
        ({"a": {"kernel": jnp.ones((3, 2))}, "b": jnp.ones(4)}, ["'a/kernel'", "(3, 2)", "(2, 3)"]),
        ({"a": {"kernel": jnp.ones((2, 3), int)}, "b": jnp.ones(4)}, ["'a/kernel'", "int32"]),
        ([jnp.ones((2, 3)), jnp.ones(4)], ["'a/kernel'", "init"]),
    ],
)
def test_gradients_unlike_the_state(member, grads, words):
    tx = member.alias(1e-3)
    message = raised(lambda: tx.update(grads, tx.init(PARAMS), PARAMS))
    assert all(word in message for word in words), message


@every_kind_of_state
def test_a_state_of_something_else(member):
    tx = member.alias(1e-3)
    state = tx.init(PARAMS)
    for wrong in (state[0], state[::-1], (), None):
        with pytest.raises(ValueError, match="the state must be"):
            tx.update(PARAMS, wrong, PARAMS)


def test_a_schedule_on_a_state_without_its_count():
    """Every tuple has a method `count`, including the empty state of a constant learning rate."""
    made, tx = adam_jax.adamw(1e-3), adam_jax.adamw(lambda count: 1e-3)
    state = adam_jax.step(made, PARAMS, made.init(PARAMS), PARAMS)[1]
    with pytest.raises(
        ValueError, match=r"ScaleByScheduleState\(count\), got an EmptyState.*from_optax"
    ):
        tx.update(PARAMS, state, PARAMS)
    moved = adam_jax.convert.from_optax(state, PARAMS, tx)  # The message's advice.
    assert int(tx.update(PARAMS, moved, PARAMS)[1][-1].count) == 2


def test_a_gradient_for_a_leaf_without_state():
    tx = adam_jax.adam(1e-3)
    with pytest.raises(ValueError, match="'b'.*state is empty"):
        tx.update({"a": jnp.ones(1), "b": jnp.ones(1)}, tx.init({"a": jnp.ones(1), "b": None}))


def test_step_needs_the_parameters():
    tx = adam_jax.adam(1e-3)
    with pytest.raises(ValueError, match=r"step moves them. Write adam_jax\.step"):
        adam_jax.step(tx, PARAMS, tx.init(PARAMS), None)


def test_weight_decay_needs_the_parameters():
    tx = adam_jax.adamw(1e-3)
    with pytest.raises(ValueError, match=r"tx\.update\(grads, state, params\)"):
        tx.update(PARAMS, tx.init(PARAMS))
    with pytest.raises(ValueError, match="params must have the structure"):
        tx.update(PARAMS, tx.init(PARAMS), {"a": 1.0})
    other = {"a": {"kernel": jnp.ones((2, 3))}, "b": jnp.ones(5)}
    with pytest.raises(ValueError, match=r"at 'b'.*\(4,\).*\(5,\)"):
        tx.update(PARAMS, tx.init(PARAMS), other)
