"""`weight=` and `value=`: allowed values, and weights that are all zero."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from tests.catalogue.recipes import stepper

PARAMS = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
GRADS = jax.tree.map(jnp.sin, PARAMS)


def schedule(count):
    return 0.1 / (1 + count)


def stepped(tx, **extra_args):
    state = tx.init(PARAMS)
    updates, _ = tx.update(GRADS, state, PARAMS, **extra_args)
    params, _ = adam_jax.step(tx, GRADS, state, PARAMS, **extra_args)
    return updates, params


@pytest.mark.parametrize(
    ("weight", "printed"),
    [(None, "None"), ("3", "'3'"), ([1.0, 2], "[1.0, 2]"), ((1,), "(1,)"), (1j, "1j")]
    + [({"w": 1.0}, "a dict"), (object(), "an object"), ([jnp.ones(3)], "a list")],
)
def test_a_weight_that_is_no_number(weight, printed):
    """The message has no object in full."""
    tx = adam_jax.accumulate(adam_jax.adamw(0.1), 2)
    for call in (tx.update, tx.step):
        with pytest.raises(ValueError) as error:
            call(GRADS, tx.init(PARAMS), PARAMS, weight=weight)
        message = str(error.value)
        assert message.startswith(f"weight must be a number, got {printed}: ")
        assert "leave it out" in message


def test_a_weight_that_is_no_scalar():
    tx = adam_jax.accumulate(adam_jax.adamw(0.1), 2)
    with pytest.raises(ValueError, match=r"^weight must be a scalar, got shape \(2,\): "):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, weight=jnp.ones(2))


@pytest.mark.parametrize("weight", [1, 2.5, np.float64(3), np.int32(4), jnp.float32(2), True])
def test_weights_that_are(weight):
    """For a single micro-batch the weight has no effect."""
    tx = adam_jax.accumulate(adam_jax.adamw(0.1), 1)
    jax.tree.map(np.testing.assert_array_equal, stepped(tx, weight=weight), stepped(tx))


@pytest.mark.parametrize("value", ["3", [1.0], 1j])
def test_a_value_that_is_no_number(value):
    tx = adam_jax.skip_nonfinite(adam_jax.adamw(0.1))
    with pytest.raises(ValueError, match=r"^value must be a number, got .*: pass the mean loss"):
        stepped(tx, value=value)


INNER = {
    "adamw": adam_jax.adamw(schedule, weight_decay=0.1),
    "Optax's": optax.adamw(schedule, weight_decay=0.1),
    "8 bits": adam_jax.adamw(schedule, mu_dtype=adam_jax.stochastic(jnp.int8)),
}


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
@pytest.mark.parametrize("zero", [0.0, jnp.nan, -1.0])
def test_no_step_where_all_weights_are_zero(inner, zero):
    """No step is taken or counted; the micro-steps start again."""
    with jax.numpy_dtype_promotion("standard"):
        tx = adam_jax.accumulate(inner, 2)
        before = tx.init(PARAMS)
        _, before = adam_jax.step(tx, GRADS, before, PARAMS, weight=2.0)
        params, before = adam_jax.step(tx, GRADS, before, PARAMS, weight=1.0)
        assert int(before.gradient_step) == 1 and int(before.mini_step) == 0
        for through in ("step", "update"):
            step = stepper(tx, through)
            moved, state = params, before
            for turn in range(2):
                bad = jax.tree.map(lambda g: g * jnp.nan, GRADS)
                moved, state = step(moved, state, bad, weight=zero)
                assert int(state.mini_step) == (turn + 1) % 2
            assert int(state.gradient_step) == 1
            jax.tree.map(np.testing.assert_array_equal, moved, params)
            inner = (s.inner_opt_state for s in (state, before))
            jax.tree.map(np.testing.assert_array_equal, *inner)
            after, expected = (_two_steps(tx, s, p) for s, p in ((state, moved), (before, params)))
            jax.tree.map(np.testing.assert_array_equal, after, expected)


def _two_steps(tx, state, params):
    for _ in range(2):
        params, state = adam_jax.step(tx, GRADS, state, params, weight=1.5)
    return params


accumulating = adam_jax.accumulate(adam_jax.adamw(0.1), 2)
skipping = adam_jax.skip_nonfinite(adam_jax.adamw(0.1))


@pytest.mark.parametrize(
    ("tx", "extra_args"),
    [
        (adam_jax.adamw(0.1), {"weight": 1.0, "value": 2.0}),
        (accumulating, {"value": 1.0, "grad": GRADS, "value_fn": None, "batch": 3}),
        (skipping, {"weight": 1.0, "value_fn": len, "loss": 1.0, "key": 0}),
        (skipping, {"value": 1.0, "values": 3.0}),
    ],
)
def test_arguments_of_others_are_passed_over(tx, extra_args):
    """Optax's contract: each transformation of a chain receives all extra arguments."""
    jax.tree.map(np.testing.assert_array_equal, stepped(tx, **extra_args), stepped(tx))
