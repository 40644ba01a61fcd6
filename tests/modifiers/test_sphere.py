"""Matrices on spheres: the formula in float64, constant norms, and everything around them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from tests.catalogue import oracles

PARAMS = {"w": jax.random.normal(jax.random.key(0), (48, 32)), "b": jnp.full(5, 0.5)}
RATE, OTHERS = 0.02, 1e-3


def gradients(t, params):
    keys = jax.random.split(jax.random.key(t), len(params))
    return {
        name: jax.random.normal(key, params[name].shape, jnp.float32).astype(params[name].dtype)
        for key, name in zip(keys, sorted(params), strict=True)
    }


def turned(p, u, rate):
    """One step of the formula of the paper, in float64."""
    radius = np.linalg.norm(p)
    v = p - rate * radius * u / np.linalg.norm(u)
    return v * radius / np.linalg.norm(v)


def trained(tx, params, steps, seen=None):
    state, step = tx.init(params), jax.jit(tx.step)
    for t in range(steps):
        params, state = step(gradients(t, params), state, params)
        if seen is not None:
            seen.append(np.linalg.norm(np.asarray(params["w"], np.float64)))
    return params, state


@pytest.mark.parametrize("direction", ["adam", "lion", "muon"])
def test_the_papers_formula(direction, standard_promotion):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), PARAMS)
        grads = [
            jax.tree.map(lambda g: jnp.asarray(g, jnp.float64), gradients(t, params))
            for t in range(20)
        ]
        numbers = optax.contrib.MuonDimensionNumbers()
        muon = optax.contrib.scale_by_muon(
            weight_dimension_numbers=lambda tree: jax.tree.map(lambda _: numbers, tree)
        )
        tx = {"adam": adam_jax.scale_by_adam(), "lion": adam_jax.scale_by_lion(), "muon": muon}
        tx = adam_jax.chain(tx[direction], adam_jax.scale_on_sphere(RATE))
        its, expected, state = {"w": params["w"]}, np.asarray(params["w"]), None
        state, theirs = tx.init(its), muon.init(its)
        seen = np.stack([np.asarray(g["w"]) for g in grads])
        naive = {"adam": oracles.adam, "lion": oracles.lion}.get(direction)
        directions = [] if naive is None else list(naive(seen))
        for t, g in enumerate(grads):
            if naive is None:
                u, theirs = muon.update({"w": g["w"]}, theirs)
                directions.append(np.asarray(u["w"]))
            its, state = adam_jax.step(tx, {"w": g["w"]}, state, its)
            expected = turned(expected, directions[t], RATE)
            np.testing.assert_allclose(its["w"], expected, rtol=1e-12, atol=1e-12)


def norms(tx, dtype, steps):
    """The norm of w before training, and after each step, in its last places."""
    params = {"w": PARAMS["w"].astype(dtype)}
    seen = []
    trained(tx, params, steps, seen)
    first = np.linalg.norm(np.asarray(params["w"], np.float64))
    return (np.array(seen) - first) / np.spacing(np.float32(first))


@pytest.mark.slow
def test_norms_do_not_wander():
    tx = adam_jax.chain(adam_jax.scale_by_adam(), adam_jax.scale_on_sphere(RATE))
    found = norms(tx, jnp.float32, 10_000)
    assert np.abs(found - np.median(found)).max() < 1 and np.abs(found).max() < 2
    coded = adam_jax.scale_by_adam(mu_dtype=jnp.int8, nu_dtype=jnp.int8)
    coded = adam_jax.chain(coded, adam_jax.scale_on_sphere(RATE))
    assert np.abs(norms(coded, jnp.float32, 1000)).max() < 2
    # bfloat16 has 2^16 times fewer values, and the rounding errors of 1,536 elements average out.
    rounded = 2**16 / np.sqrt(PARAMS["w"].size)
    assert np.abs(norms(tx, jnp.bfloat16, 1000)).max() < 3 * rounded
    assert np.abs(norms(adam_jax.master_residual(coded), jnp.bfloat16, 1000)).max() < 3 * rounded


def test_adamh_is_both():
    tx = adam_jax.adamh(RATE, OTHERS, weight_decay=0.1)
    params, _ = trained(tx, PARAMS, 10)
    on_sphere = adam_jax.chain(adam_jax.scale_by_adam(), adam_jax.scale_on_sphere(RATE))
    adamw = adam_jax.adamw(OTHERS, weight_decay=0.1)
    expected = {}
    for name, alone in (("w", on_sphere), ("b", adamw)):
        its, state = {name: PARAMS[name]}, alone.init({name: PARAMS[name]})
        for t in range(10):
            g = gradients(t, PARAMS)[name]
            its, state = jax.jit(alone.step)({name: g}, state, its)
        expected |= its
    for name, p in expected.items():
        np.testing.assert_array_equal(params[name], p)
    off = adam_jax.adamh(RATE, OTHERS, weight_decay=0.1, sphere={"w": False, "b": False})
    adamw_of_all, _ = trained(adamw, PARAMS, 10)
    np.testing.assert_array_equal(trained(off, PARAMS, 10)[0]["w"], adamw_of_all["w"])


@pytest.mark.bits
def test_each_layer_has_its_sphere():
    tx = adam_jax.adamh(RATE, OTHERS)
    layers = jax.tree.map(lambda p: jnp.stack([p, 2 * p, p[::-1]]), PARAMS)
    stacked, state = trained(adam_jax.with_layers(tx, "."), layers, 5)
    assert state[3].inner_state.scale["w"].means.shape == (3, 1, 1)
    grads = [gradients(t, layers) for t in range(5)]
    for i in range(3):
        params = jax.tree.map(lambda p, i=i: p[i], layers)
        state, step = tx.init(params), jax.jit(tx.step)
        for g in grads:
            params, state = step(jax.tree.map(lambda g, i=i: g[i], g), state, params)
        for name, p in params.items():
            np.testing.assert_array_equal(stacked[name][i], p)


def test_around_it():
    schedule = optax.linear_schedule(RATE, 0.0, 10)
    tx = adam_jax.groups({"w": adam_jax.adamh(schedule, OTHERS), "b": adam_jax.adamw(OTHERS)})
    params, _ = trained(adam_jax.skip_nonfinite(tx), PARAMS, 10)
    before, after = (np.linalg.norm(x["w"]) for x in (PARAMS, params))
    np.testing.assert_allclose(after, before, rtol=1e-6)
    assert np.abs(params["w"] - PARAMS["w"]).max() > 0.05
    wrapped = adam_jax.cautious(adam_jax.adamh)(RATE, OTHERS)
    assert np.isfinite(trained(wrapped, PARAMS, 3)[0]["w"]).all()
    injected = adam_jax.with_hyperparams(adam_jax.adamh)(RATE, OTHERS)
    np.testing.assert_array_equal(
        trained(injected, PARAMS, 5)[0]["w"],
        trained(adam_jax.adamh(RATE, OTHERS), PARAMS, 5)[0]["w"],
    )


def test_zeros_are_refused_and_nothing_is_nan():
    tx = adam_jax.adamh(RATE, OTHERS)
    zeros = {"head": {"w": jnp.zeros((3, 4))}}
    with pytest.raises(ValueError, match="at 'head/w', the parameter is zero"):
        tx.init(zeros)
    state = jax.jit(tx.init)(zeros)  # Not known in a program.
    params, _ = adam_jax.step(tx, zeros, state, zeros)
    assert not params["head"]["w"].any()
    params, state = adam_jax.step(tx, jax.tree.map(jnp.zeros_like, PARAMS), tx.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(params["w"], PARAMS["w"])
    with pytest.raises(ValueError, match=r"learning_rate must be in \[0, inf\)"):
        adam_jax.scale_on_sphere(-0.1)
