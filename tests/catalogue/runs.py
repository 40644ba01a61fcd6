"""Random gradients, the updates of many steps, and comparisons."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def schedule(count):
    return 1e-2 / (1 + jnp.asarray(count, jnp.float32))


def gradients(steps, size, seed=0):
    """float32[steps, 3, size]: one row for each kind of gradient."""
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(steps, 3, size))
    g[:, 1] += 1.0
    g[:, 2] *= 10.0 ** rng.uniform(-8, 8, size)
    return g.astype(np.float32)


def run(tx, gs, params=None):
    """The updates of all steps, by one scan, which requires constant dtypes of the state."""
    state = tx.init(jnp.zeros(gs.shape[1:], gs.dtype) if params is None else params)

    def body(state, g):
        u, state = tx.update(g, state, params)
        return state, u

    return jax.jit(lambda s, g: jax.lax.scan(body, s, g)[1])(state, gs)


def run_optax(tx, gs, params=None):
    """The same for Optax's own code, which needs JAX's standard promotion."""
    with jax.numpy_dtype_promotion("standard"):
        return run(tx, gs, params)


def ulps(u, exact):
    """The distance from the exact result, in float32 ulp."""
    return np.abs(np.asarray(u, np.float64) - exact) / np.spacing(np.abs(exact).astype(np.float32))


def assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()


def raised(call, kind=ValueError):
    """The message, of one line."""
    with pytest.raises(kind) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)
