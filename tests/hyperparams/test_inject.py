"""Optax's inject_hyperparams around our members: checkpoints are interchangeable with its own."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import adam_jax
from tests.catalogue import MEMBERS

PARAMS = {"w": jnp.linspace(-2.0, 2.0, 6).reshape(3, 2), "b": jnp.ones(2)}
GRADS = {name: jnp.sin(3 * p) for name, p in PARAMS.items()}

# Optax's inject_hyperparams treats every callable as a schedule.
STATIC = ("clip_value_fn", "warmup_steps")


def pairs():
    """Each alias and each scale_by_* that both libraries have."""
    for member in MEMBERS:
        if member.has_twin:
            yield member.name, member.alias, member.twin.alias
    pieces = dict.fromkeys(member.scale_by for member in MEMBERS)
    for name in (*pieces, "schedule_free_adamw"):
        theirs = getattr(optax, name, None) or getattr(optax.contrib, name, None)
        if theirs is not None:  # Optax has no scale_by_nadam.
            yield name, getattr(adam_jax, name), theirs


every_pair = pytest.mark.parametrize(
    ("ours", "theirs"), [pytest.param(ours, theirs, id=name) for name, ours, theirs in pairs()]
)


def injected(factory):
    parameters = inspect.signature(factory).parameters
    rate = {"learning_rate": 0.1} if "learning_rate" in parameters else {}
    static = [name for name in STATIC if name in parameters]
    return optax.inject_hyperparams(factory, static_args=static)(**rate)


@every_pair
def test_states_are_the_same(ours, theirs, standard_promotion):
    """core/test_contract.py has steps that continue from the other's state."""
    txs = injected(ours), injected(theirs)
    states = [tx.init(PARAMS) for tx in txs]
    chex.assert_trees_all_equal_shapes_and_dtypes(*states)
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    assert list(states[0].hyperparams) == list(states[1].hyperparams)
    chex.assert_trees_all_equal(states[0].hyperparams, states[1].hyperparams)


def test_none_is_the_value_that_the_docstring_says():
    for alias, argument, number in (
        (adam_jax.adam, "eps_hat", 0.0),
        (adam_jax.nadamw, "eps_hat", 0.0),
        (adam_jax.radam, "eps_hat", 0.0),
        (adam_jax.amsgrad, "eps_hat", 0.0),
        (adam_jax.yogi, "eps_root", 0.0),
        (adam_jax.yogi, "initial_accumulator_value", 1e-6),
        (adam_jax.scale_by_yogi, "initial_accumulator_value", 1e-6),
        (functools.partial(adam_jax.lion, mode="smooth"), "smooth_beta", 1.0),
    ):
        rate = {} if alias is adam_jax.scale_by_yogi else {"learning_rate": 0.1}
        assert alias(**rate, **{argument: None}) == alias(**rate, **{argument: number})
        assert alias(**rate) == alias(**rate, **{argument: number})


def test_what_is_given_is_a_number_of_the_state_with_either_wrapper(standard_promotion):
    for wrapper in (optax.inject_hyperparams, adam_jax.with_hyperparams):
        tx = wrapper(adam_jax.adam)(learning_rate=0.1, eps=0.0, eps_hat=1e-2)
        assert "eps_hat" in tx.init(PARAMS).hyperparams
        static = adam_jax.adam(0.1, eps=0.0, eps_hat=1e-2)
        expected, _ = static.update(GRADS, static.init(PARAMS))
        chex.assert_trees_all_close(
            tx.update(GRADS, tx.init(PARAMS), PARAMS)[0], expected, rtol=1e-5
        )
        assert "eps_hat" not in wrapper(adam_jax.adam)(learning_rate=0.1).init(PARAMS).hyperparams


def test_an_argument_of_none_may_be_scheduled():
    """Its default was a number once, so a function of the step was allowed."""
    make = adam_jax.with_hyperparams(adam_jax.adam)
    tx = make(0.1, eps=0.0, eps_hat=lambda count: 10.0**-count)
    _, state = tx.update(PARAMS, tx.init(PARAMS))
    _, state = tx.update(PARAMS, state)
    assert float(adam_jax.hyperparams(state)["eps_hat"]) == pytest.approx(0.1)
    # Coupled decay accepts a function.
    tx = make(0.1, l2=lambda count: 0.5)
    assert "l2" not in tx.init(PARAMS).hyperparams
    static = adam_jax.adam(0.1, l2=0.5)
    chex.assert_trees_all_close(
        tx.update(GRADS, tx.init(PARAMS), PARAMS)[0],
        static.update(GRADS, static.init(PARAMS), PARAMS)[0],
        rtol=1e-6,
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.complex64])
def test_numbers_in_the_dtype_of_the_parameters_are_refused_by_name(dtype, standard_promotion):
    params = jnp.ones(3, dtype)
    tx = optax.inject_hyperparams(adam_jax.adamw)(learning_rate=0.1)
    names = r"hyperparam_dtype=jnp\.float32.*with_hyperparams"
    if dtype != jnp.float16:
        with pytest.raises(ValueError, match=names):
            tx.update(params, tx.init(params), params)
    warning = pytest.raises(ValueError, match=names)
    if dtype != jnp.complex64:
        warning = pytest.warns(UserWarning, match=names)
    with warning:  # Traced, 1 is read as the middle of what rounds to it.
        updates, _ = jax.jit(lambda p: tx.update(p, tx.init(p), p))(params)
        chex.assert_trees_all_close(updates, jnp.full(3, -0.1, dtype), rtol=0.01)
    exact = optax.inject_hyperparams(adam_jax.adamw, hyperparam_dtype=jnp.float32)(0.1)
    if dtype == jnp.complex64:
        return
    updates, _ = jax.jit(exact.update)(params, exact.init(params), params)
    assert jnp.isfinite(updates).all()
