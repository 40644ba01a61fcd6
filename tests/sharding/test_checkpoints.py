"""A state sharded over 8 devices is restored on any number of devices, and in another form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adam_jax
from adam_jax import sharding

pytestmark = pytest.mark.bits
CODES = {"mu_dtype": jnp.int8, "nu_dtype": jnp.int8}
MEMBERS = {
    "float32": (jnp.float32, adam_jax.adamw(1e-2)),
    "8 bits": (jnp.float32, adam_jax.adamw(1e-2, **CODES)),
    "4 bits, residual": (
        jnp.bfloat16,
        adam_jax.master_residual(adam_jax.adamw(1e-2, mu_dtype=jnp.int4, nu_dtype=jnp.int4)),
    ),
}


def on(count):
    return Mesh(np.array(jax.devices()[:count]), ("data",))


def copied(tree, count):
    return jax.device_put(tree, NamedSharding(on(count), PartitionSpec()))


def parameters(dtype):
    shapes = {"kernel": (128, 256), "embedding": (512, 128), "bias": (256,)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    draw = zip(keys, shapes.items(), strict=True)
    return {name: jax.random.normal(key, shape, dtype) for key, (name, shape) in draw}


def gradients(params, step):
    """The same for any number of devices; sums over batches would be added in another order."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(step), len(leaves))
    drawn = [jax.random.normal(k, p.shape, p.dtype) for k, p in zip(keys, leaves, strict=True)]
    return treedef.unflatten(drawn)


@functools.cache
def step_of(tx):
    """A compiled step, shared by equal transformations; compiled once per number of devices."""
    return jax.jit(functools.partial(adam_jax.step, tx))


def stepped(tx, params, state, steps):
    step = step_of(tx)
    for i in steps:
        grads = jax.tree.map(
            lambda g, p: jax.device_put(g, p.sharding), gradients(params, i), params
        )
        params, state = step(grads, state, params)
    return params, state


def assert_equal(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def saved(tree, folder):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "checkpoint", tree)


def restored(like, shardings, folder):
    shapes = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, shardings
    )
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder / "checkpoint", shapes)


def int4_as_int8(tree):
    """Orbax does not support unsigned 4-bit integers."""
    return jax.tree.map(lambda x: x.astype(jnp.int8) if x.dtype == jnp.uint4 else x, tree)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEMBERS)
def test_from_8_devices_onto_others_bit_for_bit(name, tmp_path):
    dtype, tx = MEMBERS[name]
    whole = stepped(tx, parameters(dtype), tx.init(parameters(dtype)), range(6))

    params = copied(parameters(dtype), 8)
    on_8 = sharding.shard_state(tx, on(8))
    params, state = stepped(on_8, params, on_8.init(params), range(3))
    saved((params, int4_as_int8(state)), tmp_path)

    shapes = jax.eval_shape(lambda: (parameters(dtype), tx.init(parameters(dtype))))
    for count in (1, 4, 8):
        like = copied(parameters(dtype), count)
        split = sharding.state_shardings(tx, like, on(count))
        places = jax.tree.map(lambda x: x.sharding, like), split
        params, state = restored(int4_as_int8_shapes(shapes), places, tmp_path)
        state = jax.tree.map(lambda x, s: x.astype(s.dtype), state, shapes[1])
        ours = stepped(sharding.shard_state(tx, on(count)), params, state, range(3, 6))
        assert_equal(ours, whole)


def int4_as_int8_shapes(shapes):
    return jax.eval_shape(int4_as_int8, shapes)


@pytest.mark.slow
def test_float32_moments_go_on_in_8_bits_and_split(tmp_path):
    params = parameters(jnp.float32)
    member, codes = adam_jax.adamw(1e-2), adam_jax.adamw(1e-2, **CODES)
    params, state = stepped(member, params, member.init(params), range(3))
    converted = adam_jax.convert_state(state, **CODES)
    expected = stepped(codes, params, converted, range(3, 6))
    saved(converted, tmp_path)
    places = sharding.state_shardings(codes, params, on(8))
    state = restored(jax.eval_shape(lambda: converted), places, tmp_path)
    ours = stepped(sharding.shard_state(codes, on(8)), copied(params, 8), state, range(3, 6))
    assert_equal(ours, expected)
