"""The law behind `scale_batch`: the loss after the same number of examples is the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from adam_jax.transfer import scale_batch

pytestmark = pytest.mark.slow

# The noise of an example is 30, and the gradient at most about 1, so noise dominates the gradient
# even in batches of 8. ε is a third of √nu, and weights decay as fast as the loss moves them.
NOISE, EXAMPLES = 30.0, 4096
SETTINGS = {"learning_rate": 0.03, "eps": 10.0, "weight_decay": 0.03}


def scaled_numbers(factor, **settings):
    scaled = scale_batch(adam_jax.adamw, factor).hyperparameters(**settings)
    return {name: x for name, x in scaled.items() if type(x) is float}


@functools.cache
def losses(batch_size, noise=NOISE, **settings):
    """Early, middle and final losses, each the mean over 64 parameters and 100 seeds."""
    tx, steps = adam_jax.adamw(**settings), EXAMPLES // batch_size

    def body(carry, key):
        params, state = carry
        g = params + jax.random.normal(key, params.shape) * (noise / np.sqrt(batch_size))
        params, state = adam_jax.step(tx, g, state, params)
        return (params, state), jnp.mean(params**2)

    def run(key):
        params = jnp.ones(64)
        return jax.lax.scan(body, (params, tx.init(params)), jax.random.split(key, steps))[1]

    keys = jax.random.split(jax.random.key(batch_size), 100)
    by_step = np.asarray(jnp.mean(jax.jit(jax.vmap(run))(keys), axis=0))
    return by_step[[steps // 8 - 1, steps // 2 - 1, steps - 1]]


def test_after_the_same_examples_the_loss_is_the_same():
    scaled = scaled_numbers(8, **SETTINGS)
    np.testing.assert_allclose(losses(8, **scaled), losses(1, **SETTINGS), rtol=0.04)


@pytest.mark.parametrize("left_out", [("learning_rate",), ("eps",), ("weight_decay",), SETTINGS])
def test_and_without_the_rule_for_any_of_the_numbers_it_is_not(left_out):
    scaled = scaled_numbers(8, **SETTINGS) | {name: SETTINGS[name] for name in left_out}
    assert np.max(np.abs(losses(8, **scaled) / losses(1, **SETTINGS) - 1)) > 0.2


@pytest.mark.parametrize(("noise", "low", "high"), [(10.0, 0.96, 1.06), (2.0, 1.3, 3.0)])
def test_the_rule_ends_where_noise_is_no_longer_most_of_the_gradient(noise, low, high):
    settings = {"learning_rate": 1e-3 * noise}
    scaled = scaled_numbers(8, **settings)
    ratios = losses(8, noise, **scaled) / losses(1, noise, **settings)
    assert np.all((low < ratios) & (ratios < high))
