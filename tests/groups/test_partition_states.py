"""Groups with separate optimizers: hyperparameters, telemetry, bytes, conversion of their state."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import adam_jax
from adam_jax.core.states import found
from tests.catalogue.training import trained

pytestmark = pytest.mark.usefixtures("standard_promotion")

PARAMS = {
    "a": {"kernel": jax.random.normal(jax.random.key(0), (64, 128)), "bias": jnp.ones(128)},
    "b": {"kernel": jax.random.normal(jax.random.key(1), (8, 4)), "bias": jnp.ones(4)},
    "embedding": jnp.linspace(-1.0, 1.0, 64 * 128).reshape(64, 128),
}
KERNELS, EMBEDDING, REST = ".*/kernel", "embedding", ".*"
LABELS = {name: {"kernel": KERNELS, "bias": REST} for name in "ab"} | {EMBEDDING: EMBEDDING}
MUON = optax.contrib.muon(1e-2)


def gradients(_, turn):
    return jax.tree.map(lambda p: jnp.cos(p * (turn + 1)), PARAMS)


def train(tx, steps, params=PARAMS, state=None):
    return trained(tx, params, gradients, steps, state=state)


def ours(**storage):
    rest = adam_jax.adamw(1e-2, **storage)
    return adam_jax.groups({KERNELS: MUON, EMBEDDING: adam_jax.lion(1e-2), REST: rest})


def schedule(count):
    return 0.01 / (1 + jnp.asarray(count, jnp.float32))


def together(rest):
    kernels = functools.partial(optax.contrib.muon, consistent_rms=0.2)
    return functools.partial(
        adam_jax.groups, {KERNELS: kernels, EMBEDDING: adam_jax.lion, REST: rest}
    )


def test_one_schedule_and_one_count_for_all():
    calls = []

    def counted(count):
        calls.append(count)
        return schedule(count)

    make = together(functools.partial(adam_jax.adamw, b2=0.99))
    tx = adam_jax.with_hyperparams(make)(learning_rate=counted)
    state = tx.init(PARAMS)
    calls.clear()
    jax.eval_shape(tx.step, PARAMS, state, PARAMS)
    assert len(calls) == 1
    assert set(adam_jax.hyperparams(state)) == {"learning_rate"}
    assert not found(state, lambda x: isinstance(x, optax.ScaleByScheduleState))
    expected, _ = train(make(learning_rate=schedule), 5)
    actual, state = train(tx, 5)
    chex.assert_trees_all_close(actual, expected, rtol=0, atol=1e-6)
    assert state.count == 5
    assert adam_jax.hyperparams(state)["learning_rate"] == pytest.approx(0.01 / 5)


def test_hyperparameters_are_read_and_set():
    tx = adam_jax.with_hyperparams(together(adam_jax.adamw))(learning_rate=1e-2, weight_decay=0.1)
    state = adam_jax.set_hyperparams(tx.init(PARAMS), learning_rate=0.0)
    moved, _ = adam_jax.step(tx, gradients(PARAMS, 0), state, PARAMS)
    chex.assert_trees_all_equal(moved, PARAMS)
    with pytest.raises(TypeError, match="'embedding': lion.*'eps'"):
        adam_jax.with_hyperparams(together(adam_jax.adamw))(learning_rate=1e-2, eps=1e-8)


@pytest.mark.bits
@pytest.mark.parametrize("other", [adam_jax.nadamw, optax.nadamw])
def test_decay_rates_are_exact_where_all_are_ours(other):
    """An Optax function takes only float32 numbers, and then all groups get those."""
    entries = {KERNELS: other, REST: adam_jax.adamw}
    make = functools.partial(adam_jax.groups, entries)
    numbers = {"learning_rate": 1e-2, "b2": 0.999}
    expected, _ = train(make(**numbers), 5)
    actual, _ = train(adam_jax.with_hyperparams(make)(**numbers), 5)
    if other is adam_jax.nadamw:
        chex.assert_trees_all_equal(actual, expected)
    chex.assert_trees_all_close(actual, expected, rtol=0, atol=1e-5)


def test_converting_leaves_others_alone():
    tx = ours()
    params, state = train(tx, 3)
    small = adam_jax.convert_state(state, mu_dtype=jnp.int8, nu_dtype=jnp.bfloat16)
    [adam, *_], [lion, *_] = (small.inner_states[e].inner_state for e in (REST, EMBEDDING))
    assert lion.mu[EMBEDDING].codes.dtype == jnp.int8 and adam.nu["a"]["bias"].dtype == jnp.bfloat16
    chex.assert_trees_all_equal(small.inner_states[KERNELS], state.inner_states[KERNELS])
    expected, _ = train(tx, 3, params, state)
    actual, _ = train(tx, 3, params, small)
    chex.assert_trees_all_equal(
        [actual[x]["kernel"] for x in "ab"], [expected[x]["kernel"] for x in "ab"]
    )
    chex.assert_trees_all_close(actual, expected, rtol=0, atol=5e-2)


def test_bytes_of_every_optimizer_are_counted():
    of_state = adam_jax.inspect.bytes_per_parameter(PARAMS, ours())
    assert of_state.groups["a"].state == 4 * 64 * 128 + 8 * 128
    assert of_state.groups["b"].state == 4 * 8 * 4 + 8 * 4
    assert of_state.groups[EMBEDDING].state == 4 * 64 * 128
    live = sum(x.nbytes for x in jax.tree.leaves(ours().init(PARAMS)))
    assert of_state.state == live


def test_another_storage_is_an_error_with_the_paths_that_would_be_lost():
    """Muon's moments are not of this family. `convert_state` leaves them where they are."""
    int8 = adam_jax.Quantized(min_size=1, block=64)
    theirs = {KERNELS: MUON, EMBEDDING: optax.lion(1e-2), REST: optax.adamw(1e-2)}
    state, coded = optax.partition(theirs, LABELS).init(PARAMS), ours(nu_dtype=int8)
    with pytest.raises(ValueError, match="nothing but moments.*muon.*/mu/a/kernel"):
        adam_jax.convert.from_optax(state, PARAMS, coded)
    state = adam_jax.convert.from_optax(state, PARAMS, ours())
    state = adam_jax.convert_state(state, nu_dtype=int8)
    adam = state.inner_states[REST].inner_state[0]
    assert adam.nu["a"]["bias"].codes.dtype == jnp.uint8
    train(coded, 1, state=state)
