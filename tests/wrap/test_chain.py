"""Nested wrappers equal their plain composition, a Python loop around the member alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import (
    accumulate,
    adamw,
    chain,
    clip_by_global_norm,
    ema_params,
    skip_nonfinite,
    telemetry,
)
from tests.catalogue.recipes import (
    RECIPES,
    assert_close,
    average,
    gradients,
    looped,
    member,
    naive,
    parameters,
    scanned,
)
from tests.catalogue.training import temporary, trained


@pytest.mark.parametrize("through", ["step", "update"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_its_plain_composition(name, through):
    make, settings = RECIPES[name]
    params = parameters()
    stacked = gradients(params, bad=settings.get("skips", False))
    expected = naive(params, stacked, **settings)
    actual, state = looped(make(), params, stacked, through)
    assert_close(actual, expected.params)
    assert np.all(np.isfinite(np.asarray(actual["w"])))
    if "ema" in settings:
        assert_close(average(state), expected.ema[1])


@pytest.mark.parametrize("name", ["clip, skip", "accumulate", "ema", "everything"])
def test_scan_and_vmap_are_the_loop(name):
    make, settings = RECIPES[name]
    params, tx = parameters(), make()
    streams = [gradients(params, seed=s, bad=settings.get("skips", False)) for s in (1, 2)]
    loops = [looped(tx, params, g)[0] for g in streams]
    both = jax.tree.map(lambda *g: jnp.stack(g), *streams)
    together, _ = jax.vmap(lambda g: scanned(tx, params, g))(both)
    for i, alone in enumerate(loops):
        assert_close(scanned(tx, params, streams[i])[0], alone)
        assert_close(jax.tree.map(lambda x, i=i: x[i], together), alone)


@pytest.mark.bits
@pytest.mark.parametrize("name", ["clip, skip", "everything"])
def test_bfloat16_gradients_are_rounded_nowhere(name):
    make, settings = RECIPES[name]
    params = parameters()
    stacked = gradients(params, jnp.bfloat16)
    expected = naive(params, stacked, **settings)
    assert_close(looped(make(), params, stacked, "update")[0], expected.params)


@pytest.mark.bits
def test_bfloat16_parameters_step_once_rounded_and_ema_averages_what_they_were():
    make, settings = RECIPES["everything"]
    params = parameters(jnp.bfloat16)
    stacked = gradients(params, jnp.bfloat16)
    expected = naive(params, stacked, **settings)
    actual, state = looped(make(), params, stacked)
    assert actual["w"].dtype == jnp.bfloat16
    assert_close(actual, expected.params, 1e-2)
    assert average(state)["w"].dtype == jnp.float32
    assert_close(average(state), expected.ema[1], 1e-2)


def test_a_none_gradient_leaves_its_parameter_alone():
    tx, params = RECIPES["everything"][0](), parameters()
    grads, state, updates = dict(params, b=None), tx.init(params), params
    for _ in range(4):
        updates, state = tx.update(grads, state, params)
    assert updates["b"] is None and np.any(updates["w"])
    tx = chain(clip_by_global_norm(1.0), member())
    moved, _ = adam_jax.step(tx, grads, tx.init(params), params)
    np.testing.assert_array_equal(moved["b"], params["b"])
    assert np.any(moved["w"] != params["w"])


@pytest.mark.bits
@pytest.mark.parametrize(
    ("name", "through"),
    [(n, t) for n in ("clip, skip", "accumulate", "accumulate, skip") for t in ("step", "update")]
    # With `update`, XLA copies the updates that a branch returns to the average.
    + [("everything", "step")],
)
def test_nothing_of_the_size_of_a_leaf_is_temporary(name, through):
    tx = RECIPES[name][0]()
    params = {"w": jnp.ones(10_000), "b": jnp.ones(10_000), "deep": {"k": jnp.ones(10_000)}}
    assert temporary(tx, params, through) < 0.1


def test_a_chain_is_optaxs():
    ours = chain(clip_by_global_norm(1.0), adamw(1e-3), ema_params(0.9))
    params = parameters()
    theirs = optax.chain(clip_by_global_norm(1.0), adamw(1e-3), ema_params(0.9))
    assert jax.tree.structure(ours.init(params)) == jax.tree.structure(theirs.init(params))
    assert ours == chain(clip_by_global_norm(1.0), adamw(1e-3), ema_params(0.9))
    assert hash(ours) != hash(chain(clip_by_global_norm(2.0), adamw(1e-3), ema_params(0.9)))
    compiled = jax.jit(lambda tx, g, s, p: adam_jax.step(tx, g, s, p))
    for rate in (1e-3, 2e-3):
        tx = chain(clip_by_global_norm(1.0), adamw(rate))
        compiled(tx, params, tx.init(params), params)
    assert compiled._cache_size() == 1


def test_hyperparameters_in_the_state_of_a_recipe():
    def recipe(learning_rate, max_norm):
        return skip_nonfinite(chain(clip_by_global_norm(max_norm), adamw(learning_rate)))

    def at(_, turn):
        return jax.tree.map(lambda g: g[turn], stacked)

    tx = accumulate(adam_jax.with_hyperparams(recipe)(1e-3, 1.0), 2)
    params = parameters()
    stacked = gradients(params)
    state = adam_jax.set_hyperparams(tx.init(params), learning_rate=1e-2)
    assert adam_jax.hyperparams(state)["max_norm"] == 1.0
    actual, _ = trained(tx, params, at, 10, state=state)
    assert_close(actual, trained(accumulate(recipe(1e-2, 1.0), 2), params, at, 10)[0])
    assert np.any(actual["w"] != params["w"])


@pytest.mark.parametrize("through", ["step", "update"])
def test_derivatives_pass_through_a_recipe(through):
    """With respect to the learning rate, in forward and reverse mode, as for the member alone."""
    grads = [parameters(), jax.tree.map(jnp.cos, parameters())]
    both = jax.tree.map(lambda a, b: (a + b) / 2, *grads)

    def loss(rate, make, grads):
        def at(_, turn):
            return grads[turn]

        params, _ = trained(make(rate), parameters(), at, len(grads), through, jit=False)
        return sum(jnp.sum(p**2) for p in jax.tree.leaves(params))

    expected = jax.jit(jax.grad(loss), static_argnums=1)(0.1, adamw, [both])
    args = (lambda rate: accumulate(telemetry(skip_nonfinite(adamw(rate)), 2), 2), grads)
    np.testing.assert_allclose(
        jax.jit(jax.grad(loss), static_argnums=1)(0.1, *args), expected, rtol=1e-5
    )
    forwards = jax.jit(lambda rate: jax.jvp(lambda r: loss(r, *args), (rate,), (1.0,))[1])(0.1)
    np.testing.assert_allclose(forwards, expected, rtol=1e-5)


def test_python_numbers_are_parameters_too():
    tx = accumulate(skip_nonfinite(chain(adamw(0.1), ema_params(0.9))), 2)
    params, state = trained(tx, {"x": 1.0}, lambda *_: {"x": 0.5}, 2)
    np.testing.assert_allclose(params["x"], 0.9, rtol=1e-4)
    np.testing.assert_allclose(average(state)["x"], params["x"])


def described(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), x.dtype), tree)


@pytest.mark.slow
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
    """Its state keeps the parameters' dtype, as scan requires."""
    params, tx = parameters(jnp.bfloat16), make(inner)
    for through in ("step", "update"):
        moved, state = trained(tx, params, lambda *_: params, 4, through)
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


def test_complex_leaves():
    params = {"z": jnp.ones(3, jnp.complex64), "x": jnp.ones(2)}
    inner = chain(clip_by_global_norm(0.5), adamw(1e-2), adam_jax.ema_params(0.9))
    tx = accumulate(telemetry(skip_nonfinite(inner), 1), 2)
    moved, state = trained(tx, params, lambda *_: params, 4)
    assert moved["z"].dtype == jnp.complex64 and np.all(np.real(moved["z"]) < 1)
    assert adam_jax.measured(state)["groups"]["z"]["cosine"] == pytest.approx(-1, abs=1e-3)
