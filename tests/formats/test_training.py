"""Members train with quantized and factored moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from tests.catalogue import every_kind_of_state
from tests.catalogue.low_precision import MOMENTS, every_form_of_moments
from tests.catalogue.second_moments import every_kind_with_nu


@every_kind_of_state
@pytest.mark.parametrize("name", ["int8", "stochastic int8"])
def test_every_kind_of_member_trains_with_codes(member, name):
    assert_trains(member.alias(3e-2, **member.stored(*MOMENTS[name])))


@every_form_of_moments
def test_adamw_trains_with_every_form(form):
    mu, nu = form
    assert_trains(adam_jax.adamw(3e-2, mu_dtype=mu, nu_dtype=nu))


@every_kind_with_nu
@pytest.mark.parametrize("nu", [adam_jax.BlockMeans(0), adam_jax.Factored(64)], ids=str)
def test_every_kind_of_member_trains_with_means(member, nu):
    assert_trains(member.alias(3e-2, nu_dtype=nu))


def assert_trains(tx):
    """Least squares with a state of constant structure, which the scan requires."""
    x = jax.random.normal(jax.random.key(0), (32, 64))
    goal = jax.random.normal(jax.random.key(1), (64, 64)) / 8

    def loss(w):
        return jnp.mean((x @ (w - goal)) ** 2)

    def body(carry, _):
        params, state = carry
        new = adam_jax.step(tx, jax.grad(loss)(params), state, params)
        return new, loss(new[0])

    params = jnp.zeros((64, 64))
    start = params, tx.init(params)
    _, losses = jax.jit(lambda start: jax.lax.scan(body, start, length=150))(start)
    assert np.all(np.isfinite(losses))
    assert losses[-1] < 0.35 * loss(params), losses[-1]
