"""The state in host memory: the same steps, fewer bytes on the device."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import adam_jax
from adam_jax import sharding
from tests.catalogue.sharded import (
    assert_placed,
    every_transformation,
    loss,
    on,
    parameters,
    trained,
)

pytestmark = pytest.mark.usefixtures("standard_promotion")


@every_transformation
def test_offloaded_the_steps_are_the_same(tx):
    params = parameters()
    x = jax.random.normal(jax.random.key(2), (64, 256))
    whole, _, _ = trained(tx, params, x)
    ours, state, _ = trained(sharding.offload(tx), params, x)
    chex.assert_trees_all_close(ours, whole, rtol=1e-6, atol=1e-7)
    assert all(x.sharding.memory_kind == "device" for x in jax.tree.leaves(ours))
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.memory_kind == ("pinned_host" if leaf.ndim else "device")


def test_offloaded_outside_jit_and_through_update():
    tx, params = sharding.offload(adam_jax.adamw(1e-2)), parameters()
    grads = jax.tree.map(jnp.ones_like, params)
    updates, state = tx.update(grads, tx.init(params), params)
    expected, _ = adam_jax.adamw(1e-2).update(grads, adam_jax.adamw(1e-2).init(params), params)
    np.testing.assert_array_equal(updates["in"], expected["in"])
    assert state[0].mu["in"].sharding.memory_kind == "pinned_host"


@pytest.mark.parametrize("compiled", [False, True])
def test_offloaded_state_without_offload(compiled):
    tx, params = adam_jax.chain(adam_jax.adamw(1e-2), adam_jax.ema_params(0.9)), parameters()
    state = sharding.offload(tx).init(params)
    for step in (tx.step, tx.update):
        step = jax.jit(step) if compiled else step
        with pytest.raises(ValueError, match="^memory_space of all inputs passed to"):
            step(params, state, params)
        step(params, jax.device_put(state, jax.memory.Space.Device), params)


def test_offloaded_under_scan():
    tx, params = sharding.offload(adam_jax.adamw(1e-2)), parameters()
    state = tx.init(params)

    def body(carry, _):
        params, state = carry
        return adam_jax.step(tx, jax.grad(loss)(params, jnp.ones((8, 256))), state, params), None

    (params, state), _ = jax.jit(lambda c: jax.lax.scan(body, c, None, length=3))((params, state))
    assert int(state[0].count) == 3
    assert state[0].nu["in"].sharding.memory_kind == "pinned_host"


def test_split_and_offloaded():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    params, x = on(mesh, parameters()), on(mesh, jnp.ones((64, 256)), "data")
    whole, _, _ = trained(adam_jax.adamw(1e-2), params, x)
    split = sharding.shard_state(adam_jax.adamw(1e-2), mesh)
    tx = sharding.offload(split, where=r".*/(mu|nu)/(in|out)")
    ours, state, _ = trained(tx, params, x)
    np.testing.assert_allclose(ours["in"], whole["in"], rtol=1e-6, atol=1e-7)
    assert state[0].mu["in"].addressable_shards[0].data.shape == (32, 512)
    told = sharding.state_shardings(tx, params, mesh)
    kinds = jax.tree.map(lambda sharding: sharding.memory_kind, told[0]._asdict())
    moments = {"in": "pinned_host", "out": "pinned_host", "bias": "device"}
    assert kinds == {"count": "device", "mu": moments, "nu": moments}
    assert_placed(state, told)


def test_offload_errors():
    with pytest.raises(ValueError, match=r"where must be a regular expression, got '\('"):
        sharding.offload(adam_jax.adam(1e-3), where="(")


@pytest.mark.slow
@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("dtype", [jnp.int8, jnp.bfloat16, adam_jax.stochastic(jnp.bfloat16)])
def test_a_converted_state_stays_on_the_host_and_goes_on(dtype, jit):
    tx, params = sharding.offload(adam_jax.adamw(1e-2)), parameters()
    state = tx.init(params)

    def convert(state):
        return adam_jax.convert_state(state, mu_dtype=dtype, nu_dtype=dtype)

    converted = (jax.jit(convert) if jit else convert)(state)
    expected = convert(adam_jax.adamw(1e-2).init(params))
    assert jax.tree.structure(converted) == jax.tree.structure(expected)
    _, stepped = jax.jit(lambda g, s, p: adam_jax.step(tx, g, s, p))(params, converted, params)
    for x in jax.tree.leaves((converted, stepped)):
        assert x.sharding.memory_kind == ("pinned_host" if x.ndim else "device")


@pytest.mark.parametrize("codes", [jnp.int8, jnp.float32])
def test_from_optax_to_the_memory_of_the_one_that_goes_on(codes):
    params = parameters()
    member = adam_jax.adamw(1e-2, mu_dtype=codes, nu_dtype=codes)
    plain = adam_jax.adamw(1e-2)
    for tx in (member, sharding.offload(member)):
        for state in (plain.init(params), sharding.offload(plain).init(params)):
            moved = adam_jax.convert.from_optax(state, params, tx)
            kinds = jax.tree.map(lambda x: x.sharding.memory_kind, (moved, tx.init(params)))
            assert kinds[0] == kinds[1]


@pytest.mark.slow
def test_measured_where_a_part_is_on_the_host():
    tx, params = adam_jax.telemetry(sharding.offload(adam_jax.adamw(1e-2)), 1), parameters()
    _, state = jax.jit(lambda g, s, p: adam_jax.step(tx, g, s, p))(params, tx.init(params), params)
    expected = adam_jax.telemetry(adam_jax.adamw(1e-2), 1)
    _, whole = adam_jax.step(expected, params, expected.init(params), params)
    assert adam_jax.measured(state)["groups"]["in"] == pytest.approx(
        adam_jax.measured(whole)["groups"]["in"], rel=1e-4
    )
