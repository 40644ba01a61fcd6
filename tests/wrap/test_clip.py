"""Clipping by the global norm, compared with Optax."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax

PARAMS = {"w": jnp.linspace(-2.0, 2.0, 6).reshape(3, 2), "b": jnp.array(1.5)}
sines = {name: jnp.sin(3 * p) for name, p in PARAMS.items()}


@pytest.mark.parametrize("limit", [0.0, 1e-40, 0.5, 100.0, np.inf, -2.0, jnp.inf, jnp.float32(0.5)])
def test_every_limit_of_the_norm_clips_as_optax(limit, standard_promotion):
    ours, theirs = adam_jax.clip_by_global_norm(limit), optax.clip_by_global_norm(limit)
    for run in (ours.update, jax.jit(ours.update)):
        clipped, _ = run(sines, ours.init(PARAMS))
        chex.assert_trees_all_close(
            clipped, theirs.update(sines, theirs.init(PARAMS))[0], rtol=1e-6
        )
    traced = jax.jit(lambda x: adam_jax.clip_by_global_norm(x).update(sines, ours.init(PARAMS))[0])
    chex.assert_trees_all_close(traced(limit), clipped, rtol=1e-6)


@pytest.mark.parametrize("limit", [0.0, -1.0, 1.0, np.inf])
def test_a_gradient_of_zero_passes_every_limit(limit):
    """For a limit of 0, Optax divides zero by zero."""
    tx = adam_jax.clip_by_global_norm(limit)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    chex.assert_trees_all_equal(tx.update(zero, tx.init(PARAMS))[0], zero)


def test_an_infinite_limit_is_the_identity():
    grads = jnp.array([1.0, jnp.inf, -jnp.inf, jnp.nan, 1e30])
    tx = adam_jax.clip_by_global_norm(jnp.inf)
    np.testing.assert_array_equal(tx.update(grads, tx.init(grads))[0], grads)
    with pytest.raises(ValueError, match=r"max_norm must be in \(-inf, inf\], got nan"):
        adam_jax.clip_by_global_norm(jnp.nan)
