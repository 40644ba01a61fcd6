"""The dtypes of updates between transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adam_jax import accumulate, adamw, chain, clip_by_global_norm, ema_params, groups

BF16, F32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: chain(clip_by_global_norm(1.0), clip_by_global_norm(2.0)),
        lambda: chain(clip_by_global_norm(1.0), adamw(1e-2)),
        lambda: chain(clip_by_global_norm(1.0), optax.trace(0.9)),
        lambda: chain(clip_by_global_norm(1.0), ema_params(0.9)),
        lambda: accumulate(clip_by_global_norm(1.0), 2),
        lambda: accumulate(adamw(1e-2), 2),
        lambda: chain(accumulate(adamw(1e-2), 2), optax.identity()),
    ],
)
def test_updates_are_as_wide_as_wider_parameters_in_each_step(make, compiled):
    params, grads = {"w": jnp.ones(3)}, {"w": jnp.ones(3, jnp.bfloat16)}
    tx = make()
    state, update = tx.init(params), (jax.jit(tx.update) if compiled else tx.update)
    for _ in range(3):
        updates, state = update(grads, state, params)
        assert updates["w"].dtype == F32
        assert {x.dtype for x in jax.tree.leaves(state) if x.ndim} <= {F32}


def test_frozen_leaves_keep_the_dtype_of_their_gradient():
    params = {"w": jnp.ones(3, BF16), "frozen": jnp.ones(3, BF16)}
    inner = groups(adamw, {"frozen": None}, learning_rate=1e-2)
    tx = chain(clip_by_global_norm(1.0), inner, optax.trace(0.9))

    def step(_, carry):
        return tx.step(carry[0], carry[1], carry[0])

    moved, state = jax.lax.fori_loop(0, 2, step, (params, tx.init(params)))
    assert state[2].trace["frozen"].dtype == BF16
    np.testing.assert_array_equal(moved["frozen"], params["frozen"])


def test_a_tree_that_does_not_fit_is_named():
    tx = chain(clip_by_global_norm(1.0), ema_params(0.9))
    params = {"w": jnp.ones(3)}
    with pytest.raises(ValueError, match="params must have the structure of the updates"):
        tx.update(params, tx.init(params), {"v": jnp.ones(3)})
