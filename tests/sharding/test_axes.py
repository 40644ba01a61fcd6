"""A leaf sharded along any of its axes, stacked or not: the same steps, and no leaf sent."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import adam_jax
from benchmarks.tpu.machine import tpus
from tests.catalogue.sharded import TRANSFORMATIONS

SHAPE = (8, 16, 1024)  # A part along the last axis holds a block of 128.
COLLECTIVE = r"= (\S+|\(.*?\)) (?:all-|collective-|reduce-)[\w-]+\("
OURS = {k: tx for k, tx in TRANSFORMATIONS.items() if isinstance(tx, adam_jax.Transformation)}
OURS |= {
    "cautious": adam_jax.cautious(adam_jax.adamw(1e-2)),
    "means of rows": adam_jax.adamw(1e-2, nu_dtype=adam_jax.BlockMeans(-1)),
    "one mean": adam_jax.adamw(1e-2, nu_dtype=adam_jax.BlockMeans(None)),
    "telemetry": adam_jax.telemetry(adam_jax.adamw(1e-2), 1),
}


def most_sent(program):
    """The most elements that a collective of a compiled program returns."""
    sent = re.findall(COLLECTIVE, program.as_text())
    sizes = [re.findall(r"\d+", size) for x in sent for size in re.findall(r"\[(.*?)\]", x)]
    return max([math.prod(map(int, x)) for x in sizes] or [0])


def stepped(tx, params, where):
    """Parameters and state after 3 steps, and the most that a collective of a step returns."""
    grads = jax.random.normal(jax.random.key(1), SHAPE).astype(params.dtype)
    params, grads = ({"w": jax.device_put(x, where)} for x in (params, grads))
    state = start = tx.init(params)
    step = jax.jit(tx.step)
    sent = most_sent(step.lower(grads, state, params).compile())
    for _ in range(3):
        params, state = step(grads, state, params)
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(start), strict=True):
        assert x.ndim == 0 or x.sharding.is_equivalent_to(y.sharding, x.ndim)
    return np.asarray(params["w"], np.float32), state, sent


@pytest.mark.slow
@pytest.mark.parametrize("layers", [False, True], ids=["a leaf", "layers"])
@pytest.mark.parametrize("name", OURS)
def test_along_each_axis(name, layers, standard_promotion):
    tx = OURS[name]
    tx = adam_jax.with_layers(tx, "w") if layers else tx
    params = jax.random.normal(jax.random.key(0), SHAPE)
    params = params.astype(jnp.bfloat16) if "residual" in name else params
    whole, expected, _ = stepped(tx, params, None)
    for kind in (AxisType.Explicit, AxisType.Auto):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        for axis in range(3):
            spec = PartitionSpec(*[None] * axis, "data")
            parts, state, sent = stepped(tx, params, NamedSharding(mesh, spec))
            np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-5)
            if name == "telemetry":
                found, group = (adam_jax.measured(x)["groups"]["w"] for x in (state, expected))
                assert found == pytest.approx(group, rel=1e-4)
            most = 64 if name == "telemetry" else 16  # Means over the second axis.
            if kind == AxisType.Auto and layers and name != "telemetry":
                # Where no type shows the sharding, a CPU sends layers for a norm, whose bits are
                # those of the layer alone; at most one where devices have whole layers.
                most = 8 if axis == 0 else 1
            assert sent <= math.prod(SHAPE) / most, axis


@pytest.mark.usefixtures("tpu_compiler")
@pytest.mark.parametrize("name", OURS)
def test_tpus_send_no_layers_on_automatic_axes(name):
    tx = adam_jax.with_layers(OURS[name], "w")
    mesh = Mesh(np.array(tpus("v5e:2x4")), ("data",))
    dtype = jnp.bfloat16 if "residual" in name else jnp.float32
    for axis in range(3):

        def like(x, axis=axis):
            whole = PartitionSpec(*[None] * axis, "data")
            split = x.ndim == 3 and x.shape[axis] % 8 == 0
            where = NamedSharding(mesh, whole if split else PartitionSpec())
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

        params = {"w": like(jax.ShapeDtypeStruct(SHAPE, dtype))}
        state = jax.tree.map(like, jax.eval_shape(tx.init, params))
        program = jax.jit(tx.step).lower(params, state, params).compile()
        assert most_sent(program) <= math.prod(SHAPE) / 16, axis


@pytest.mark.parametrize("name", ["adamw", "factored", "block means", "lamb"])
def test_each_device_steps_its_own_layers_in_shard_map(name):
    tx = adam_jax.with_layers(OURS[name], "w")
    params, grads = ({"w": jax.random.normal(jax.random.key(i), SHAPE)} for i in range(2))

    def steps(grads, params):
        state = tx.init(params)
        for _ in range(3):
            params, state = tx.step(grads, state, params)
        return params

    mesh, parts = jax.make_mesh((8,), ("data",)), PartitionSpec("data")
    mapped = jax.jit(jax.shard_map(steps, mesh=mesh, in_specs=parts, out_specs=parts))
    placed = jax.device_put((grads, params), NamedSharding(mesh, parts))
    parts, whole = mapped(*placed)["w"], steps(grads, params)["w"]
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-7)
    assert most_sent(mapped.lower(*placed).compile()) == 0
