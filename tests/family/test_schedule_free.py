"""Schedule-free AdamW: the paper's algorithm, Optax's state, and a value like other members."""

import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import adam_jax
from tests.catalogue.exported import train_from_the_file
from tests.catalogue.runs import gradients

pytestmark = pytest.mark.usefixtures("standard_promotion")


def train(tx, gs, step=False):
    params = jnp.ones(gs.shape[1:])
    state = tx.init(params)
    update = jax.jit(tx.step if step else tx.update)
    for g in gs:
        result, state = update(g, state, params)
        params = result if step else optax.apply_updates(params, result)
    return params, contrib.schedule_free_eval_params(state, params), state


@pytest.mark.parametrize("warmup", [None, 5])
def test_it_is_optaxs_wrapper_and_state(warmup, x64):
    gs = gradients(20, 10, seed=24).astype(np.float64)
    arguments = (0.1, warmup, 0.9, 0.99)
    ours, our_average, our_state = train(
        adam_jax.schedule_free_adamw(*arguments, weight_decay=0.1), gs
    )
    theirs, their_average, their_state = train(
        contrib.schedule_free_adamw(*arguments, weight_decay=0.1), gs
    )
    # Optax computes the learning rate of a warmup in float32, even under x64.
    rtol = 1e-9 if warmup is None else 1e-6
    np.testing.assert_allclose(ours, theirs, rtol=rtol)
    np.testing.assert_allclose(our_average, their_average, rtol=rtol)
    assert jax.tree.structure(our_state) == jax.tree.structure(their_state)
    stepped, _, _ = train(adam_jax.schedule_free_adamw(*arguments, weight_decay=0.1), gs, step=True)
    np.testing.assert_allclose(stepped, ours, rtol=1e-12)


def test_it_is_the_papers_algorithm(x64):
    """Defazio et al. 2024, algorithm 1, in NumPy; c_t = γ_t² / Σγ² is 1/t for a constant γ."""
    gs = gradients(30, 10, seed=25).astype(np.float64)
    b1, b2, rate, decay = 0.8, 0.97, 0.05, 0.1
    y = x = z = np.ones(gs.shape[1:])
    v = np.zeros_like(y)
    for t, g in enumerate(gs, start=1):
        v = b2 * v + (1 - b2) * g**2
        z = z - rate * (g / (np.sqrt(v / (1 - b2**t)) + 1e-8) + decay * y)
        x = (1 - 1 / t) * x + z / t
        y = (1 - b1) * z + b1 * x
    tx = adam_jax.schedule_free_adamw(rate, b1=b1, b2=b2, weight_decay=decay)
    params, average, _ = train(tx, gs)
    np.testing.assert_allclose(params, y, rtol=1e-9)
    np.testing.assert_allclose(average, x, rtol=1e-9)


def test_it_is_a_value_and_a_pytree():
    first, second, other = (adam_jax.schedule_free_adamw(rate, 5) for rate in (0.1, 0.1, 0.2))
    assert first == second != other and hash(first) == hash(second)
    assert pickle.loads(pickle.dumps(first)) == first
    traces = []

    @jax.jit
    def move(tx, params):
        traces.append(1)
        return adam_jax.step(tx, params, tx.init(params), params)[0]

    plain = [adam_jax.schedule_free_adamw(rate) for rate in (0.1, 0.2)]
    moved = [move(tx, jnp.ones(2)) for tx in plain]
    assert len(traces) == 1 and (moved[0] != moved[1]).all()


@pytest.mark.parametrize(
    "modifier", [adam_jax.grokfast, adam_jax.cautious_weight_decay, adam_jax.atan2]
)
def test_modifiers_and_hyperparameters(modifier):
    gs = gradients(10, 10, seed=26)
    plain = adam_jax.schedule_free_adamw(0.1, weight_decay=0.1)
    tx = modifier(plain)
    assert np.abs(train(tx, gs)[0] - train(plain, gs)[0]).max() > 1e-6
    factory = adam_jax.with_hyperparams(modifier(adam_jax.schedule_free_adamw))
    in_state = factory(0.1, weight_decay=0.1, warmup_steps=3)
    state = in_state.init(jnp.ones(gs.shape[1:]))
    assert "warmup_steps" not in adam_jax.hyperparams(state)
    warmed = modifier(adam_jax.schedule_free_adamw(0.1, 3, weight_decay=0.1))
    params = jnp.ones(gs.shape[1:])
    update = jax.jit(in_state.update)
    for g in gs:
        updates, state = update(g, state, params)
        params = params + updates
    chex.assert_trees_all_close(params, train(warmed, gs)[0], rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_numbers_in_the_state_keep_its_dtypes_and_b1_stays_out(dtype):
    """x is computed from y with b1 and the power, so changing them in mid-run would corrupt x."""
    tx = adam_jax.with_hyperparams(adam_jax.schedule_free_adamw)(0.1, warmup_steps=2)
    params = jnp.ones(3, dtype)
    state = tx.init(params)
    assert not {"b1", "weight_lr_power"} & set(adam_jax.hyperparams(state))

    def step(carry, _):
        params, state = carry
        return adam_jax.step(tx, params, state, params), None

    (params, after), _ = jax.lax.scan(step, (params, state), length=4)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert (params < 1).all()


def test_no_steps_of_warm_up_are_none():
    assert adam_jax.schedule_free_adamw(0.1, 0) == adam_jax.schedule_free_adamw(0.1)


def test_export():
    class SubMember:
        alias = staticmethod(lambda rate: adam_jax.schedule_free_adamw(rate, 3, weight_decay=0.01))

    train_from_the_file(SubMember, jnp.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"b1": 0.0}, r"b1 must be in \[1e-06, 1\)"),
        ({"b1": 1.0}, "b1 must be in"),
        ({"b2": 1.0}, r"b2 must be in \[0, 1\)"),
        ({"weight_lr_power": -1.0}, "weight_lr_power must be in"),
        ({"learning_rate": -1.0}, "learning_rate must be in"),
        ({"learning_rate": lambda t: 0.1, "warmup_steps": 3}, "learning_rate must be a number.*"),
        ({"warmup_steps": -3}, "warmup_steps must be an integer"),
        ({"warmup_steps": 2.5}, "warmup_steps must be an integer"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        adam_jax.schedule_free_adamw(**arguments)


def test_groups_say_that_they_are_not_for_it():
    with pytest.raises(ValueError, match="got ScheduleFree: .*groups"):
        adam_jax.groups(adam_jax.schedule_free_adamw, {"a": {"b2": 0.9}}, learning_rate=0.1)
