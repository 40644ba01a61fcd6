"""MARS: the correction by the gradient's change, and clipping by the norm of a whole leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from tests.catalogue.runs import gradients, run


def test_without_the_correction_small_gradients_are_stepped_as_by_adamw(x64):
    gs = 1e-3 * gradients(20, 10, seed=41).astype(np.float64)[:, :2]  # Norms below 1.
    params = jnp.linspace(-1.0, 1.0, 20).reshape(2, 10)
    plain = run(adam_jax.adamw(0.1, 0.95, 0.99, weight_decay=0.3), gs, params)
    ours = run(adam_jax.mars_adamw(0.1, gamma=0.0, weight_decay=0.3), gs, params)
    np.testing.assert_allclose(ours, plain, rtol=1e-12)


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
