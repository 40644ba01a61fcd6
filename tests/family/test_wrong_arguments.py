"""Arguments in the wrong place or of the wrong type: the error says what to write instead."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from tests.catalogue import every_member
from tests.catalogue.runs import raised

PARAMS = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}


def updated(tx, params=PARAMS):
    return tx.update(params, tx.init(params), params)


def nothing(count):
    del count


RESULTS = {
    "None": (nothing, "a number, got None"),
    "a string": (lambda count: "1e-3", "a number, got '1e-3'"),
    "a tuple": (lambda count: (1e-3,), "a number, got (0.001,)"),
    "an array": (lambda count: jnp.ones(3), "a scalar, got shape (3,)"),
    "complex": (lambda count: 1j, "a number, got 1j"),
}
# An array with the shape of a bias would act as a learning rate per element.
SCHEDULED = {
    "rate": lambda f: adam_jax.adamw(f),
    "weight_decay": lambda f: adam_jax.adamw(1e-3, weight_decay=f),
    "l2": lambda f: adam_jax.adam(1e-3, l2=f),
    "scale_by_learning_rate": adam_jax.scale_by_learning_rate,
    "in the state": lambda f: adam_jax.with_hyperparams(adam_jax.adamw)(f),
    "in a group": lambda f: adam_jax.groups(
        adam_jax.adamw, {"w": {"learning_rate": f}}, learning_rate=1.0
    ),
    "every": lambda f: adam_jax.accumulate(adam_jax.adamw(1e-3), f),
    "clip_value_fn": lambda f: adam_jax.adopt(1e-3, clip_value_fn=f),
    "b3": lambda f: adam_jax.ademamix(1e-3, b3=f),
    "alpha": lambda f: adam_jax.ademamix(1e-3, alpha=f),
    "schedule_free": adam_jax.schedule_free_adamw,
}


@pytest.mark.parametrize(("result", "words"), RESULTS.values(), ids=RESULTS)
@pytest.mark.parametrize("make", SCHEDULED.values(), ids=SCHEDULED)
def test_what_a_schedule_returns(make, result, words):
    def run():
        return updated(make(result))

    for call in (run, jax.jit(run)):
        message = raised(call)
        assert f"must be {words}: return " in message, message


def test_a_schedule_is_called_by_its_name():
    assert "of the schedule nothing " in raised(lambda: updated(adam_jax.adamw(nothing)))
    partly = functools.partial(nothing)
    assert "functools.partial" in raised(lambda: updated(adam_jax.adamw(partly)))
    named = adam_jax.with_hyperparams(adam_jax.adamw)
    message = raised(lambda: named(1e-3, weight_decay=nothing))
    assert message.startswith("the schedule of weight_decay must be")


def test_the_order_of_step():
    tx = adam_jax.adamw(1e-3)
    state = tx.init(PARAMS)
    for first in (PARAMS, state, adam_jax.adamw, None):
        message = raised(lambda first=first: adam_jax.step(first, PARAMS, state, tx), TypeError)
        assert message.startswith(f"tx must be an Optax transformation, got {type(first).__name__}")
        assert "adam_jax.step(tx, grads, state, params)" in message
    order = "adam_jax.step(tx, grads, state, params)"
    for wrong in ((state, PARAMS, PARAMS), (PARAMS, PARAMS, state)):
        message = raised(lambda wrong=wrong: adam_jax.step(tx, *wrong))
        assert message.startswith("the state must be the tuple of 3") and order in message
        for around in (adam_jax.accumulate, adam_jax.telemetry):
            outer = around(tx, 2)
            assert order in raised(lambda outer=outer, wrong=wrong: outer.step(*wrong))
        single = adam_jax.scale_by_adam()
        assert order in raised(lambda single=single, wrong=wrong: single.step(*wrong))


def test_step_takes_every_transformation():
    for tx in (optax.sgd(0.5), optax.MultiSteps(adam_jax.adamw(1e-3), 2)):
        with jax.numpy_dtype_promotion("standard"):
            params, _ = adam_jax.step(tx, PARAMS, tx.init(PARAMS), PARAMS)
        assert jax.tree.structure(params) == jax.tree.structure(PARAMS)


@every_member
@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_parameters_and_gradients_of_8_bits(member, dtype):
    tx = member.alias(1e-3)
    low = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    state = tx.init(PARAMS)
    calls = (
        lambda: tx.init(low),
        lambda: tx.update(low, state, PARAMS),
        lambda: tx.step(PARAMS, state, low),
    )
    for call in calls:
        message = raised(call)
        assert message.startswith("at 'b', ") and jnp.dtype(dtype).name in message
        assert "bfloat16 or float32" in message


def test_a_number_in_quotes():
    for make, text in (
        (lambda: adam_jax.adamw("1e-3"), "got '1e-3'"),
        (lambda: adam_jax.adamw(1e-3, b1=np.str_("0.9")), "'0.9'"),
        (lambda: adam_jax.with_hyperparams(adam_jax.adamw)("1e-3"), "got '1e-3'"),
    ):
        message = raised(make)
        assert text in message
    assert "0.0 turns it off" in raised(lambda: adam_jax.adamw(1e-3, weight_decay="no"))


@every_member
def test_a_learning_rate_that_is_not_set(member):
    message = raised(lambda: member.alias(None))
    assert message.startswith("learning_rate must be a number") and "got None" in message
    named = adam_jax.with_hyperparams(member.alias)
    assert raised(lambda: named(learning_rate=None)) == message


OTHER_NAMES = {
    "lr": "learning_rate",
    "beta1": "b1",
    "beta_2": "b2",
    "betas": "b1 and b2",
    "epsilon": "eps",
    "weight_decay": "l2 as in PyTorch's Adam, or take a member",
}


@every_member
def test_other_libraries_names_of_arguments(member):
    known = inspect.signature(member.alias).parameters
    in_groups = functools.partial(adam_jax.groups, member.alias, {".*": {}})
    calls = (member.alias, adam_jax.with_hyperparams(member.alias), in_groups)
    for theirs in OTHER_NAMES.keys() - known.keys():
        ours = OTHER_NAMES[theirs]
        right = f"for {theirs} write {ours}" if ours.split(" ")[0] in known else "its arguments"
        for call in calls:
            given = functools.partial(call, **{"learning_rate": 1e-3, theirs: 0.5})
            message = raised(given, TypeError)
            assert f"{theirs!r}: {right}" in message and ", ".join(known) in message


TOO_LARGE = {
    "learning_rate": lambda x: adam_jax.adam(x),
    "eps": lambda x: adam_jax.adam(1e-3, eps=x),
    "weight_decay": lambda x: adam_jax.adamw(1e-3, weight_decay=x),
    "max_norm": adam_jax.clip_by_global_norm,
    "alpha": lambda x: adam_jax.ademamix(1e-3, alpha=x),
}


@pytest.mark.parametrize("argument", TOO_LARGE)
@pytest.mark.parametrize("kind", [float, np.float64, int])
def test_a_number_that_float32_has_not(argument, kind):
    message = raised(lambda: TOO_LARGE[argument](kind(1e40)))
    assert message.startswith(f"{argument} must be at most 3.4e+38") and "float32" in message
    TOO_LARGE[argument](kind(3e38))


def test_a_number_that_float32_has_not_in_the_state():
    state = adam_jax.with_hyperparams(adam_jax.adamw)(1e-3).init(PARAMS)
    for number in (1e40, np.float64(1e40), np.asarray([1e40])):
        message = raised(lambda x=number: adam_jax.set_hyperparams(state, learning_rate=x))
        assert message.startswith("learning_rate must be at most 3.4e+38")
    new = adam_jax.set_hyperparams(state, learning_rate=3e38)
    assert np.isfinite(adam_jax.hyperparams(new)["learning_rate"])


def test_float64_has_it(x64):
    tx = adam_jax.with_hyperparams(adam_jax.adamw)(1e40)
    assert adam_jax.hyperparams(tx.init(PARAMS))["learning_rate"] == 1e40


def test_an_eps_that_float32_has_not_is_zero():
    """eps = 0 is allowed; updates are then 0 where the gradient is 0."""
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    tx = adam_jax.adam(1e-3, eps=1e-60)
    for update in (tx.update, jax.jit(tx.update)):
        updates, _ = update(zeros, tx.init(PARAMS))
        assert all((u == 0).all() for u in jax.tree.leaves(updates))
