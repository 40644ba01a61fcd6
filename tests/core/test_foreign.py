"""Optax's own transformations inside this package's wrappers are as cheap as inside Optax's."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import accumulate, adamw, chain, clip_by_global_norm, skip_nonfinite, telemetry
from tests.catalogue.recipes import stepper
from tests.catalogue.training import temporary, trained

pytestmark = pytest.mark.usefixtures("standard_promotion")
PARAMS = {name: jnp.ones(10_000) for name in "abc"}
every_form = pytest.mark.parametrize("through", ["step", "update"])


def optax_chain(*txs):
    return optax.chain(clip_by_global_norm(1.0), *txs, adamw(1e-3))


def our_chain(*txs):
    return chain(clip_by_global_norm(1.0), *txs, adamw(1e-3))


WRAPPERS = {
    "skip": skip_nonfinite,
    "accumulate": lambda inner: accumulate(inner, 4),
    "telemetry": telemetry,
    "accumulate, skip": lambda inner: accumulate(skip_nonfinite(inner), 4),
}
every_wrapper = pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)


@every_wrapper
@pytest.mark.parametrize("nested", [False, True])
def test_an_optax_chain_of_ours_is_ours(wrapper, nested):
    """Fails if Optax changes the closures that we recognize."""
    theirs, ours = optax_chain(), our_chain()
    if nested:
        theirs, ours = optax.chain(theirs, adamw(0.1)), chain(ours, adamw(0.1))
    assert wrapper(theirs) == wrapper(ours)
    assert hash(wrapper(theirs)) == hash(wrapper(ours))
    params = {"w": jnp.ones(3)}
    made = [jax.tree.structure(wrapper(tx).init(params)) for tx in (theirs, ours)]
    assert made[0] == made[1]


OTHERS = {
    "adamw": optax.adamw(1e-3),
    "ours": adamw(1e-3),
    "momentum": optax.sgd(1e-3, momentum=0.9),
    "sgd": optax.sgd(1e-3),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
    "ours, clipped": optax.chain(optax.clip_by_global_norm(1.0), adamw(1e-3)),
}


@pytest.mark.slow
@pytest.mark.bits
@every_form
@pytest.mark.parametrize("inner", OTHERS.values(), ids=OTHERS)
def test_anothers_steps_are_as_cheap_as_in_optax(inner, through):
    for ours, theirs in (
        (skip_nonfinite(inner), optax.apply_if_finite(inner, 10)),
        (accumulate(inner, 4), optax.MultiSteps(inner, 4).gradient_transformation()),
        (telemetry(inner), inner),
    ):
        allowed = temporary(theirs, PARAMS, through)
        assert temporary(ours, PARAMS, through) <= allowed + 0.1


@pytest.mark.bits
def test_through_step_anothers_steps_are_left_out_in_place():
    assert temporary(skip_nonfinite(OTHERS["adamw"]), PARAMS) < 0.1


def gradients(params, turn):
    grads = jax.tree.map(lambda p: jnp.cos(p * (turn + 1)), params)
    if turn in (2, 3, 5):
        grads["w"] = grads["w"].at[1].set(jnp.inf if turn == 3 else jnp.nan)
    return grads


@pytest.mark.slow
@every_form
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("inner", OTHERS.values(), ids=OTHERS)
def test_the_steps_are_those_of_apply_if_finite(inner, through, compiled):
    params = {"w": jnp.linspace(-1.0, 1.0, 5), "b": jnp.ones(())}
    ours, theirs = skip_nonfinite(inner), optax.apply_if_finite(inner, 10)
    actual = trained(ours, params, gradients, 6, through, jit=compiled)
    expected = params, state = trained(theirs, params, gradients, 6, through)
    chex.assert_trees_all_close(actual, expected, rtol=1e-6)
    trained(ours, params, steps=1, state=state)  # Optax's state continues.


@every_form
def test_a_state_that_does_not_keep_its_dtypes_is_chosen(through):
    """Optax's bfloat16 moments become float32 with the first float32 gradient."""
    params, tx = {"w": jnp.ones(4, jnp.bfloat16)}, skip_nonfinite(optax.adam(1e-3))
    grads = [{"w": jnp.full(4, x, jnp.float32)} for x in (1.0, jnp.nan, 1.0)]
    params, state = trained(tx, params, lambda _, turn: grads[turn], through=through)
    assert optax.tree.get(state, "count") == 2 and adam_jax.skipped(state).total == 1
    assert np.all(np.isfinite(np.asarray(params["w"], np.float32)))


@every_form
@pytest.mark.parametrize("inner", [OTHERS["adamw"], OTHERS["momentum"]], ids=["adamw", "momentum"])
def test_derivatives_and_populations(inner, through):
    tx, params = skip_nonfinite(inner), {"w": jnp.linspace(-1.0, 1.0, 5)}

    def loss(scale, tx):
        step = stepper(tx, through)
        moved, _ = step(params, tx.init(params), jax.tree.map(lambda p: jnp.cos(p * scale), params))
        return jnp.sum(moved["w"] ** 2)

    scales = jnp.array([0.5, 2.0, jnp.inf])
    together = jax.jit(jax.vmap(lambda s: loss(s, tx)))(scales)
    np.testing.assert_allclose(together[:2], [loss(s, inner) for s in scales[:2]], rtol=1e-6)
    assert together[2] == jnp.sum(params["w"] ** 2)
    derivative = jax.jit(jax.grad(loss), static_argnums=1)
    np.testing.assert_allclose(derivative(0.5, tx), derivative(0.5, inner), 1e-4, 1e-8)


@pytest.mark.parametrize("jit", [False, True])
def test_a_step_adds_the_rounded_updates_of_another_library(jit):
    """XLA would otherwise add the update before it is rounded to bfloat16."""
    tx = adam_jax.chain(adam_jax.adamw(1e-2), optax.trace(0.5))
    random = np.random.default_rng(0)
    params = jnp.asarray(random.normal(size=(64, 64)), jnp.bfloat16)
    stepped, state = params, tx.init(params)
    step = jax.jit(tx.step) if jit else tx.step
    for _ in range(4):
        grads = jnp.asarray(random.normal(size=(64, 64)), jnp.bfloat16)
        updates, _ = tx.update(grads, state, stepped)
        wanted = optax.apply_updates(stepped, updates)
        stepped, state = step(grads, state, stepped)
        np.testing.assert_array_equal(np.asarray(stepped, float), np.asarray(wanted, float))
