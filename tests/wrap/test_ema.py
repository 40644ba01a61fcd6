"""`ema_params` averages the parameters as stored; `averaged` reads the average from any state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import adamw, averaged, chain, ema_params
from tests.catalogue.recipes import assert_close, parameters, stepper
from tests.catalogue.training import trained


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


def linear(t):
    return jnp.maximum(1 - t / 8, 0)


def cosine(t):
    return (1 + jnp.cos(jnp.pi * jnp.minimum(t / 8, 1))) / 2


def expected(iterates, decay=None, debias=True, start=0, window=None, emulates=None):
    """The average after the last iterate, as a sum with explicit weights."""
    n = len(iterates) - 1 - start  # The first of the iterates is that of `init`.
    if n <= 0:
        return iterates[-1]
    n = n if window is None else (n - 1) % window + 1
    if decay is not None:
        weights = [(1 - decay) * decay ** (n - 1 - t) for t in range(n)]
    elif emulates is None:
        weights = [1.0] * n
    else:
        w = [float(emulates(jnp.int32(t))) for t in range(n + 1)]
        weights = [w[t] - w[t + 1] for t in range(n)]
    if decay is not None and not debias:
        return iterates[start] * decay**n + np.tensordot(weights, iterates[-n:], 1)
    return np.tensordot(weights, iterates[-n:], 1) / sum(weights)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"start": 3},
        {"window": 4},
        {"start": 2, "window": 3},
        {"decay": 0.7, "start": 3},
        {"decay": 0.7, "start": 3, "debias": False},
        {"decay": 0.7, "window": 4},
        {"emulates": linear},
        {"emulates": cosine, "start": 2},
        {"emulates": linear, "window": 5, "start": 1},
    ],
)
def test_the_average_is_a_sum_with_explicit_weights(settings):
    tx, rng = adam_jax.skip_nonfinite(ema_params(**settings)), np.random.default_rng(0)
    params = jnp.asarray(rng.normal(size=7), jnp.float32)
    iterates, state, step = [np.float64(params)], tx.init(params), jax.jit(tx.step)
    for t in range(12):
        update = rng.normal(size=7) if t != 5 else np.full(7, np.nan)
        params, state = step(jnp.asarray(update, jnp.float32), state, params)
        iterates += [np.float64(params)] if t != 5 else []
        average = averaged(state)
        np.testing.assert_allclose(average, expected(np.stack(iterates), **settings), 0, 1e-6)
        if len(iterates) - 1 <= settings.get("start", 0):
            np.testing.assert_array_equal(average, params)


def test_an_average_of_one_is_exactly_the_parameters():
    tx, params = ema_params(window=1), jnp.asarray([1e8, jnp.nan, 3.0])
    for new in (params, jnp.ones(3)):
        _, state = tx.step(jnp.zeros(3), tx.init(params)._replace(count=jnp.int32(1)), new)
        np.testing.assert_array_equal(averaged(state), new)


def one_minus_root(n):
    return lambda t: 1 - jnp.sqrt(jnp.minimum(t / n, 1))


@pytest.mark.bits
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("n", [50, 1000, 10_000])
@pytest.mark.parametrize("step_size", [1e-3, 1.0])  # 1.0 makes the iterates independent.
@pytest.mark.parametrize("w", [None, "linear", "cosine", "root"])
def test_an_average_without_decay_is_an_explicit_mean_to_2_ulp(w, step_size, n):
    linear, cosine = optax.linear_schedule(1.0, 0.0, n), optax.cosine_decay_schedule(1.0, n)
    w = {None: None, "linear": linear, "cosine": cosine, "root": one_minus_root(n)}[w]
    tx, first = ema_params(emulates=w), jax.random.normal(jax.random.key(0), (512,))

    def step(run, key):
        params, state = run
        moved = (1 - step_size) * params + step_size * jax.random.normal(key, params.shape)
        params, state = tx.step(moved - params, state, params)
        return (params, state), params

    keys = jax.random.split(jax.random.key(1), n)
    (_, state), iterates = jax.jit(lambda: jax.lax.scan(step, (first, tx.init(first)), keys))()
    rates = jax.lax.map(w or linear, jnp.arange(n + 1))  # As a step rounds it.
    weights = np.full(n, 1 / n) if w is None else -np.diff(np.float64(rates))
    mean = weights @ np.float64(iterates) / sum(weights)
    ulp = np.spacing(np.abs(iterates).max(0))
    error = np.max(np.abs(np.float64(averaged(state)) - mean) / ulp)
    assert error < 2


def test_an_emulated_decay_is_the_run_that_had_it():
    """Exactly so where gradients do not depend on the parameters."""
    grads = [{"w": jnp.cos(jnp.arange(5.0) + t)} for t in range(11)]
    plain = chain(adam_jax.scale_by_learning_rate(0.1), ema_params(emulates=linear, start=3))
    decayed = adam_jax.scale_by_learning_rate(lambda t: 0.1 * linear(jnp.maximum(t - 3, 0)))
    params = {"w": jnp.ones(5)}
    _, state = trained(plain, params, lambda _, t: grads[t], steps=11)
    moved, _ = trained(decayed, params, lambda _, t: grads[t], steps=11)
    assert_close(averaged(state), moved)


RECIPE = {
    "accumulate": lambda tx: adam_jax.accumulate(adam_jax.skip_nonfinite(tx), 2),
    "optax": lambda tx: adam_jax.skip_nonfinite(optax.chain(optax.identity(), tx)),
    "groups": lambda tx: adam_jax.groups({"w": tx, ".*": adamw(1e-3)}),
    "master": lambda tx: adam_jax.master_residual(tx),
    "hyperparams": lambda tx: chain(adam_jax.with_hyperparams(adamw)(1e-3), tx),
}


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16, jnp.int8])
@pytest.mark.parametrize("settings", [{}, {"decay": 0.9, "start": 1}])
@pytest.mark.parametrize("around", RECIPE)
def test_it_is_read_from_any_state_in_the_dtypes_of_the_parameters(around, settings, dtype):
    dtype = {} if dtype is None else {"dtype": dtype}
    tx = RECIPE[around](chain(adamw(1e-3), ema_params(**settings, **dtype)))
    w = jnp.linspace(1.0, 2.0, 4096, dtype=jnp.bfloat16)
    params = {"w": w, "n": jnp.arange(3), "key": jax.random.key(1), "none": None}
    grads = {"w": w, "n": None, "key": None, "none": None}
    step = jax.jit(lambda p, s: adam_jax.step(tx, grads, s, p))
    state = tx.init(params)
    for _ in range(4):
        params, state = step(params, state)
    found = averaged(state, params)
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, params)
    np.testing.assert_array_equal(found["n"], params["n"])
    assert found["key"] == params["key"]
    np.testing.assert_allclose(np.float32(found["w"]), np.float32(w), 0.02)
    np.testing.assert_allclose(np.float32(averaged(state)["w"]), np.float32(found["w"]), 0.005)


def test_a_population_and_a_mesh():
    tx = chain(adamw(1e-2), ema_params())
    both = jnp.stack([jnp.ones(4096), jnp.full(4096, 2.0)])
    state = jax.vmap(tx.init)(both)
    moved, state = jax.jit(jax.vmap(tx.step))(both, state, both)
    np.testing.assert_array_equal(averaged(state, moved), moved)
    mesh = jax.make_mesh((1,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    params = jax.device_put(both, sharding)
    moved, state = jax.jit(tx.step)(params, tx.init(params), params)
    assert {x.sharding for x in jax.tree.leaves((state[1][1:], averaged(state)))} == {sharding}


def test_errors():
    params = {"w": jnp.ones(3)}
    state = chain(ema_params(0.9), ema_params()).init(params)
    for bad, words in (
        (lambda: ema_params(0.9, emulates=linear), "decay must be None with emulates, got 0.9"),
        (
            lambda: ema_params(emulates=lambda t: 1e-3),
            r"emulates\(0\) must be in \[1, 1\], got 0.001",
        ),
        (lambda: ema_params(start=-1), "start must be an integer ≥ 0, got -1"),
        (lambda: ema_params(window=0), "window must be an integer ≥ 1, got 0"),
        (lambda: averaged(adamw(1e-3).init(params)), "must have one ema_params in it, got 0"),
        (lambda: averaged(state), "must have one ema_params in it, got 2"),
        (lambda: averaged(state[1], {"v": jnp.ones(3)}), "structure of the state"),
        (
            lambda: ema_params().update(params, state[0], params),
            "must have the structure of the state",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            bad()
