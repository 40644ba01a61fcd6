"""`ema_params` averages the parameters as stored, after rounding to their dtype."""

import jax
import jax.numpy as jnp
import numpy as np

import adam_jax
from adam_jax import adamw, chain
from tests.catalogue.recipes import parameters, stepper


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
