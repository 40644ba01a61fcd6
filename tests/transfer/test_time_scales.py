"""Half-lives of averages, and the time scale of weight decay, for larger batches."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from adam_jax.transfer import scale_batch


def test_scaled_batches_keep_half_lives_to_first_order():
    for complement, rtol in ((1e-3, 4e-3), (1e-5, 4e-5)):
        scaled = scale_batch(adam_jax.adamw, 8).hyperparameters(1e-3, b2=1 - complement)
        assert math.log(scaled["b2"]) / 8 == pytest.approx(math.log1p(-complement), rel=rtol)


def test_weights_without_gradients_have_decayed_to_a_third_after_the_time_scale():
    tx = adam_jax.adamw(0.01, weight_decay=0.1)
    params = jnp.ones(3)

    def body(carry, _):
        params, state = carry
        return adam_jax.step(tx, jnp.zeros(3), state, params), None

    (params, _), _ = jax.lax.scan(body, (params, tx.init(params)), length=1000)
    np.testing.assert_allclose(params, np.exp(-1), rtol=1e-3)


@pytest.mark.parametrize("factor", [1 / 8, 2, 8])
def test_scaled_batches_keep_the_time_scale(factor):
    scaled = scale_batch(adam_jax.adamw, factor).hyperparameters(3e-4, weight_decay=0.1)
    kept = factor / (scaled["weight_decay"] * scaled["learning_rate"])
    assert kept == pytest.approx(1 / (0.1 * 3e-4), rel=1e-12)
