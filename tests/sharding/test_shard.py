"""The state sharded over devices: the same steps, fewer bytes on each device."""

import math
import re

import chex
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax import sharding
from tests.catalogue.sharded import (
    TRANSFORMATIONS,
    assert_placed,
    every_transformation,
    loss,
    on,
    on_alternating_axes,
    parameters,
    trained,
)

pytestmark = pytest.mark.usefixtures("standard_promotion")
COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def bytes_on_a_device(tree):
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


def sent(program):
    """By kind of collective, the number of output elements, or of inputs for a reduce-scatter."""
    counts = {}
    for shapes, kind in COLLECTIVE.findall(program):
        sizes = [math.prod(map(int, s.split(","))) for s in re.findall(r"\[([\d,]+)\]", shapes)]
        counts[kind] = counts.get(kind, 0) + sum(sizes)
    return counts


def batch(mesh):
    return on(mesh, jnp.ones((64, 256)), "data")


# Each transformation on one kind of axes, and two on both.
ON_AXES = [*on_alternating_axes(TRANSFORMATIONS)]
ON_AXES += [("adamw", AxisType.Explicit), ("8 bits", AxisType.Auto)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mesh"), ON_AXES, indirect=["mesh"], ids=str)
def test_as_data_parallel_in_an_eighth_of_the_bytes(name, mesh):
    tx, dtype = TRANSFORMATIONS[name], jnp.bfloat16 if "residual" in name else jnp.float32
    params = on(mesh, parameters(dtype))
    x = on(mesh, jax.random.normal(jax.random.key(2), (64, 256), dtype), "data")
    whole, whole_state, _ = trained(tx, params, x)
    split, state, program = trained(sharding.shard_state(tx, mesh), params, x)
    # The sums in LAMB's norms and in means are added in another order.
    rtol = 1e-5 if name in ("lamb", "factored", "block means") else 1e-6
    chex.assert_trees_all_close(split, whole, rtol=rtol, atol=rtol)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(split))
    assert jax.tree.structure(state) == jax.tree.structure(whole_state)
    assert bytes_on_a_device(state) <= (1 / 8 + 0.05) * bytes_on_a_device(whole_state)
    # XLA:CPU all-reduces the gradients; most of the other traffic is the new parameters.
    size = sum(p.size for p in jax.tree.leaves(params))
    assert sent(program)["all-gather"] <= 1.01 * size
    assert not {"all-to-all", "collective-permute"} & set(sent(program))


def test_update_does_as_step(mesh):
    tx = sharding.shard_state(adam_jax.adamw(1e-2), mesh)
    params, x = on(mesh, parameters()), batch(mesh)
    by_step, state, _ = trained(tx, params, x)
    by_update, other, _ = trained(tx, params, x, through_step=False)
    chex.assert_trees_all_close(by_step, by_update, rtol=1e-6, atol=1e-6)
    shardings = jax.tree.map(lambda x: x.sharding.spec, (state, other))
    assert shardings[0] == shardings[1]


@every_transformation
def test_the_state_lies_where_state_shardings_says(tx, mesh):
    params = on(mesh, parameters())
    told = sharding.state_shardings(tx, params, mesh)
    shapes = jax.eval_shape(lambda: params)
    assert told == sharding.state_shardings(sharding.shard_state(tx, mesh), shapes, mesh)
    sharded = sharding.shard_state(tx, mesh)
    for init in (sharded.init, jax.jit(sharded.init)):
        state = init(params)
        assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))
        assert_placed(state, told)


def test_parameters_that_a_loop_carries_stay_whole(mesh):
    params = on(mesh, parameters())
    tx = sharding.shard_state(adam_jax.adamw(1e-2), mesh)
    x = batch(mesh)

    def body(carry, _):
        params, state = carry
        return adam_jax.step(tx, jax.grad(loss)(params, x), state, params), None

    carry = params, tx.init(params)
    params, state = jax.jit(lambda c: jax.lax.scan(body, c, None, length=3)[0])(carry)
    assert all(p.sharding.is_fully_replicated for p in jax.tree.leaves(params))
    assert state[0].mu["in"].addressable_shards[0].data.shape == (32, 512)


LAYOUTS = {
    "nothing said": ((64, 256), P(), P("data", None)),
    "the other dimension is taken": ((64, 256), P("model", None), P("model", "data")),
    "the first dimension is too small": ((2, 4096), P(), P(None, "data")),
    "one dimension, taken": ((8192,), P("model"), P(("model", "data"))),
    "small": ((64, 8), P(), P()),
    "split over it already": ((64, 256), P(None, "data"), P(None, "data")),
    "no dimension divides": ((63, 131), P(), P()),
    "a number": ((), P(), P()),
}


@pytest.mark.parametrize(("shape", "spec", "expected"), LAYOUTS.values(), ids=list(LAYOUTS))
def test_beside_how_the_parameter_is_partitioned(shape, spec, expected):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    param = jax.device_put(jnp.ones(shape), NamedSharding(mesh, spec))
    tx = sharding.shard_state(adam_jax.adam(1e-3), mesh, specs={"w": spec})
    state = tx.init({"w": param})
    mu = state[0].mu["w"]
    assert mu.sharding.is_equivalent_to(NamedSharding(mesh, expected), len(shape))

    @jax.jit
    def train_step(params, state):
        return adam_jax.step(tx, jax.tree.map(jnp.ones_like, params), state, params)

    params, state = train_step({"w": param}, state)
    assert params["w"].sharding.is_equivalent_to(param.sharding, len(shape))
    assert state[0].nu["w"].sharding.is_equivalent_to(mu.sharding, len(shape))


def test_over_two_axes_of_the_mesh():
    mesh = jax.make_mesh((2, 4), ("replica", "data"), axis_types=(AxisType.Auto,) * 2)
    params = {"w": on(mesh, jnp.ones((64, 256)))}
    state = sharding.shard_state(adam_jax.adam(1e-3), mesh, ("replica", "data")).init(params)
    assert state[0].mu["w"].sharding.spec == P(("replica", "data"), None)


def test_no_device_ever_holds_the_whole_state():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    params = {"w": on(mesh, jnp.ones((1024, 1024)))}
    tx = sharding.shard_state(adam_jax.adam(1e-3), mesh)
    assert tx.init(params)[0].mu["w"].addressable_shards[0].data.shape == (128, 1024)
    # `init` runs this program outside of jit.
    memory = jax.jit(tx.init).lower(params).compile().memory_analysis()
    parts = 2 * params["w"].nbytes / 8
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 1.01 * parts


def test_what_does_not_fit_is_said():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    adam = adam_jax.adam(1e-3)
    with pytest.raises(ValueError, match=r"axis must be of the mesh.*'batch'.*axis='data'"):
        sharding.shard_state(adam, mesh, "batch")
    with pytest.raises(ValueError, match=r"mesh must be a jax.sharding.Mesh.*make_mesh"):
        sharding.shard_state(adam, ("data",))
    with pytest.raises(ValueError, match=r"tx must be an Optax transformation"):
        sharding.shard_state("adam", mesh)
    with pytest.raises(ValueError, match=r"min_size must be"):
        sharding.shard_state(adam, mesh, min_size=-1)
    with pytest.raises(ValueError, match=r"must not be offloaded.*offload\(shard_state\(tx"):
        sharding.shard_state(sharding.offload(adam), mesh)
    params = {"w": jnp.ones((64, 256))}
    began = sharding.shard_state(adam, mesh.abstract_mesh)
    state = sharding.shard_state(adam, mesh).init(params)
    for call in (lambda: began.init(params), lambda: began.update(params, state, params)):
        with pytest.raises(ValueError, match=r"mesh must have devices, got an AbstractMesh"):
            call()
    params = {"w": on(mesh, jnp.ones((64, 256)), None, "model")}
    with pytest.raises(ValueError, match=r"'w', which is .*specs=jax.tree.map"):
        sharding.shard_state(adam, mesh).init(params)
    with pytest.raises(ValueError, match=r"specs must be a tree of PartitionSpecs"):
        sharding.shard_state(adam, mesh, specs={"v": P(), "w": P()}).init(params)


def test_equal_ones_trace_once():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    again = Mesh(mesh.devices, mesh.axis_names, axis_types=mesh.axis_types)
    ours = sharding.shard_state(adam_jax.adam(1e-3), mesh, specs={"w": P()})
    assert ours == sharding.shard_state(adam_jax.adam(1e-3), again, specs={"w": P()})
    assert ours != sharding.shard_state(adam_jax.adam(1e-3), mesh)


def test_traced_numbers_and_equal_ones_share_no_shardings():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    shapes = jax.eval_shape(parameters)
    first = sharding.state_shardings(adam_jax.adamw(1e-2), shapes, mesh)
    first[0].mu.clear()  # A caller's changes to the tree do not affect later calls.
    told = sharding.state_shardings(adam_jax.adamw(1e-2), shapes, mesh)
    assert set(told[0].mu) == {"in", "out", "bias"}

    @jax.jit
    def state_after(learning_rate, params):
        tx = sharding.shard_state(adam_jax.adamw(learning_rate), mesh)
        return adam_jax.step(tx, params, tx.init(params), params)[1]

    params = on(mesh, parameters())
    assert_placed(state_after(1e-2, params)[0].nu, told[0].nu)
