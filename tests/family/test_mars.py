"""MARS: the correction by the gradient's change, and clipping by the norm of a whole leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax


@pytest.mark.parametrize("size", [10.0, 1e10, 1e18])
def test_each_leaf_is_clipped_by_itself(size):
    direction = jnp.asarray([0.6, -0.8])
    grads = {"large": size * direction, "small": 0.5 * direction}
    tx = adam_jax.scale_by_mars()
    _, state = jax.jit(tx.update)(grads, tx.init(grads))
    np.testing.assert_allclose(state.mu["large"], 0.05 * direction, rtol=1e-6)
    np.testing.assert_allclose(state.mu["small"], 0.05 * 0.5 * direction, rtol=1e-6)


def test_refused_arguments():
    with pytest.raises(ValueError, match="got mars_adamw, for which the rule does not hold"):
        adam_jax.transfer.scale_batch(adam_jax.mars_adamw, 4)
    with pytest.raises(ValueError, match="^gamma must"):
        adam_jax.mars_adamw(1e-3, gamma=-1.0)
