"""Derivatives through optimizer steps are finite everywhere, and correct."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from tests.catalogue import every_kind_of_state, every_member_slowly, few
from tests.catalogue.training import trained
from tests.tools.record import WRAPPERS

PARAMS = {"x": jnp.array([1.0, -3.0]), "zero": jnp.zeros(2)}


def loss(member, learning_rate, numbers, params):
    tx = member.function(learning_rate, **(member.keywords | member.ours | numbers))

    def gradients(params, _):
        return {"x": 2 * params["x"], "zero": 0 * params["zero"]}

    params, _ = trained(tx, params, gradients, through="update", jit=False)
    return jnp.sum(params["x"] ** 2) + jnp.sum(params["zero"] ** 2)


@every_kind_of_state
def test_finite_also_at_zero_gradients(member):
    numbers = {"b1": 0.9, "b2": 0.99, "b3": 0.999, "eps": 1e-8, "eps_root": 0.0}
    numbers = {name: x for name, x in numbers.items() if member.has(name)}
    derive = jax.jit(jax.grad(functools.partial(loss, member), argnums=(0, 1, 2)))
    derivatives = derive(0.1, numbers, PARAMS)
    chex.assert_tree_all_finite(derivatives)
    assert derivatives[0] < 0  # A larger step reduces the loss more.


@few("wrapper", [x for x in WRAPPERS if "optax" not in x], ["chain", "clip_by_history", "recipe"])
def test_wrappers_have_two_finite_derivatives_at_zero_gradients(wrapper):
    tx = WRAPPERS[wrapper](adam_jax.adamw(1e-2))
    params = {"kernel": jnp.linspace(-1, 1, 64).reshape(2, 32), "bias": jnp.ones(3)}

    def total(grads):
        moved, _ = trained(tx, params, lambda *_: grads, 2, jit=False)
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(moved))

    zeros, ones = (jax.tree.map(like, params) for like in (jnp.zeros_like, jnp.ones_like))
    derivatives = jax.jit(lambda x, y: jax.jvp(jax.grad(total), (x,), (y,)))(zeros, ones)
    chex.assert_tree_all_finite(derivatives)


EDGES = ("b1", "b2", "b3", "eps", "eps_root", "eps_hat", "momentum_decay", "alpha")


@every_member_slowly
def test_right_where_a_number_is_zero(member, x64):
    """For b = 0, log b is -∞; for ε = 0, zero gradients give 0/0."""
    params = jax.tree.map(lambda x: x.astype(float), PARAMS)
    # AdaBelief without momentum divides only by ε.
    base = {"eps_root": 0.5} if member.name == "adabelief" else {}
    usual = {"b1": 0.9, "b2": 0.999, "b3": 0.999, "eps": 1e-8, "eps_root": 0.0, "eps_hat": 0.0}
    usual |= {"momentum_decay": 0.01, "alpha": 5.0} | base
    numbers = {name: usual[name] for name in EDGES if member.has(name)}
    if "momentum_decay" not in member.ours:
        numbers.pop("momentum_decay", None)
    value_and_grad = jax.jit(jax.value_and_grad(lambda n: loss(member, 0.1, n, params)))
    for name in set(numbers) - set(base):
        # A one-sided difference of three points, because the numbers cannot be negative.
        (at_0, slopes), (at_1, _), (at_2, _) = (
            value_and_grad(numbers | {name: x}) for x in (0.0, 1e-5, 2e-5)
        )
        one_sided = (4 * at_1 - at_2 - 3 * at_0) / 2e-5
        assert float(slopes[name]) == pytest.approx(float(one_sided), rel=1e-3, abs=1e-4), name
    at_zero = {name: base.get(name, 0.0) for name in numbers}
    chex.assert_tree_all_finite(value_and_grad(at_zero))


@pytest.mark.slow
@every_kind_of_state
def test_no_nan_on_the_way(member):
    numbers = {name: 0.0 for name in EDGES if member.has(name) and name != "momentum_decay"}
    with jax.debug_nans(True):
        chex.assert_tree_all_finite(jax.grad(loss, argnums=(1, 2, 3))(member, 0.1, numbers, PARAMS))


def test_finite_after_many_steps_of_radam():
    def update(b2, count):
        tx = adam_jax.scale_by_radam(b2=b2)
        state = tx.init(jnp.ones(2))._replace(count=count, nu=jnp.ones(2))
        return tx.update(jnp.ones(2), state)[0][0]

    for count in (10, 10**5, 2**31 - 2):
        assert np.isfinite(jax.grad(update)(0.999, jnp.int32(count)))


def test_decay_rates_in_the_state_can_be_learnt(x64):
    """Also at their initial values, where the exact complements in the state are used."""
    params = jnp.array([1.0, -3.0])

    def loss(b1, b2):
        tx = adam_jax.with_hyperparams(adam_jax.adamw)(0.1)
        state = tx.init(params)
        state.hyperparams.update(b1=b1, b2=b2)
        return jnp.sum(trained(tx, params, state=state, jit=False)[0] ** 2)

    derivatives = jax.grad(loss, argnums=(0, 1))(jnp.asarray(0.9), jnp.asarray(0.999))
    for i, derivative in enumerate(derivatives):
        at = [[0.9, 0.999], [0.9, 0.999]]
        at[0][i] -= 1e-6
        at[1][i] += 1e-6
        low, high = (loss(*map(jnp.asarray, numbers)) for numbers in at)
        assert float(derivative) == pytest.approx(float(high - low) / 2e-6, rel=1e-4)
