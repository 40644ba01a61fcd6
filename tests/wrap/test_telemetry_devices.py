"""Telemetry over several devices: inside shard_map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax import adamw, measured, telemetry
from tests.catalogue.training import trained

pytestmark = pytest.mark.usefixtures("standard_promotion")


def parameters():
    w = jnp.linspace(-1.0, 1.0, 64 * 256).reshape(64, 256)
    return {"w": w, "b": jnp.linspace(0.5, 1.5, 64)}


def gradients(params):
    return jax.tree.map(lambda p: jnp.cos(3 * p), params)


def stepped(tx, grads, state, params):
    return trained(tx, params, lambda *_: grads, 2, state=state, jit=False)


def expected():
    tx, params = telemetry(adamw(1e-2), 1), parameters()
    return measured(stepped(tx, gradients(params), tx.init(params), params)[1])


def assert_same(record, reference):
    assert record["step"] == reference["step"] == 2
    for name, group in reference["groups"].items():
        assert record["groups"][name] == pytest.approx(group, rel=1e-4)


def mesh_of_eight():
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


@pytest.mark.slow
def test_parts_of_parameters_inside_shard_map():
    """Manual FSDP: the statistics are those of whole leaves, equal on all devices."""
    tx, params, parts = telemetry(adamw(1e-2), 1), parameters(), {"w": P("data"), "b": P()}

    def train(grads, params):
        new, state = stepped(tx, grads, tx.init(params), params)
        return new, state._replace(inner_state=())

    mapped = jax.shard_map(
        train, mesh=mesh_of_eight(), in_specs=(parts, parts), out_specs=(parts, P())
    )
    moved, state = jax.jit(mapped)(gradients(params), params)
    assert_same(measured(state), expected())
    reference = stepped(adamw(1e-2), gradients(params), adamw(1e-2).init(params), params)[0]
    np.testing.assert_allclose(moved["w"], reference["w"], rtol=1e-6, atol=1e-8)


def test_data_parallel_inside_shard_map():
    tx, params = telemetry(adamw(1e-2), 1), parameters()

    def train(x, state, params):
        grads = jax.tree.map(lambda g: jax.lax.pmean(g * x[0], "data"), gradients(params))
        return stepped(tx, grads, state, params)

    mapped = jax.shard_map(
        train, mesh=mesh_of_eight(), in_specs=(P("data"), P(), P()), out_specs=P()
    )
    _, state = jax.jit(mapped)(jnp.ones(8), tx.init(params), params)
    assert_same(measured(state), expected())


SMALL = {"mu_dtype": jnp.int8, "nu_dtype": jnp.int8}
MIXED = {
    "accumulate": adam_jax.accumulate(adamw(1e-2), 2),
    "8 bits": adamw(1e-2, **SMALL),
    "telemetry, 8 bits": telemetry(adamw(1e-2, **SMALL), 1),
    "of an accumulator": telemetry(adam_jax.accumulate(adamw(1e-2), 2), 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("tx", MIXED.values(), ids=list(MIXED))
def test_gradients_of_each_device_onto_a_state_of_all(tx):
    """From a common start, the devices diverge as with `shard_map` alone."""
    params = parameters()
    grads = jax.tree.map(lambda g: jnp.stack([g * (i + 1) for i in range(8)]), gradients(params))

    def train(grads, state, params):
        grads = jax.tree.map(lambda g: g[0], grads)
        moved, _ = stepped(tx, grads, state, params)
        return jax.tree.map(lambda x: x[None], moved)

    mapped = jax.shard_map(
        train, mesh=mesh_of_eight(), in_specs=(P("data"), P(), P()), out_specs=P("data")
    )
    moved = jax.jit(mapped)(grads, tx.init(params), params)
    alone = jax.jit(lambda *args: stepped(tx, *args)[0])
    for i in (0, 7):
        own = jax.tree.map(lambda g, i=i: g[i], grads)
        reference = alone(own, tx.init(params), params)
        for name in params:
            np.testing.assert_allclose(moved[name][i], reference[name], rtol=1e-5, atol=1e-6)
