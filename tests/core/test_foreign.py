"""Optax's own transformations inside this package's wrappers are as cheap as inside Optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import accumulate, adamw, chain, clip_by_global_norm, skip_nonfinite, telemetry
from adam_jax.core.foreign import Foreign
from adam_jax.wrap.chain import Chain, inner_body
from tests.catalogue.recipes import stepper

pytestmark = pytest.mark.usefixtures("standard_promotion")
SIZE = 30_000
every_form = pytest.mark.parametrize("through", ["step", "update"])


def temporary(tx, through):
    """Temporary bytes per parameter, with parameters and state donated."""
    params = {name: jnp.ones(SIZE // 3) for name in "abc"}
    step = jax.jit(stepper(tx, through), donate_argnums=(0, 1))
    compiled = step.lower(params, tx.init(params), params).compile()
    return compiled.memory_analysis().temp_size_in_bytes / SIZE


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


@pytest.mark.bits
@every_form
def test_ours_behind_a_clipping_of_optaxs_stores_no_more_than_in_optax(through):
    tx = optax.chain(optax.clip_by_global_norm(1.0), adamw(1e-3))
    allowed = temporary(optax.apply_if_finite(tx, 10), through)
    assert temporary(skip_nonfinite(tx), through) <= allowed + 0.1


def test_what_else_there_is_stays_optaxs():
    inner = optax.adamw(1e-3)
    for tx in (inner, optax.named_chain(("a", adamw(1e-3))), optax.masked(adamw(1e-3), True)):
        assert isinstance(inner_body("inner", tx), Foreign)
    body = inner_body("inner", optax_chain(inner))
    assert isinstance(body, Chain)
    assert [isinstance(b, Foreign) for b in body.bodies] == [False, True, False]


OTHERS = {
    "adamw": optax.adamw(1e-3),
    "momentum": optax.sgd(1e-3, momentum=0.9),
    "sgd": optax.sgd(1e-3),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
}


@pytest.mark.slow
@pytest.mark.bits
@every_form
@pytest.mark.parametrize("inner", OTHERS.values(), ids=OTHERS)
def test_anothers_steps_are_left_out_as_cheaply_as_in_optax(inner, through):
    allowed = temporary(optax.apply_if_finite(inner, 10), through)
    assert temporary(skip_nonfinite(inner), through) <= allowed + 0.1


@pytest.mark.slow
@pytest.mark.bits
@every_form
@pytest.mark.parametrize("inner", OTHERS.values(), ids=OTHERS)
def test_anothers_steps_are_accumulated_more_cheaply_than_in_optax(inner, through):
    allowed = temporary(optax.MultiSteps(inner, 4).gradient_transformation(), through)
    assert temporary(accumulate(inner, 4), through) <= allowed + 0.1
    assert temporary(telemetry(inner), through) <= temporary(inner, through) + 0.1


@pytest.mark.bits
def test_through_step_anothers_steps_are_left_out_in_place():
    assert temporary(skip_nonfinite(OTHERS["adamw"]), "step") < 0.1


def trained(tx, through, params, compiled, steps=6):
    step = stepper(tx, through)
    step = jax.jit(step) if compiled else step
    state = tx.init(params)
    for i in range(steps):
        grads = jax.tree.map(lambda p, i=i: jnp.cos(p * (i + 1)), params)
        if i in (2, 3):
            grads["w"] = grads["w"].at[1].set(jnp.nan)
        params, state = step(params, state, grads)
    return params, state


@pytest.mark.slow
@every_form
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("inner", OTHERS.values(), ids=OTHERS)
def test_the_steps_are_those_of_apply_if_finite(inner, through, compiled):
    params = {"w": jnp.linspace(-1.0, 1.0, 5), "b": jnp.ones(())}
    actual = trained(skip_nonfinite(inner), through, params, compiled)
    expected = trained(optax.apply_if_finite(inner, 10), through, params, True)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-6)


@every_form
def test_a_state_that_does_not_keep_its_dtypes_is_chosen(through):
    """Optax's bfloat16 moments become float32 with the first float32 gradient."""
    params = {"w": jnp.ones(4, jnp.bfloat16)}
    tx = skip_nonfinite(optax.adam(1e-3))
    step, state = jax.jit(stepper(tx, through)), tx.init(params)
    good = {"w": jnp.ones(4, jnp.float32)}
    for grads in (good, jax.tree.map(lambda g: g * jnp.nan, good), good):
        params, state = step(params, state, grads)
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


@pytest.mark.usefixtures("standard_promotion")
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
