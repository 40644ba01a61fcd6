"""A sharded step continues from a state of any storage form and origin."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax import adamw, convert_state, sharding, stochastic
from tests.catalogue.sharded import on_alternating_axes

pytestmark = pytest.mark.usefixtures("standard_promotion")
CODES = {"mu_dtype": jnp.int8, "nu_dtype": jnp.int8}
FORMS = {
    "8 bits": CODES,
    "4 bits": {"mu_dtype": jnp.int4, "nu_dtype": jnp.int4},
    "stochastic": {"mu_dtype": stochastic(jnp.bfloat16), "nu_dtype": stochastic(jnp.int8)},
    "factored": {"nu_dtype": adam_jax.Factored()},
    "block means": {"nu_dtype": adam_jax.BlockMeans(0)},
    "float32": {"mu_dtype": jnp.float32, "nu_dtype": jnp.float32},
}
SHAPES = {"in": (256, 512), "out": (512, 64), "bias": (64,)}
# 8 divides only the last axis. Sharded along it, blocks have 64 elements, or there are none.
SMALLER_BLOCKS = [(100, 512), (1257, 64)]


def drawn(shapes, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    pairs = zip(keys, shapes.items(), strict=True)
    return {name: jax.random.normal(key, shape) for key, (name, shape) in pairs}


def copied(tree, mesh):
    return jax.device_put(tree, NamedSharding(mesh, P()))


def stepped(tx, grads, state, params):
    """Two steps; the second starts from the first one's placement of the state."""
    step = jax.jit(lambda *args: adam_jax.step(tx, *args))
    for _ in range(2):
        params, state = step(grads, state, params)
    return params, state


def assert_split(state, tx, params, mesh):
    """The placement equals `state_shardings` of a transformation with this storage."""
    told = sharding.state_shardings(tx, params, mesh)
    for x, where in zip(jax.tree.leaves(state), jax.tree.leaves(told), strict=True):
        assert x.sharding.is_equivalent_to(where, x.ndim)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mesh"), on_alternating_axes(FORMS), indirect=["mesh"], ids=str)
def test_a_converted_state(name, mesh):
    params, grads = (copied(drawn(SHAPES, seed), mesh) for seed in range(2))
    tx = sharding.shard_state(adamw(1e-2), mesh)
    # From codes to float32; the other forms convert the other way.
    member = adamw(1e-2, **(CODES if name == "float32" else {}))
    whole = convert_state(member.init(params), **FORMS[name])
    expected, _ = stepped(adamw(1e-2), grads, whole, params)
    init = sharding.shard_state(member, mesh).init(params)
    for state in (convert_state(init, **FORMS[name]), whole):
        moved, state = stepped(tx, grads, state, params)
        assert jax.tree.structure(state) == jax.tree.structure(whole)
        assert_split(state, adamw(1e-2, **FORMS[name]), params, mesh)
        for key in SHAPES:
            np.testing.assert_allclose(moved[key], expected[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("member", [adamw(1e-2), optax.adamw(1e-2)], ids=["float32", "optax"])
def test_a_state_of_float32_goes_on_where_codes_were_asked_for(member, mesh):
    params, grads = (copied(drawn(SHAPES, seed), mesh) for seed in range(2))
    tx = sharding.shard_state(adamw(1e-2, **CODES), mesh)
    _, state = stepped(tx, grads, member.init(params), params)
    assert_split(state, member, params, mesh)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SMALLER_BLOCKS, ids=str)
@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
def test_the_codes_of_one_device_on_eight(shape, jit, mesh):
    """Devices would not hold whole blocks of 128: the codes are not sharded, nor is their leaf."""
    params, grads = (drawn({"w": shape}, seed) for seed in range(2))
    member = adamw(1e-2, **CODES)
    expected, one = stepped(member, grads, member.init(params), params)
    tx = sharding.shard_state(member, mesh)
    args = copied(grads, mesh), member.init(params), copied(params, mesh)
    if jit:
        moved, state = stepped(tx, *args)
    else:
        grads, state, params = args
        params, state = adam_jax.step(tx, grads, jax.device_put(state, jax.devices()[0]), params)
        moved, state = adam_jax.step(tx, grads, state, params)
    assert jax.tree.structure(state) == jax.tree.structure(one)
    assert state[0].mu["w"].codes.sharding.is_fully_replicated
    np.testing.assert_allclose(moved["w"], expected["w"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [*SMALLER_BLOCKS, (256, 512), (4, 4096)], ids=str)
def test_init_stores_the_same_inside_jit(shape, mesh):
    params = copied(drawn({"w": shape, "b": (16,)}), mesh)
    tx = sharding.shard_state(adamw(1e-2, **CODES), mesh)
    inside, outside = jax.jit(tx.init)(params), tx.init(params)
    told = sharding.state_shardings(tx, params, mesh)
    assert jax.tree.structure(inside) == jax.tree.structure(outside) == jax.tree.structure(told)
    for x, y in zip(jax.tree.leaves(inside), jax.tree.leaves(outside), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
        np.testing.assert_array_equal(x, y)


def test_an_axis_that_would_lose_the_codes_is_split_last():
    """Of 64 columns each device would get 8, but a block has at least 32."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    spec = P("model", None)
    params = {"w": jax.device_put(jnp.ones((1024, 64)), NamedSharding(mesh, spec))}
    state = sharding.shard_state(adamw(1e-2, **CODES), mesh, specs=spec).init(params)
    assert state[0].mu["w"].codes.sharding.spec == P(("model", "data"), None)


def test_parameters_that_lose_their_codes_are_named():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    shapes = {"embed": (1257, 64), "w": (256, 512), "b": (16,)}
    shapes = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
    member = adamw(1e-2, **CODES)
    split = sharding.shard_state(member, mesh)
    for tx in (split, sharding.offload(split), adam_jax.skip_nonfinite(split)):
        planned = adam_jax.inspect.bytes_per_parameter(shapes, tx)
        assert planned.lost_codes == ("embed",)
        assert str(planned).endswith("fits into a device's part: embed")
    assert adam_jax.inspect.bytes_per_parameter(shapes, member).lost_codes == ()
    # Also for sharded parameters, if the sharding is part of their type.
    explicit = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    for its, lost in ((mesh, ()), (explicit, ("embed",))):
        on = NamedSharding(its, P(None, "data"))
        shapes["embed"] = jax.ShapeDtypeStruct((1257, 64), jnp.float32, sharding=on)
        assert adam_jax.inspect.bytes_per_parameter(shapes, member).lost_codes == lost


@jax.tree_util.register_pytree_node_class
class Checked:
    """A user's node that accepts only arrays."""

    def __init__(self, w):
        assert isinstance(w, jax.Array | jax.ShapeDtypeStruct) or w is None, w
        self.w = w

    def tree_flatten(self):
        return (self.w,), None

    @classmethod
    def tree_unflatten(cls, aux, children):
        if type(children[0]) is object:  # As JAX does.
            return object.__new__(cls)
        return cls(*children)


@pytest.mark.parametrize("specs", [None, {"a": P(), "b": P()}], ids=["none", "a prefix"])
def test_nodes_that_look_at_their_leaves(specs, mesh):
    params = copied({"a": Checked(jnp.ones((64, 256))), "b": jnp.ones((64, 256))}, mesh)
    tx = sharding.shard_state(adamw(1e-2), mesh, specs=specs)
    params, state = stepped(tx, params, tx.init(params), params)
    assert state[0].mu["a"].w.sharding.spec[0] == "data"


def test_a_gradient_that_is_not_there_keeps_its_state_split(mesh):
    params = copied(drawn(SHAPES), mesh)
    tx = sharding.shard_state(adamw(1e-2, **CODES), mesh)
    state = convert_state(tx.init(params), mu_dtype=jnp.float32)
    moved, state = stepped(tx, {**params, "in": None}, state, params)
    np.testing.assert_array_equal(moved["in"], params["in"])
    assert_split(state, adamw(1e-2, nu_dtype=jnp.int8), params, mesh)
