"""A state sharded over 8 devices is restored on 4, from there on 1, and on 8 again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh

import adam_jax
from adam_jax import sharding
from adam_jax.inspect import check_state
from tests.catalogue.runs import assert_same_bits
from tests.catalogue.sharded import TRANSFORMATIONS, on, parameters

pytestmark = pytest.mark.bits


def mesh_of(count, kind=AxisType.Auto):
    return Mesh(np.array(jax.devices()[:count]), ("data",), axis_types=(kind,))


@functools.cache
def step_of(tx):
    """A compiled step, shared by equal transformations; compiled once per number of devices."""
    return jax.jit(functools.partial(adam_jax.step, tx))


def stepped(tx, params, state, steps):
    """Gradients of a loss would be sums, which other devices add in another order."""
    for i in steps:
        grads = jax.tree.map(lambda p, i=i: (p + 1) * (1 + i), params)
        params, state = step_of(tx)(grads, state, params)
    return params, state


def int4_as_int8(tree):
    """Orbax does not support unsigned 4-bit integers."""
    return jax.tree.map(lambda x: x.astype(jnp.int8) if x.dtype == jnp.uint4 else x, tree)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "8 bits", "4 bits, residual"])
def test_from_8_devices_onto_4_and_1_and_8_bit_for_bit(name, tmp_path):
    tx, dtype = TRANSFORMATIONS[name], jnp.bfloat16 if "residual" in name else jnp.float32
    whole = stepped(tx, parameters(dtype), tx.init(parameters(dtype)), range(6))

    params = on(mesh_of(8), parameters(dtype))
    on_8 = sharding.shard_state(tx, mesh_of(8))
    params, state = stepped(on_8, params, on_8.init(params), range(3))
    shapes = jax.eval_shape(lambda: (params, state))

    for t, count in enumerate((4, 1, 8), 3):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / f"{t}", (params, int4_as_int8(state)))
        mesh = mesh_of(count)
        like = on(mesh, parameters(dtype))
        places = jax.tree.map(lambda x: x.sharding, like), sharding.state_shardings(tx, like, mesh)
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            *(jax.eval_shape(int4_as_int8, shapes), places),
        )
        with ocp.StandardCheckpointer() as checkpointer:
            params, state = checkpointer.restore(tmp_path / f"{t}", target)
        state = jax.tree.map(lambda x, s: x.astype(s.dtype), state, shapes[1])
        on_these = sharding.shard_state(tx, mesh)
        assert check_state(state, params, on_these, t) == ()
        params, state = stepped(on_these, params, state, [t])
    assert_same_bits((params, state), whole)


# Only the last axis divides: codes in blocks of 128 or 64, and float32 where no block fits.
LAST_AXES = {"a": (100, 512), "b": (301, 64)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize(("old", "new"), [(4, 8), (8, 4), (8, 1), (1, 8)])
def test_blocks_of_the_first_mesh_are_kept_on_another(old, new, kind, tmp_path):
    tx = TRANSFORMATIONS["8 bits"]
    shapes = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in LAST_AXES.items()}
    params = on(mesh_of(old, kind), {name: jnp.ones(shape) for name, shape in LAST_AXES.items()})
    on_old, mesh = sharding.shard_state(tx, mesh_of(old, kind)), mesh_of(new, kind)
    params, state = stepped(on_old, params, on_old.init(params), range(3))
    whole = stepped(on_old, params, state, range(3, 5))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "3", state)

    params, on_new = on(mesh, params), sharding.shard_state(tx, mesh)
    began = sharding.shard_state(tx, AbstractMesh((old,), ("data",)))

    def restored(tx):
        places = sharding.state_shardings(tx, shapes, mesh)
        like = jax.eval_shape(tx.init, shapes)
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(
                tmp_path / "3", jax.tree.map(lambda x, s: x.update(sharding=s), like, places)
            )

    with pytest.raises(ValueError, match="tree structures do not match"):
        restored(sharding.shard_state(tx, mesh_of(new)))
    again = restored(began)
    assert_same_bits(again, state)
    assert check_state(again, shapes, began, 3) == ()
    assert_same_bits(stepped(on_new, params, again, range(3, 5)), whole)
