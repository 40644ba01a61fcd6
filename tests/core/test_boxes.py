"""Parameters in Flax's metadata boxes: the state has their axis names, in every storage form."""

import functools
import itertools
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.linen import spmd
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from tests.catalogue import few
from tests.catalogue.training import trained

STORED = {
    "int8": dict(mu_dtype=jnp.int8, nu_dtype=jnp.int8),
    "bfloat16": dict(mu_dtype=jnp.bfloat16, nu_dtype=adam_jax.stochastic(jnp.bfloat16)),
    "factored": dict(mu_dtype=jnp.int8, nu_dtype=adam_jax.Factored()),
    "float32": {},
}
NEWER = tuple(map(int, version("flax").split(".")[:3])) >= (0, 12, 8)
newer_names = pytest.mark.skipif(not NEWER, reason="this Flax has other names for metadata")
every_storage = few("storage", STORED, ["int8"])


def mesh_of(*sizes: int, kind: AxisType = AxisType.Auto) -> Mesh:
    names = ("data", "model")[: len(sizes)]
    return jax.make_mesh(sizes, names, axis_types=(kind,) * len(sizes))


class Block(nnx.Module):
    """A transformer block with its kernels sharded over `data`: FSDP by metadata."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal()
        along = functools.partial(nnx.with_partitioning, init)
        self.attention = nnx.MultiHeadAttention(
            8, width, kernel_init=along((None, "data", None)), rngs=rngs, decode=False
        )
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.wide = nnx.Linear(width, 4 * width, kernel_init=along((None, "data")), rngs=rngs)
        self.narrow = nnx.Linear(4 * width, width, kernel_init=along(("data", None)), rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.narrow(nnx.gelu(self.wide(x)))


def share(arrays) -> float:
    """The largest share of the bytes of some arrays on one device."""
    of_device: dict[int, int] = {}
    for x in arrays:
        for shard in x.addressable_shards:
            of_device[shard.device.id] = of_device.get(shard.device.id, 0) + shard.data.nbytes
    return max(of_device.values()) / sum(x.nbytes for x in arrays)


def large(state):
    """The arrays that belong to kernels, with their scales."""
    rows = jax.tree.leaves_with_path(state)
    return [x for keys, x in rows if "kernel" in jax.tree_util.keystr(keys)]


@nnx.jit
def train(model, optimizer, x):
    grads = nnx.grad(lambda model: jnp.mean((model(x) - 1) ** 2))(model)
    optimizer.update(model, grads)


@every_storage
def test_an_nnx_state_is_placed_by_metadata_alone(storage):
    stored = STORED[storage]
    with jax.set_mesh(mesh_of(8)):

        @nnx.jit
        def create():
            model = Block(256, nnx.Rngs(0))
            optimizer = nnx.Optimizer(model, adam_jax.adamw(1e-3, **stored), wrt=nnx.Param)
            state = nnx.state((model, optimizer))
            placed = jax.lax.with_sharding_constraint(state, nnx.get_partition_spec(state))
            nnx.update((model, optimizer), placed)
            return model, optimizer

        model, optimizer = create()
        before = nnx.state(optimizer)
        assert share(large(before)) <= 1.05 / 8
        for _ in range(2):
            train(model, optimizer, jnp.ones((8, 4, 256)))
        after = nnx.state(optimizer)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert share(large(after)) <= 1.05 / 8


@newer_names
def test_codes_and_scales_are_variables_with_the_names_of_the_parameter():
    with jax.set_mesh(mesh_of(8)):
        params = nnx.state(Block(256, nnx.Rngs(0)), nnx.Param)
        tx = adam_jax.adamw(1e-3, mu_dtype=jnp.int8, nu_dtype=adam_jax.Factored())
        specs = nnx.get_partition_spec(tx.init(params))
    wide, narrow = specs[0].mu["wide"]["kernel"], specs[0].mu["narrow"]["kernel"]
    assert wide.codes.get_value() == wide.scale.get_value() == P(None, "data")
    assert narrow.codes.get_value() == narrow.scale.get_value() == P("data", None)
    factors = specs[0].nu["wide"]["kernel"]
    assert {factors.rows.get_value(), factors.columns.get_value()} == {P(None), P("data")}


@newer_names
def test_the_state_alone_is_split_by_metadata_of_its_own():
    """ZeRO-1: `optimizer_sharding` shards the state; the parameter is replicated."""
    with jax.set_mesh(mesh_of(8)):
        metadata = {"optimizer_sharding": ("data", None)}
        linear = nnx.Linear(256, 512, rngs=nnx.Rngs(0), kernel_metadata=metadata)
        tx = adam_jax.adamw(1e-3, mu_dtype=jnp.int8, nu_dtype=jnp.int8)
        optimizer = nnx.Optimizer(linear, tx, wrt=nnx.Param)
        assert share(large(nnx.state(optimizer))) == 1 / 8
        assert share([linear.kernel.get_value()]) == 1
        train(linear, optimizer, jnp.ones((8, 256)))
        assert share(large(nnx.state(optimizer))) == 1 / 8


class Wide(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.initializers.lecun_normal()
        x = nn.Dense(512, kernel_init=nn.with_logical_partitioning(init, ("in", "wide")))(x)
        return nn.Dense(256, kernel_init=nn.with_logical_partitioning(init, ("wide", "in")))(x)


@every_storage
def test_a_linen_state_is_placed_by_metadata_alone(storage):
    stored = STORED[storage]
    mesh, model, rules = mesh_of(8), Wide(), (("wide", "data"), ("in", None))
    tx = adam_jax.adamw(1e-3, **stored)

    def init(key):
        params = model.init(key, jnp.ones((1, 256)))["params"]
        return params, tx.init(params)

    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        abstract = jax.eval_shape(init, jax.random.key(0))
        shardings = spmd.logical_to_mesh_sharding(nn.get_partition_spec(abstract), mesh, rules)
        state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
        assert jax.tree.structure(state) == jax.tree.structure(abstract)
        params, state = nn.meta.unbox(state)
        # With `Factored`, the means over the sharded axis are replicated.
        assert share(large(state)) <= (1.06 if "Factored" in repr(stored) else 1.05) / 8
        step = jax.jit(functools.partial(adam_jax.step, tx))
        _, after = step(params, state, params)
    assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, state)


@every_storage
@pytest.mark.parametrize("wrapped", [False, True])
def test_steps_in_boxes_are_those_of_bare_arrays(storage, wrapped):
    stored = STORED[storage]
    params = nnx.state(nnx.Linear(64, 128, rngs=nnx.Rngs(0)), nnx.Param)
    tx = adam_jax.adamw(1e-2, **stored)
    if wrapped:
        tx = adam_jax.chain(
            adam_jax.accumulate(adam_jax.master_residual(tx), 2, dtype=jnp.int8),
            adam_jax.ema_params(0.9, dtype=jnp.int8),
        )
        params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    _, state = moved = trained(tx, params, steps=4)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))
    bare = trained(tx, nnx.to_pure_dict(params), steps=4)
    jax.tree.map(np.testing.assert_array_equal, *map(jax.tree.leaves, (moved, bare)))


def test_a_converted_state_keeps_its_boxes():
    params = nnx.state(nnx.Linear(64, 128, rngs=nnx.Rngs(0)), nnx.Param)
    forms = dict(mu_dtype=jnp.int8, nu_dtype=jnp.int8)
    plain, coded = adam_jax.adamw(1e-2), adam_jax.adamw(1e-2, **forms)
    converted = adam_jax.convert_state(plain.init(params), **forms)
    assert jax.tree.structure(converted) == jax.tree.structure(coded.init(params))
    back = adam_jax.convert_state(converted, mu_dtype=jnp.float32, nu_dtype=jnp.float32)
    assert jax.tree.structure(back) == jax.tree.structure(plain.init(params))
    state = optax.adamw(1e-2).init(params)
    ours = adam_jax.convert.from_optax(state, params, coded)
    assert jax.tree.structure(ours) == jax.tree.structure(coded.init(params))


NAMES = "out_sharding" if NEWER else "sharding"
SIZES = (1, 24, 64, 96, 320, 512, 768, 1024, 1376, 4096)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "kind", "named"),
    [
        ((8,), AxisType.Auto, True),
        ((8,), AxisType.Explicit, False),
        ((2, 4), AxisType.Auto, False),
        ((2, 4), AxisType.Explicit, True),
    ],
)
def test_the_abstract_state_is_that_of_init(sizes, kind, named):
    """50 shapes, sharded as far as they are divisible."""
    mesh = mesh_of(*sizes, kind=kind)
    shapes = [*itertools.product((16, 320, 1376), SIZES), *((8, 40, n) for n in SIZES)]
    shapes += [(n,) for n in SIZES]
    assert len(shapes) == 50
    params = {}
    for shape in shapes:
        names = [None] * len(shape)
        for axis, size in zip(reversed(mesh.axis_names), sizes[::-1], strict=True):
            i = next((i for i in reversed(range(len(shape))) if names[i] is None), None)
            if i is not None and shape[i] % size == 0:
                names[i] = axis
        x = jax.device_put(jnp.ones(shape), NamedSharding(mesh, P(*names)))
        with jax.set_mesh(mesh):
            params[str(shape)] = nnx.Param(x, **{NAMES: tuple(names)}) if named else x
    tx = adam_jax.adamw(1e-3, mu_dtype=jnp.int8, nu_dtype=jnp.int4)
    few = dict(list(params.items())[::3])  # Without jit, each shape compiles programs of its own.
    for init, chosen in ((jax.jit(tx.init), params), (tx.init, few)):
        with jax.set_mesh(mesh):
            abstract, real = jax.eval_shape(tx.init, chosen), init(chosen)
        assert jax.tree.map(jnp.shape, real) == jax.tree.map(jnp.shape, abstract)


def test_blocks_do_not_depend_on_where_an_array_lies_by_chance():
    """Under jit, automatic axes do not show the placement, so the state would differ there."""
    params = jax.device_put(jnp.ones((16, 512)), NamedSharding(mesh_of(8), P(None, "data")))
    init = adam_jax.scale_by_adam(nu_dtype=jnp.int8).init
    nu = init(params).nu
    assert nu.codes.sharding.spec == P(None, "data") and nu.format.block == 128
    assert jax.tree.structure(init(params)) == jax.tree.structure(jax.eval_shape(init, params))


@pytest.mark.parametrize("storage", [*STORED, "block means", "Adam-mini"])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_state_made_before_its_mesh_is_known_can_be_placed(storage, axis):
    """As trainers make it, by eval_shape; scales and means need not be divisible where p is."""
    stored = STORED | {
        "block means": dict(mu_dtype=jnp.int8, nu_dtype=adam_jax.BlockMeans(axis)),
        "Adam-mini": dict(mu_dtype=jnp.int8, nu_dtype=adam_jax.AdamMini()),
    }
    names = tuple("data" if i == axis else None for i in range(2))
    shapes = {"kernel": (128, 32), "query": (128, 384), "out": (64, 1024), "wide": (384, 4096)}
    params = {k: nn.Partitioned(jnp.ones(shape), names) for k, shape in shapes.items()}
    tx = adam_jax.adamw(1e-3, **stored[storage])
    abstract = jax.eval_shape(tx.init, params)
    specs = nn.get_partition_spec(abstract)
    mesh = mesh_of(8)
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P)
    )
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    codes = nn.meta.unbox(state[0].mu["wide"])
    codes = codes.codes if storage != "bfloat16" and storage != "float32" else codes
    assert codes.sharding.spec == P(*names)
    grads, state = nn.meta.unbox((params, state))
    moved, _ = jax.jit(tx.step)(grads, state, grads)
    assert all(bool(jnp.all(p < 1)) for p in jax.tree.leaves(moved))


@every_storage
def test_a_box_without_elements_on_a_mesh(storage):
    with jax.set_mesh(mesh_of(8)):
        params = {"w": nn.Partitioned(jnp.ones((0, 4)), names=(None, None))}
        tx = adam_jax.adamw(1e-2, **STORED[storage])
        start = params, tx.init(params)
        moved = adam_jax.step(tx, params, start[1], params)
        assert jax.tree.map(jnp.shape, moved) == jax.tree.map(jnp.shape, start)
