"""States of means: mapped, converted, saved, measured, and inside every wrapper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax.formats.block_means import Means
from tests.catalogue import temporaries
from tests.catalogue.modifiers import MODIFIERS
from tests.catalogue.second_moments import every_kind_with_nu, gradients, magnitudes, naive
from tests.catalogue.training import trained

ROWS, COLUMNS, LEAF = (adam_jax.BlockMeans(axes) for axes in (1, 0, None))
FACTORED = adam_jax.Factored(min_dim_size=2, min_size=1)
# The numbers stored for a leaf of 64 x 72.
SIZES = {ROWS: 64, COLUMNS: 72, LEAF: 1, FACTORED: 64 + 72}
every_policy = pytest.mark.parametrize("policy", SIZES, ids=["rows", "columns", "leaf", "factored"])


def size(nu):
    return sum(x.size for x in jax.tree.leaves(nu))


def stepped(tx, grads, params, state=None):
    """Parameters and state after two steps."""
    both = grads, jax.tree.map(jnp.sin, grads)
    return trained(tx, params, lambda _, turn: both[turn], 2, state=state)


def assert_close(x, y, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), x, y)


@every_policy
def test_vmap_and_donation(policy):
    tx = adam_jax.adamw(1e-2, nu_dtype=policy)
    update = jax.jit(lambda p, s: adam_jax.step(tx, jnp.sin(p), s, p), donate_argnums=(0, 1))
    params = magnitudes((2, 64, 72))
    start = jax.vmap(lambda p: (p, tx.init(p)))(params)
    nu = start[1][0].nu
    assert size(nu) == 2 * SIZES[policy] and nu.format.shape(nu) == (2, 64, 72)
    after, state = jax.vmap(update)(*jax.vmap(update)(*start))
    for i in range(2):
        alone, its = update(*update(jnp.asarray(params[i]), tx.init(jnp.asarray(params[i]))))
        assert_close((after[i], jax.tree.map(lambda x, i=i: x[i], state)), (alone, its))
    memory = update.lower(params[0], tx.init(jnp.asarray(params[0]))).compile().memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes >= 4 * (2 * 64 * 72 + SIZES[policy])


def test_inside_shard_map_along_the_blocks():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    tx = adam_jax.adamw(1e-2, nu_dtype=ROWS)
    params = magnitudes((64, 72))
    alone = stepped(tx, jnp.sin(params), jnp.asarray(params))

    def steps(params):
        return stepped(tx, jnp.sin(params), params)

    specs = jax.tree.map(lambda x: P("data") if x.ndim else P(), alone)
    mapped = jax.shard_map(steps, mesh=mesh, in_specs=P("data"), out_specs=specs)
    assert_close(jax.jit(mapped)(params), alone)


@pytest.mark.bits
@every_kind_with_nu
def test_no_temporary_of_a_leaf_s_size(member):
    params = [jax.ShapeDtypeStruct((256, 1024), jnp.float32)]

    def compiled_by(step, *args):
        return jax.jit(step, donate_argnums=(0, 1)).lower(*args).compile()

    of_blocks, of_elements = (
        temporaries.of_step(member.alias(1e-2, nu_dtype=dtype), params, compiled_by)
        for dtype in (COLUMNS, jnp.float32)
    )
    assert of_blocks < of_elements + 0.5


def test_a_state_is_converted_there_and_back():
    params, grads = jnp.ones((64, 72)), jnp.asarray(gradients((64, 72))[0])
    plain, ours = adam_jax.amsgrad(1e-2), adam_jax.amsgrad(1e-2, nu_dtype=COLUMNS)
    moved, state = stepped(plain, grads, params)
    converted = adam_jax.convert_state(state, nu_dtype=COLUMNS)
    for name in ("nu", "nu_max"):
        x, mean = getattr(state[0], name), getattr(converted[0], name)
        assert isinstance(mean, Means) and mean.format == getattr(ours.init(params)[0], name).format
        np.testing.assert_allclose(mean.means, np.mean(x, 0, keepdims=True), rtol=1e-6)
    # The transformation continues in the form of its state.
    assert_close(stepped(plain, grads, moved, converted), stepped(ours, grads, moved, converted))
    back = adam_jax.convert_state(converted, nu_dtype=jnp.float32)
    np.testing.assert_allclose(back[0].nu, naive(np.asarray(state[0].nu), 0), rtol=1e-6)


PARAMS = {"a": jnp.ones((32, 16)), "c": jnp.ones((32, 16)), "b": jnp.ones(16)}
GRADS = {name: jnp.asarray(gradients(x.shape)[0]) for name, x in PARAMS.items()}
BY_PATH = adam_jax.by_path({"[ac]": COLUMNS})


@pytest.mark.slow
@pytest.mark.parametrize("name", MODIFIERS)
def test_modifiers_read_the_means(name):
    """With equal gradients in each block, the steps are those of float32 moments."""
    equal = jax.tree.map(lambda g: jnp.broadcast_to(g[:1], g.shape), GRADS)
    for make in (adam_jax.adamw, adam_jax.laprop, adam_jax.amsgrad):
        blocks, elements = (
            MODIFIERS[name](make(0.1, weight_decay=1e-4, nu_dtype=dtype))
            for dtype in (BY_PATH, jnp.float32)
        )
        expected = stepped(elements, equal, PARAMS)[0]
        assert_close(stepped(blocks, equal, PARAMS)[0], expected)


@every_kind_with_nu
def test_derivatives_are_finite_also_at_zero_gradients(member):
    params = jnp.concatenate([jnp.ones((16, 2)), jnp.zeros((16, 2))], axis=1)

    def loss(rate, params):
        tx = member.alias(rate, nu_dtype=COLUMNS)
        return jnp.sum(trained(tx, params, lambda p, _: 2 * p, 2, "update", jit=False)[0] ** 2)

    of_rate, of_params = jax.jit(jax.grad(loss, argnums=(0, 1)))(0.1, params)
    assert of_rate < 0 and np.all(np.isfinite(of_params))
