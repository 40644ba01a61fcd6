"""Matrices on spheres: the formula in float64, constant norms, and everything around them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from tests.catalogue import oracles, training

PARAMS = {"wq": jax.random.normal(jax.random.key(0), (48, 32)), "b": jnp.full(5, 0.5)}
RATE, OTHERS = 0.02, 1e-3


def noise(params, t):
    keys = dict(zip(sorted(params), jax.random.split(jax.random.key(t), len(params)), strict=True))
    return {k: jax.random.normal(keys[k], p.shape).astype(p.dtype) for k, p in params.items()}


def turned(p, u, rate):
    """One step of the formula of the paper, in float64."""
    radius = np.linalg.norm(p)
    v = p - rate * radius * u / np.linalg.norm(u)
    return v * radius / np.linalg.norm(v)


trained = functools.partial(training.trained, gradients=noise)


@pytest.mark.parametrize("direction", ["adam", "lion", "muon"])
def test_the_papers_formula(direction, standard_promotion):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), PARAMS)
        grads = [noise(params, t) for t in range(20)]
        numbers = optax.contrib.MuonDimensionNumbers()
        muon = optax.contrib.scale_by_muon(
            weight_dimension_numbers=lambda tree: jax.tree.map(lambda _: numbers, tree)
        )
        tx = {"adam": adam_jax.scale_by_adam(), "lion": adam_jax.scale_by_lion(), "muon": muon}
        tx = adam_jax.chain(tx[direction], adam_jax.scale_on_sphere(RATE))
        its, expected = {"wq": params["wq"]}, np.asarray(params["wq"])
        state, theirs = tx.init(its), muon.init(its)
        seen = np.stack([np.asarray(g["wq"]) for g in grads])
        naive = {"adam": oracles.adam, "lion": oracles.lion}.get(direction)
        directions = [] if naive is None else list(naive(seen))
        for t, g in enumerate(grads):
            if naive is None:
                u, theirs = muon.update({"wq": g["wq"]}, theirs)
                directions.append(np.asarray(u["wq"]))
            its, state = adam_jax.step(tx, {"wq": g["wq"]}, state, its)
            expected = turned(expected, directions[t], RATE)
            np.testing.assert_allclose(its["wq"], expected, rtol=1e-12, atol=1e-12)


def norms(tx, dtype, steps):
    """The norm of w after each step, from that of the start, in last places of it."""
    params = {"wq": PARAMS["wq"].astype(dtype)}
    state, step, seen = tx.init(params), jax.jit(tx.step), [params["wq"]]
    for t in range(steps):
        params, state = step(noise(params, t), state, params)
        seen.append(params["wq"])
    seen = np.array([np.linalg.norm(np.asarray(x, np.float64)) for x in seen])
    return (seen[1:] - seen[0]) / np.spacing(np.float32(seen[0]))


@pytest.mark.slow
def test_norms_do_not_wander():
    tx = adam_jax.chain(adam_jax.scale_by_adam(), adam_jax.scale_on_sphere(RATE))
    found = norms(tx, jnp.float32, 10_000)
    assert np.abs(found - np.median(found)).max() < 1 and np.abs(found).max() < 2
    coded = adam_jax.scale_by_adam(mu_dtype=jnp.int8, nu_dtype=jnp.int8)
    coded = adam_jax.chain(coded, adam_jax.scale_on_sphere(RATE))
    assert np.abs(norms(coded, jnp.float32, 1000)).max() < 2
    # bfloat16 has 2^16 times fewer values, and the rounding errors of 1,536 elements average out.
    rounded = 2**16 / np.sqrt(PARAMS["wq"].size)
    assert np.abs(norms(tx, jnp.bfloat16, 1000)).max() < 3 * rounded
    assert np.abs(norms(adam_jax.master_residual(coded), jnp.bfloat16, 1000)).max() < 3 * rounded


def test_adamh_is_both():
    tx = adam_jax.adamh(RATE, OTHERS, weight_decay=0.1)
    params, _ = trained(tx, PARAMS, steps=10)
    on_sphere = adam_jax.chain(adam_jax.scale_by_adam(), adam_jax.scale_on_sphere(RATE))
    adamw = adam_jax.adamw(OTHERS, weight_decay=0.1)
    for name, alone in (("wq", on_sphere), ("b", adamw)):
        its = lambda _, t, name=name: {name: noise(PARAMS, t)[name]}  # noqa: E731
        expected, _ = training.trained(alone, {name: PARAMS[name]}, its, 10)
        np.testing.assert_array_equal(params[name], expected[name])
    off = adam_jax.adamh(RATE, OTHERS, weight_decay=0.1, sphere={"wq": False, "b": False})
    of_all, _ = trained(adamw, PARAMS)
    np.testing.assert_array_equal(trained(off, PARAMS)[0]["wq"], of_all["wq"])


@pytest.mark.bits
def test_each_layer_has_its_sphere():
    tx = adam_jax.adamh(RATE, OTHERS)
    layers = jax.tree.map(lambda p: jnp.stack([p, 2 * p, p[::-1]]), PARAMS)
    stacked, state = trained(adam_jax.with_layers(tx, ".*"), layers)
    assert state[3].inner_state.scale["wq"].means.shape == (3, 1, 1)
    for i in range(3):
        of_layer = lambda _, t, i=i: jax.tree.map(lambda g: g[i], noise(layers, t))  # noqa: E731
        alone, _ = training.trained(tx, jax.tree.map(lambda p, i=i: p[i], layers), of_layer)
        for name, p in alone.items():
            np.testing.assert_array_equal(stacked[name][i], p)


def test_around_it():
    schedule = optax.linear_schedule(RATE, 0.0, 10)
    tx = adam_jax.groups({"wq": adam_jax.adamh(schedule, OTHERS), "b": adam_jax.adamw(OTHERS)})
    params, _ = trained(adam_jax.skip_nonfinite(tx), PARAMS, steps=10)
    before, after = (np.linalg.norm(x["wq"]) for x in (PARAMS, params))
    np.testing.assert_allclose(after, before, rtol=1e-6)
    assert np.abs(params["wq"] - PARAMS["wq"]).max() > 0.05
    wrapped = adam_jax.cautious(adam_jax.adamh)(RATE, OTHERS)
    assert np.isfinite(trained(wrapped, PARAMS)[0]["wq"]).all()
    injected = adam_jax.with_hyperparams(adam_jax.adamh)(RATE, OTHERS)
    np.testing.assert_array_equal(
        trained(injected, PARAMS)[0]["wq"],
        trained(adam_jax.adamh(RATE, OTHERS), PARAMS)[0]["wq"],
    )


def test_zeros_are_refused_and_nothing_is_nan():
    tx = adam_jax.adamh(RATE, OTHERS)
    zeros = {"attn": {"wq": jnp.zeros((3, 4))}}
    with pytest.raises(ValueError, match="at 'attn/wq', the parameter is zero"):
        tx.init(zeros)
    state = jax.jit(tx.init)(zeros)  # Not known in a program.
    params, _ = adam_jax.step(tx, zeros, state, zeros)
    assert not params["attn"]["wq"].any()
    params, state = adam_jax.step(tx, jax.tree.map(jnp.zeros_like, PARAMS), tx.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(params["wq"], PARAMS["wq"])
    with pytest.raises(ValueError, match=r"learning_rate must be in \[0, inf\)"):
        adam_jax.scale_on_sphere(-0.1)
