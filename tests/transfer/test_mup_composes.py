"""`mup` composes with wrappers, storage, sharding and compiled programs."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adam_jax
from adam_jax import sharding
from adam_jax.transfer import mup
from tests.transfer.blocks import (
    ADAMW,
    ALPHA,
    AROUND,
    BASE,
    FACTORS,
    PARAMS,
    adamw,
    assert_close,
    gradients,
    leaf_of,
    numbers,
    partitioned,
    schedule,
    stepped,
)


@pytest.mark.slow
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_wrappers(around):
    given = {"learning_rate": schedule, "weight_decay": 0.1, "eps": 1e-3}
    ours, state = stepped(around(adamw(**given)), PARAMS, 6)
    theirs, other = stepped(around(partitioned(**given)), PARAMS, 6)
    assert_close(ours, theirs)
    if around is AROUND["everything"]:
        [ema], [expected] = (optax.tree.get_all_with_path(s, "ema") for s in (state, other))
        assert_close(ema[1], expected[1])


def test_groups_have_the_factors_on_top_of_their_own_numbers():
    tx = adam_jax.groups(
        adamw,
        {".*bias": {"weight_decay": 0.0, "learning_rate": 2e-2}, "in": None},
        learning_rate=1e-2,
        weight_decay=0.1,
    )
    ours, _ = stepped(tx, PARAMS)
    for path, factors in FACTORS.items():
        own = {"weight_decay": 0.0, "learning_rate": 2e-2} if "bias" in path else {}
        its = numbers(ADAMW, factors, **({"weight_decay": 0.1} | own))
        alone, _ = stepped(adam_jax.adamw(**its), [leaf_of(PARAMS, path)])
        expected = leaf_of(PARAMS, path) if path == "in" else alone[0]
        np.testing.assert_allclose(leaf_of(ours, path), expected, rtol=1e-6, err_msg=path)


def test_hyperparameters_in_the_state_are_those_of_the_base_model():
    tx = adam_jax.with_hyperparams(adamw)(learning_rate=1.0, weight_decay=0.1)
    state = adam_jax.set_hyperparams(tx.init(PARAMS), learning_rate=1e-2)
    assert state.hyperparams["weight_decay"] == np.float32(0.1)
    ours, state = stepped(tx, PARAMS, state=state)
    theirs, _ = stepped(adamw(1e-2, weight_decay=0.1), PARAMS)
    assert_close(ours, theirs)
    scheduled = adam_jax.with_hyperparams(adamw)(learning_rate=schedule)
    assert_close(stepped(scheduled, PARAMS)[0], stepped(adamw(schedule), PARAMS)[0])
    grouped = functools.partial(adam_jax.groups, adamw, {".*bias": {"weight_decay": 0.0}})
    ours, _ = stepped(adam_jax.with_hyperparams(grouped)(learning_rate=1e-2), PARAMS)
    assert_close(ours, stepped(grouped(learning_rate=1e-2), PARAMS)[0])


STORAGE = {
    "float32": {},
    "bfloat16": {"mu_dtype": jnp.bfloat16},
    "int8": {"mu_dtype": jnp.int8, "nu_dtype": jnp.int8},
    "int4": {"mu_dtype": jnp.int4, "nu_dtype": jnp.int4},
    "stochastic": {"nu_dtype": adam_jax.stochastic(jnp.bfloat16)},
    "factored": {"nu_dtype": adam_jax.Factored()},
    "block means": {"nu_dtype": adam_jax.AdamMini()},
}


@pytest.mark.parametrize("storage", STORAGE.values(), ids=STORAGE)
def test_moments_are_stored_as_without_and_updates_are_multiples(storage):
    """Without ε and weight decay, only the factor of the learning rate remains."""
    base, params = ({"k": jnp.ones((n, n)), "b": jnp.ones(n)} for n in (32, 128))
    plain = adam_jax.adam(1e-2, eps=0.0, **storage)
    tx = mup(plain, base, params)
    state = other = tx.init(params)
    for t in range(3):
        keys = jax.random.split(jax.random.key(t))
        grads = {"k": jax.random.normal(keys[0], (128, 128)), "b": jax.random.normal(keys[1], 128)}
        u, state = jax.jit(tx.update)(grads, state, params)
        v, other = jax.jit(plain.update)(grads, other, params)
        chex.assert_trees_all_equal(u, {"k": v["k"] / 4, "b": v["b"]}, strict=True)
    chex.assert_trees_all_equal(state, other, strict=True)


def test_weights_of_16_bits_with_a_residual():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    ours, _ = stepped(adam_jax.master_residual(adamw(1e-2)), params)
    theirs, _ = stepped(adam_jax.master_residual(partitioned(learning_rate=1e-2)), params)
    wide, _ = stepped(adamw(1e-2), jax.tree.map(lambda p: p.astype(jnp.float32), params))
    assert_close(ours, theirs, rtol=2**-7)
    assert_close(ours, wide, rtol=2**-7)


def on(count):
    return Mesh(np.array(jax.devices()[:count]), ("data",))


@pytest.mark.parametrize("kwargs", [{}, STORAGE["int8"]], ids=["float32", "int8"])
def test_a_state_split_over_8_devices(kwargs):
    base, params = ({"k": jnp.ones((n, n)), "b": jnp.ones(n)} for n in (32, 256))
    tx = mup(adam_jax.adamw(1e-2, eps=1e-3, **kwargs), base, params)
    whole, state = stepped(tx, params)
    copied = jax.device_put(params, NamedSharding(on(8), PartitionSpec()))
    split = sharding.shard_state(tx, on(8))
    ours, own = stepped(split, copied)
    assert_close(ours, whole)
    assert len(jax.tree.leaves(own)[1].addressable_shards) == 8
    assert jax.tree.structure(own) == jax.tree.structure(state)


def test_a_part_of_a_leaf_inside_shard_map_has_the_factors_of_the_whole():
    base, params = ({"k": jnp.ones((n, n)), "b": jnp.ones(n)} for n in (2, 16))
    tx = mup(adam_jax.adamw(1e-2), base, params)
    split = {"k": PartitionSpec("data"), "b": PartitionSpec("data")}

    @functools.partial(jax.shard_map, mesh=on(8), in_specs=(split, split), out_specs=split)
    def step(grads, params):
        return adam_jax.step(tx, grads, tx.init(params), params)[0]

    grads = gradients(params, 0)
    assert_close(jax.jit(step)(grads, params), adam_jax.step(tx, grads, tx.init(params), params)[0])


def test_leaves_that_are_none_integers_or_masked():
    base, params = (
        {"w": jnp.ones((n, n)), "n": jnp.zeros([], jnp.int32), "none": None, "kept": jnp.ones(3)}
        for n in (4, 16)
    )
    tx = optax.masked(mup(adam_jax.adamw(1e-2), base, params), {"w": True, "n": False,
                      "none": None, "kept": False})  # fmt: skip
    grads = {"w": jnp.ones((16, 16)), "n": None, "none": None, "kept": jnp.zeros(3)}
    plain = mup(adam_jax.adamw(1e-2), base, params)
    for its in (tx, plain):
        updates, _ = its.update(grads, its.init(params), params)
        np.testing.assert_allclose(updates["w"], -2.5e-3 * (1 + 4e-4), rtol=1e-5)
        assert updates["n"] is None and updates["none"] is None


def test_as_an_argument_of_a_program_another_learning_rate_is_no_other_program():
    traced = []

    @jax.jit
    def step(tx, grads, state, params):
        traced.append(1)
        return adam_jax.step(tx, grads, state, params)

    grads = gradients(PARAMS, 0)
    for rate in (1e-2, 1e-3):
        tx = adamw(jnp.float32(rate))
        ours, _ = step(tx, grads, tx.init(PARAMS), PARAMS)
        assert_close(ours, stepped(adamw(rate), PARAMS, 1)[0])
    assert len(traced) == 1


def test_made_inside_a_program():
    base = jax.eval_shape(lambda: BASE)

    @jax.jit
    def step(grads, params):
        tx = mup(adam_jax.adamw, base, params, alpha=ALPHA)(1e-2)
        return adam_jax.step(tx, grads, tx.init(params), params)[0]

    assert_close(step(gradients(PARAMS, 0), PARAMS), stepped(adamw(1e-2), PARAMS, 1)[0])
