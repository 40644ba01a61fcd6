"""Recipes around other people's transformations, and leaves that are not like the others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import adam_jax
from adam_jax import accumulate, adamw, chain, clip_by_global_norm, skip_nonfinite, telemetry
from tests.recipes import assert_close, parameters, stepper


def described(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), x.dtype), tree)


@pytest.mark.parametrize(
    "make",
    [
        lambda inner: accumulate(inner, 2),
        lambda inner: chain(clip_by_global_norm(1.0), skip_nonfinite(inner)),
        lambda inner: accumulate(telemetry(skip_nonfinite(chain(inner)), 1), 2),
        lambda inner: telemetry(inner, 1),
    ],
)
@pytest.mark.parametrize("inner", [optax.adamw(1e-2), optax.sgd(1e-2, momentum=0.9)])
def test_another_transformation_gets_the_dtypes_it_would_get_in_optax(
    make, inner, standard_promotion
):
    """Its state has the parameters' dtype and keeps it, as scan asks of it."""
    params, tx = parameters(jnp.bfloat16), make(inner)
    for through in ("step", "update"):
        step = jax.jit(stepper(tx, through))
        moved, state = params, tx.init(params)
        for _ in range(4):
            moved, state = step(moved, state, params)
        assert described(state) == described(tx.init(params))
        assert described(moved) == described(params)
        assert np.any(moved["w"] != params["w"])


def test_an_update_is_not_rounded_on_its_way_to_another(standard_promotion):
    params = parameters()
    grads = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    links = (adam_jax.scale_by_adam(), optax.add_decayed_weights(0.1), optax.scale(1 / 3))
    ours, theirs = chain(*links), optax.chain(*links)
    actual, _ = ours.update(grads, ours.init(params), params)
    expected, _ = theirs.update(grads, theirs.init(params), params)
    assert described(actual) == described(expected)
    assert_close(actual, expected)


def test_the_average_is_of_the_parameters_that_update_makes():
    params = parameters(jnp.bfloat16)
    tx = chain(adamw(1e-2), adam_jax.ema_params(0.0))
    for through in ("step", "update"):
        moved, state = jax.jit(stepper(tx, through))(params, tx.init(params), params)
        wide = jax.tree.map(lambda p: p.astype(jnp.float32), moved)
        jax.tree.map(np.testing.assert_array_equal, state[1].ema, wide)


def test_the_average_of_float16_has_its_smallest_numbers():
    tx = chain(adam_jax.scale_by_learning_rate(0.0), adam_jax.ema_params(0.9))
    params = jnp.asarray([6e-8, -3e-7, 1e-4, 65504], jnp.float16)
    _, state = jax.jit(stepper(tx, "step"))(params, tx.init(params), params)
    np.testing.assert_array_equal(state[1].ema, params.astype(jnp.float32))


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


def test_complex_leaves():
    params = {"z": jnp.ones(3, jnp.complex64), "x": jnp.ones(2)}
    inner = chain(clip_by_global_norm(0.5), adamw(1e-2), adam_jax.ema_params(0.9))
    tx = accumulate(telemetry(skip_nonfinite(inner), 1), 2)
    moved, state = params, tx.init(params)
    for _ in range(4):
        moved, state = jax.jit(stepper(tx, "step"))(moved, state, params)
    assert moved["z"].dtype == jnp.complex64 and np.all(np.real(moved["z"]) < 1)
    assert adam_jax.measured(state)["groups"]["z"]["cosine"] == pytest.approx(-1, abs=1e-3)


def test_telemetry_of_leaves_without_a_state_and_without_a_parameter():
    params = {"w": jnp.ones(3), "b": jnp.ones(2), "none": None}
    grads = {"w": jnp.ones(3), "b": jnp.ones(2), "none": None}
    frozen = adam_jax.groups(adamw, {"b": None}, learning_rate=1e-3)
    for inner, known in ((adamw(1e-3), {"w", "b"}), (frozen, {"w"})):
        tx = telemetry(inner, 1)
        _, state = jax.jit(stepper(tx, "step"))(params, tx.init(params), grads)
        groups = adam_jax.measured(state)["groups"]
        assert set(groups) == {"w", "b"}
        assert {name for name, group in groups.items() if "eps_dominates" in group} == known


def test_derivatives_pass_by_telemetry():
    def loss(rate, wrap):
        tx, params = wrap(adamw(rate)), parameters()
        state = tx.init(params)
        for _ in range(2):
            params, state = adam_jax.step(tx, parameters(), state, params)
        return sum(jnp.sum(p**2) for p in jax.tree.leaves(params))

    derivative = jax.jit(jax.grad(loss), static_argnums=1)
    actual = derivative(0.1, lambda tx: telemetry(tx, 2))
    np.testing.assert_allclose(actual, derivative(0.1, lambda tx: tx), rtol=1e-5)


def test_telemetry_takes_no_step_to_begin_with():
    """What needs an extra argument in its step needs none in init."""
    tx = telemetry(optax.chain(adamw(1e-3), contrib.reduce_on_plateau()), 1)
    with jax.debug_nans(True):
        state = tx.init({"w": jnp.ones(3)})
    assert adam_jax.measured(state) == {"step": 0, "groups": {}}


def test_packing_leaves_of_no_size_of_mixed_dtypes_and_of_python():
    params = {"a": jnp.zeros(0), "b": jnp.zeros((0, 2)), "c": 1.0, "d": jnp.ones(2)}
    tx, plain = (make(adamw(1e-2)) for make in (adam_jax.pack_small_leaves, lambda tx: tx))
    moved, state = jax.jit(stepper(tx, "step"))(params, tx.init(params), params)
    expected, _ = jax.jit(stepper(plain, "step"))(params, plain.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, moved, expected)
    assert jax.tree.structure(jax.jit(tx.init)(params)) == jax.tree.structure(state)
    empty = {"a": jnp.zeros(0), "b": jnp.zeros(0)}
    moved, _ = jax.jit(stepper(tx, "update"))(empty, tx.init(empty), empty)
    assert moved["a"].shape == (0,)
    integers = {"n": jnp.ones(2, jnp.int32), "m": jnp.ones(2)}
    for around in (tx, accumulate(adamw(1e-3), 2)):
        with pytest.raises(ValueError, match=r"n', "):
            around.update(jax.tree.map(jnp.float32, integers), around.init(integers), integers)


def test_a_loss_must_be_a_scalar():
    tx = skip_nonfinite(adamw(1e-3))
    with pytest.raises(ValueError, match="value must be a scalar"):
        tx.update(parameters(), tx.init(parameters()), parameters(), value=jnp.ones(2))


def test_accumulate_leaves_a_none_among_the_parameters_alone():
    tx = adam_jax.accumulate(adam_jax.adamw(1e-3), every=2)
    params = {"a": jnp.ones(3), "nothing": None}
    state = tx.init(params)
    for _ in range(2):
        params, state = adam_jax.step(tx, params, state, params)
    assert params["nothing"] is None and np.all(params["a"] < 1)
    assert int(state.gradient_step) == 1
