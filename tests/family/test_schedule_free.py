"""Schedule-free AdamW: the paper's algorithm, Optax's state, and a value like other members."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax import contrib

import adam_jax
from tests.catalogue.exported import train_from_the_file
from tests.catalogue.runs import gradients
from tests.catalogue.training import trained

pytestmark = pytest.mark.usefixtures("standard_promotion")


def train(tx, gs, through="update"):
    return trained(tx, jnp.ones(gs.shape[1:]), lambda _, turn: gs[turn], len(gs), through)


def authors(gs, rate, warmup=0, b1=0.9, b2=0.999, decay=0.0, power=2.0, start=1.0):
    """y and z as in the authors' AdamWScheduleFree, in NumPy."""
    y = np.full(gs.shape[1:], start, gs.dtype)
    z, v, largest, weights = y.copy(), np.zeros(gs.shape[1:]), 0.0, 0.0
    for k, g in enumerate(gs):
        lr = (rate(k) if callable(rate) else rate) * (min((k + 1) / warmup, 1) if warmup else 1)
        largest = max(largest, lr)
        weights += largest**power
        c = largest**power / weights if weights else 0.0
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        u = g / (np.sqrt(v / (1 - b2 ** (k + 1))) + 1e-8) + decay * y
        y = y + c * (z - y) + lr * (b1 * (1 - c) - 1) * u
        z = z - lr * u
    return y, z


@pytest.mark.parametrize(
    ("rate", "warmup"), [(0.1, None), (0.1, 5), (lambda k: 0.1 * np.float64(0.9) ** k, None)]
)
def test_it_is_the_authors_algorithm(rate, warmup, x64):
    gs = gradients(20, 10, seed=24).astype(np.float64)
    tx = adam_jax.schedule_free_adamw(rate, warmup, 0.9, 0.99, weight_decay=0.1)
    y, z = authors(gs, rate, warmup, 0.9, 0.99, 0.1)
    for through in ("update", "step"):
        params, state = train(tx, gs, through)
        np.testing.assert_allclose(params, y, rtol=1e-12)
        np.testing.assert_allclose(state.z, z, rtol=1e-12)


def test_no_leaf_decides_the_arithmetic_of_another():
    """Optax keeps the sum of weights in the lowest dtype of the parameters; bfloat16 stops it."""
    starts = {"float32": 1.0, "bfloat16": 1.0, "float16": 1.0, "complex64": 1.0 + 1.0j}
    params = {name: jnp.full(3, x, name) for name, x in starts.items()}
    grads = {name: jnp.ones_like(x) for name, x in params.items()}
    fixed = {"table": jnp.arange(3), "key": jax.random.key(0), "none": None}
    params |= fixed | {"still": jnp.ones(2)}
    grads |= dict.fromkeys((*fixed, "still"))
    tx = adam_jax.master_residual(adam_jax.schedule_free_adamw(1e-3))
    params, state = trained(tx, params, lambda *_: grads, 1000)
    for name, start in starts.items():
        y, z = authors(np.ones((1000, 1), complex), 1e-3, start=start)
        rtol = {"bfloat16": 2**-8, "float16": 0.2}.get(name, 1e-4)
        np.testing.assert_allclose(np.asarray(params[name], complex), y[0], rtol=rtol)
        if name != "float16":
            np.testing.assert_allclose(state.inner_state.z[name], z[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(params["table"], fixed["table"])
    np.testing.assert_array_equal(params["still"], 1.0)


def test_a_skipped_step_changes_nothing():
    tx = adam_jax.skip_nonfinite(adam_jax.schedule_free_adamw(0.1, 3))
    gs = gradients(6, 10, seed=24)
    nan = np.full_like(gs[:1], np.nan)
    with_nan = np.concatenate([gs[:3], nan, gs[3:]])
    (ours, state), (theirs, other) = (train(tx, x, "step") for x in (with_nan, gs))
    chex.assert_trees_all_equal((ours, state.inner_state), (theirs, other.inner_state))


def test_its_state_is_optaxs_and_goes_on_there(x64):
    gs = gradients(20, 10, seed=24).astype(np.float64)
    results = []
    for module in (adam_jax, contrib):
        tx = module.schedule_free_adamw(0.1, None, 0.9, 0.99, weight_decay=0.1)
        params, state = train(tx, gs)
        results.append((params, contrib.schedule_free_eval_params(state, params), state))
    chex.assert_trees_all_close(*results, rtol=1e-9)
    chex.assert_trees_all_equal_shapes_and_dtypes(*results)


@pytest.mark.parametrize("modifier", [adam_jax.cautious_weight_decay, adam_jax.atan2])
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
    chex.assert_trees_all_close(train(in_state, gs)[0], train(warmed, gs)[0], rtol=1e-5)


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
    tx = adam_jax.schedule_free_adamw(1e-2, 3, weight_decay=0.01)
    train_from_the_file(tx, jnp.linspace(-1.0, 1.0, 5))


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
