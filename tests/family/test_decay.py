"""Coupled, decoupled and fully decoupled weight decay, and the aliases that have it."""

import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from tests.catalogue.runs import gradients, run

PLAIN = {"adamw": "adam", "nadamw": "nadam", "adamaxw": "adamax"}
PLAIN |= {name: name for name in ("amsgrad", "radam", "laprop")}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("decay", [0.3, lambda count: 0.3 / (count.astype(float) + 1)])
@pytest.mark.parametrize("scaled", [True, False])
def test_the_learning_rate_multiplies_decoupled_decay_unless_it_is_fully_so(
    name, decay, scaled, x64
):
    gs = gradients(5, 10, seed=21).astype(np.float64)
    params = jnp.linspace(-2.0, 2.0, 30).reshape(3, 10)
    rate = adam_jax.schedules.inverse_sqrt_schedule(0.1)
    plain = run(getattr(adam_jax, PLAIN[name])(rate), gs, params)
    tx = getattr(adam_jax, name)(rate, weight_decay=decay, scale_decay=scaled)
    for t, u in enumerate(run(tx, gs, params)):
        now = 0.3 / (t + 1) if callable(decay) else decay
        now *= rate(t) if scaled else 1
        np.testing.assert_allclose(u, plain[t] - now * params, rtol=1e-12)


@pytest.mark.parametrize("name", [*PLAIN.values(), "adabelief", "yogi", "adopt"])
def test_coupled_decay_is_in_the_gradient(name, x64):
    gs = gradients(5, 10, seed=23).astype(np.float64)[:, :2]
    params = jnp.linspace(-2.0, 2.0, 20).reshape(2, 10)
    alias = getattr(adam_jax, name)
    exact = run(alias(0.1), gs + 0.3 * np.asarray(params))
    np.testing.assert_allclose(run(alias(0.1, l2=0.3), gs, params), exact, rtol=1e-9)
    scheduled = alias(0.1, l2=lambda count: jnp.asarray(0.3))
    np.testing.assert_allclose(run(scheduled, gs, params), exact, rtol=1e-9)
    with pytest.raises(ValueError, match=r"tx\.update\(grads, state, params\)"):
        alias(0.1, l2=0.3).update(params, alias(0.1, l2=0.3).init(params))
