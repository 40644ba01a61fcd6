"""LaProp divides before it averages: consequences for b1 = 0 and for b1 > b2."""

import jax.numpy as jnp
import numpy as np

import adam_jax
from tests.catalogue.runs import gradients, run


def test_updates_are_bounded_where_b1_is_above_b2_and_adams_are_not():
    b1, b2, spike = 0.99, 0.5, 1e6
    gs = np.where(np.arange(40) == 0, spike, 1.0).astype(np.float32)[:, None, None]
    bound = 1 / np.sqrt(1 - b2)
    ours = run(adam_jax.scale_by_laprop(b1, b2), gs)
    assert np.abs(ours).max() <= bound * (1 + 1e-5)
    assert np.abs(run(adam_jax.scale_by_adam(b1, b2), gs)).max() > 1000 * bound


def test_a_schedule_does_not_weigh_the_gradients_in_mu():
    """Unlike in the authors' code, the update is the learning rate times the update at rate 1."""
    gs = gradients(6, 10, seed=32)
    rate = lambda count: 0.5 ** jnp.asarray(count, jnp.float32)  # noqa: E731
    plain, scheduled = (run(adam_jax.laprop(x), gs) for x in (1.0, rate))
    factors = 0.5 ** np.arange(6, dtype=np.float32)[:, None, None]
    np.testing.assert_array_equal(scheduled, plain * factors)
