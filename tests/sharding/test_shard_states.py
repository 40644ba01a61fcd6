"""A sharded step continues from a state of any storage form and origin."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax import adamw, convert_state, sharding, stochastic
from adam_jax.sharding import state_shardings
from tests.catalogue.sharded import assert_placed, on, on_alternating_axes, parameters
from tests.catalogue.training import trained

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
# 8 divides only the last axis. Sharded along it, blocks have 64 elements, or there are none.
SMALLER_BLOCKS = [(100, 512), (1257, 64)]


def stepped(tx, grads, state, params):
    """Two steps; the second starts from the first one's placement of the state."""
    return trained(tx, params, lambda *_: grads, 2, state=state)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mesh"), on_alternating_axes(FORMS), indirect=["mesh"], ids=str)
def test_a_converted_state(name, mesh):
    params = on(mesh, parameters())
    grads = jax.tree.map(jnp.cos, params)
    tx = sharding.shard_state(adamw(1e-2), mesh)
    # From codes to float32; the other forms convert the other way.
    member = adamw(1e-2, **(CODES if name == "float32" else {}))
    whole = convert_state(member.init(params), **FORMS[name])
    expected, _ = stepped(adamw(1e-2), grads, whole, params)
    init = sharding.shard_state(member, mesh).init(params)
    for state in (convert_state(init, **FORMS[name]), whole):
        moved, state = stepped(tx, grads, state, params)
        assert jax.tree.structure(state) == jax.tree.structure(whole)
        assert_placed(state, state_shardings(adamw(1e-2, **FORMS[name]), params, mesh))
        chex.assert_trees_all_close(moved, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("member", [adamw(1e-2), optax.adamw(1e-2)], ids=["float32", "optax"])
def test_a_state_of_float32_goes_on_where_codes_were_asked_for(member, mesh):
    params = on(mesh, parameters())
    grads = jax.tree.map(jnp.cos, params)
    tx = sharding.shard_state(adamw(1e-2, **CODES), mesh)
    _, state = stepped(tx, grads, member.init(params), params)
    assert_placed(state, state_shardings(member, params, mesh))


@pytest.mark.slow
@pytest.mark.parametrize("shape", SMALLER_BLOCKS, ids=str)
@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
def test_the_codes_of_one_device_on_eight(shape, jit, mesh):
    """Devices would not hold whole blocks of 128: the codes are not sharded, nor is their leaf."""
    params, grads = ({"w": x} for x in jax.random.normal(jax.random.key(0), (2, *shape)))
    member = adamw(1e-2, **CODES)
    expected, one = stepped(member, grads, member.init(params), params)
    tx = sharding.shard_state(member, mesh)
    args = on(mesh, grads), member.init(params), on(mesh, params)
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
    params = on(mesh, {"w": jnp.ones(shape), "b": jnp.ones(16)})
    tx = sharding.shard_state(adamw(1e-2, **CODES), mesh)
    inside, outside = jax.jit(tx.init)(params), tx.init(params)
    told = state_shardings(tx, params, mesh)
    assert jax.tree.structure(inside) == jax.tree.structure(told)
    chex.assert_trees_all_equal(inside, outside)
    assert_placed(inside, told)
    assert_placed(outside, told)


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
    params = on(mesh, {"a": Checked(jnp.ones((64, 256))), "b": jnp.ones((64, 256))})
    tx = sharding.shard_state(adamw(1e-2), mesh, specs=specs)
    params, state = stepped(tx, params, tx.init(params), params)
    assert state[0].mu["a"].w.sharding.spec[0] == "data"


def test_a_gradient_that_is_not_there_keeps_its_state_split(mesh):
    params = on(mesh, parameters())
    tx = sharding.shard_state(adamw(1e-2, **CODES), mesh)
    state = convert_state(tx.init(params), mu_dtype=jnp.float32)
    moved, state = stepped(tx, {**params, "in": None}, state, params)
    np.testing.assert_array_equal(moved["in"], params["in"])
    assert not np.any(state[0].mu["in"]) and np.all(state[0].mu["out"])
    assert_placed(state, state_shardings(adamw(1e-2, nu_dtype=jnp.int8), params, mesh))
