"""Skipped steps: the criteria, the unchanged state, the counters and the warning."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import adamw, skip_nonfinite, skipped
from tests.catalogue.recipes import stepper

PARAMS = {"w": jnp.ones(4), "b": jnp.zeros(())}


def grads(x):
    return {"w": jnp.full(4, x, jnp.float32), "b": jnp.asarray(x, jnp.float32)}


@pytest.mark.parametrize("through", ["step", "update"])
def test_nothing_is_lost_after_the_limit(through):
    tx = skip_nonfinite(adamw(1e-2), max_consecutive=3)
    step = jax.jit(stepper(tx, through))
    params, state = step(PARAMS, tx.init(PARAMS), grads(1.0))
    before = jax.tree.map(np.asarray, (params, state.inner_state))
    for _ in range(3):
        params, state = step(params, state, grads(np.nan))
    assert skipped(state, 3) == (3, 3)
    params, state = step(params, state, grads(np.nan))
    with pytest.warns(UserWarning, match="4 optimizer steps in a row were skipped"):
        assert skipped({"deep": [state]}, 3) == (4, 4)
    jax.tree.map(np.testing.assert_array_equal, (params, state.inner_state), before)
    _, state = step(params, state, grads(1.0))
    assert skipped(state) == (0, 4)


def test_a_warning_from_inside_the_program():
    tx = skip_nonfinite(adamw(1e-2), max_consecutive=2, warn=True)

    @jax.jit
    def run(state, bad):
        return jax.lax.scan(lambda s, x: (tx.update(grads(x), s, PARAMS)[1], None), state, bad)[0]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jax.block_until_ready(run(tx.init(PARAMS), jnp.array([np.nan, np.nan, 1.0, np.nan])))
        jax.effects_barrier()
        assert caught == []
        bad = jnp.array([1.0, *[np.nan] * 7, 1.0, *[np.nan] * 3])
        state = run(tx.init(PARAMS), bad)
        jax.effects_barrier()
    assert ["3 optimizer steps in a row" in str(w.message) for w in caught] == [True, True]
    assert skipped(state) == (3, 10)


def test_of_several_models_each_is_skipped_alone():
    tx = skip_nonfinite(adamw(1e-2), max_consecutive=1)
    many = jax.tree.map(lambda x: jnp.stack([x, x]), PARAMS)
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), grads(1.0), grads(np.nan))
    state = jax.vmap(tx.init)(many)
    for _ in range(2):
        many, state = jax.vmap(lambda g, s, p: adam_jax.step(tx, g, s, p))(both, state, many)
    with pytest.warns(UserWarning, match="2 optimizer steps in a row"):
        np.testing.assert_array_equal(skipped(state, 1).total, [0, 2])
    assert np.all(many["w"][0] < 1) and np.all(many["w"][1] == 1)


@pytest.mark.parametrize("name", ["value", "loss"])
def test_a_loss_that_is_not_finite_is_enough(name):
    tx = skip_nonfinite(adamw(1e-2))
    params, state = tx.step(grads(1.0), tx.init(PARAMS), PARAMS, **{name: jnp.nan})
    np.testing.assert_array_equal(params["w"], PARAMS["w"])
    assert skipped(state) == (1, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: skip_nonfinite(adamw(1e-3), -1), "max_consecutive must be an integer ≥ 0"),
        (lambda: skip_nonfinite(adamw), "inner must be an Optax transformation"),
        (lambda: skipped(adamw(1e-3).init(PARAMS)), "state must have one skip_nonfinite"),
        (lambda: adam_jax.clip_by_global_norm("1.0"), "max_norm must be a number in"),
        (lambda: adam_jax.accumulate(adamw(1e-3), 0), "every must be an integer ≥ 1"),
        (lambda: adam_jax.accumulate(adamw(1e-3), 2.5), "every must be an integer ≥ 1"),
        (lambda: adam_jax.ema_params(1.0), "decay must be in"),
        (lambda: adam_jax.chain(adamw(1e-3), adamw), "must be an Optax transformation"),
    ],
)
def test_errors_when_built(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("tx", "message"),
    [
        (skip_nonfinite(adamw(1e-3)), "must be an ApplyIfFiniteState"),
        (adam_jax.accumulate(adamw(1e-3), 2), "must be an AccumulateState"),
        (adam_jax.ema_params(0.9), "must be an EmaParamsState"),
        (adam_jax.chain(adamw(1e-3), adamw(1e-3)), "must be a tuple of 2"),
    ],
)
def test_another_state(tx, message):
    with pytest.raises(ValueError, match=message):
        tx.update(grads(1.0), adamw(1e-3).init(PARAMS), PARAMS)


def test_other_errors_in_a_step():
    tx = adam_jax.accumulate(adamw(1e-3), 2)
    with pytest.raises(ValueError, match="the state has 'b', the updates do not"):
        tx.update({"w": PARAMS["w"]}, tx.init(PARAMS), PARAMS)
    tx = adam_jax.ema_params(0.9)
    with pytest.raises(ValueError, match="params must be given"):
        tx.update(PARAMS, tx.init(PARAMS))


def test_a_step_that_the_outer_one_skips_is_not_taken_by_the_inner_one():
    """The inner one sees zeros, the outer one NaN."""
    tx = adam_jax.chain(optax.zero_nans(), skip_nonfinite(adamw(1e-2)))
    tx = skip_nonfinite(tx)
    params, step = jnp.ones(3), jax.jit(tx.step)
    params, state = step(jnp.ones(3), tx.init(params), params)
    after, skipped = step(jnp.full(3, jnp.nan), state, params)
    np.testing.assert_array_equal(after, params)
    jax.tree.map(np.testing.assert_array_equal, skipped.inner_state, state.inner_state)
    assert int(skipped.total_notfinite) == 1
