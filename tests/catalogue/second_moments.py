"""Block-mean second moments under test: magnitudes, gradients, and naive means."""

import jax
import jax.numpy as jnp
import numpy as np

import adam_jax
from tests.catalogue import MEMBERS, every, of_each_kind, slowly

WITH_NU = [m for m in MEMBERS if m.has("nu_dtype")]
every_member_with_nu = slowly(WITH_NU)
every_kind_with_nu = every(of_each_kind(WITH_NU))


def naive(x, axes):
    """The mean of each element's block, at each element."""
    return np.broadcast_to(np.mean(x, axis=axes, keepdims=True), np.shape(x))


def magnitudes(shape, seed=0):
    rng = np.random.default_rng(seed)
    return np.asarray(rng.normal(size=shape) * 10.0 ** rng.integers(-3, 3, shape), np.float32) ** 2


def gradients(shape, steps=20, dtype=np.float32):
    rng = np.random.default_rng(1)
    scale = 10.0 ** rng.integers(-2, 2, shape)
    g = rng.normal(size=(steps, *shape)) * scale
    if np.issubdtype(dtype, np.complexfloating):
        g = g + 1j * rng.normal(size=g.shape) * scale
    return g.astype(dtype)


def fit(tx, turns=150):
    """Least squares; the scan requires that the state keeps its dtypes and shapes."""
    x = jax.random.normal(jax.random.key(0), (32, 64))
    goal = jax.random.normal(jax.random.key(1), (64, 80)) / 8

    def loss(w):
        return jnp.mean((x @ (w - goal)) ** 2)

    def body(carry, _):
        params, state = carry
        return adam_jax.step(tx, jax.grad(loss)(params), state, params), loss(params)

    def run(params):
        return jax.lax.scan(body, (params, tx.init(params)), length=turns)

    (_, state), losses = jax.jit(run)(jnp.zeros((64, 80)))
    return np.asarray(losses), state
