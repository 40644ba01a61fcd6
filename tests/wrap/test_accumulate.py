"""Gradient accumulation: weights, missing micro-batches, and the dtype of the sum."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adam_jax
from adam_jax import accumulate, skip_nonfinite
from tests.catalogue.recipes import (
    STEPS,
    Naive,
    assert_close,
    gradients,
    looped,
    member,
    naive,
    norm,
    parameters,
    stepper,
)


def test_weights_of_micro_batches():
    params = parameters()
    stacked = gradients(params, bad=False)
    weights = np.random.default_rng(3).integers(0, 5, STEPS).astype(np.float32)
    weights[8:12] = [0, 0, 3, 0]
    expected = naive(params, stacked, weights, every=4)
    # The loss of a batch without tokens is 0/0.
    stacked = jax.tree.map(lambda g: g.at[8].set(jnp.nan), stacked)
    actual, _ = looped(accumulate(member(), 4), params, stacked, weight=weights)
    assert_close(actual, expected.params)


def test_accumulating_less_and_less_often():
    """`every` is a function of the optimizer steps: 1, 2, 3, 3, ..."""
    params, tx = parameters(), accumulate(member(), lambda count: jnp.minimum(count + 1, 3))
    stacked = gradients(params, bad=False)
    run = Naive(params)
    for i in range(STEPS):
        run.every = min(optax.tree.get(run.state[0], "count") + 1, 3)
        run.step(jax.tree.map(lambda g, i=i: g[i], stacked))
    assert_close(looped(tx, params, stacked)[0], run.params)


def test_a_micro_batch_can_be_skipped_alone():
    params = parameters()
    stacked = gradients(params)
    good = [
        i for i in range(STEPS) if np.isfinite(norm(jax.tree.map(lambda g, i=i: g[i], stacked)))
    ]
    run = Naive(params, every=4)
    for i in good:
        run.step(jax.tree.map(lambda g, i=i: g[i], stacked))
    tx = skip_nonfinite(accumulate(member(), 4), warn=False)
    for through in ("step", "update"):
        actual, state = looped(tx, params, stacked, through)
        assert_close(actual, run.params)
        assert adam_jax.skipped(state).total == STEPS - len(good)


def test_an_accumulator_of_16_bits_does_not_round_the_update():
    """The update is not stored in the accumulator's memory."""
    params = parameters()
    stacked = gradients(params, bad=False)
    tx = accumulate(member(), 2, dtype=jnp.bfloat16)
    by_step, state = looped(tx, params, stacked)
    assert state.acc_grads["w"].dtype == jnp.bfloat16
    assert_close(looped(tx, params, stacked, "update")[0], by_step)


def test_a_gradient_that_is_there_in_some_micro_steps():
    tx = accumulate(adam_jax.scale_by_learning_rate(1.0), 2)
    for through in ("step", "update"):
        step, params = stepper(tx, through), {"a": jnp.zeros(()), "b": jnp.zeros(())}
        state = tx.init(params)
        for b in (1.0, 1.0, None, 0.0):
            grads = {"a": jnp.ones(()), "b": None if b is None else jnp.asarray(b)}
            if b is None and through == "update":
                _, state = tx.update(grads, state, params)
            else:
                params, state = step(params, state, grads)
        np.testing.assert_array_equal(params["b"], -1.0)


def test_a_weight_that_is_not_above_zero_weighs_nothing():
    tx = accumulate(optax.sgd(1.0), 3)
    params, state = jnp.zeros(()), tx.init(jnp.zeros(()))
    for g, weight in ((1.0, np.nan), (5.0, -1.0), (2.0, 3.0)):
        params, state = adam_jax.step(tx, jnp.asarray(g), state, params, weight=weight)
    np.testing.assert_array_equal(params, -2.0)


def test_float64_is_accumulated_in_float64(x64):
    tx = accumulate(optax.sgd(1.0), 3)
    params, state = jnp.zeros((), jnp.float64), tx.init(jnp.zeros((), jnp.float64))
    for g in (0.1, 0.7, 123.3):
        params, state = adam_jax.step(tx, jnp.asarray(g, jnp.float64), state, params)
    np.testing.assert_allclose(params, -(0.1 + 0.7 + 123.3) / 3, rtol=1e-14)
