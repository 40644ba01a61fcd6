"""Blocks of 128 in TPU tiles: the same values, and fewer bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import adam_jax
from adam_jax.xla import tiles
from adam_jax.xla.maxima import InBlocks, in_blocks, largest, magnitudes
from tests.catalogue import temporaries

EIGHT = adam_jax.adamw(1e-3, mu_dtype=jnp.int8, nu_dtype=jnp.int8)


@pytest.mark.parametrize("block", [128, 256])
@pytest.mark.parametrize("shape", [(16, 512), (2, 3, 8, 256)])
def test_blocks_are_the_same_in_tiles(shape, block):
    rng = np.random.default_rng(0)
    xs = [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2)]
    xs[0] = xs[0].at[..., 3, 7].set(jnp.nan).at[..., 0, 200].set(-jnp.inf)
    assert all(tiles.fits(x, block) for x in xs)
    found = jax.jit(lambda *xs: tiles.largest_in_tiles([magnitudes(x) for x in xs], [block] * 2))
    for x, scale, expected in zip(
        xs, found(*xs), largest([InBlocks(x, block) for x in xs]), strict=True
    ):
        np.testing.assert_array_equal(scale, expected)
        spread = jnp.broadcast_to(expected[..., None], in_blocks(x, block).shape)
        np.testing.assert_array_equal(tiles.spread(scale, block), jnp.reshape(spread, shape))


@pytest.mark.parametrize(
    "shape, block",
    [((1024,), 128), ((12, 256), 128), ((16, 1000), 125), ((16, 256), 64), ((16, 192), 96)],
)
def test_others_are_left_to_xla(shape, block):
    assert not tiles.fits(jnp.zeros(shape), block)


@pytest.mark.parametrize("spec", [("x",), (None, "x"), (("x", "y"),), ("x", "y")])
@pytest.mark.parametrize("shape", [(64, 1024), (16, 1024), (8, 64, 1024)])
def test_on_explicit_meshes_it_is_lowered(shape, spec):
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    with jax.set_mesh(mesh):
        params = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
        tx = adam_jax.cautious(EIGHT)
        state = jax.eval_shape(tx.init, params)
        step = jax.jit(lambda g, s, p: adam_jax.step(tx, g, s, p))
        step.trace(params, state, params).lower(lowering_platforms=("tpu",))


@pytest.mark.slow
def test_it_has_derivatives_and_can_be_mapped():
    def total(x):
        [scale] = tiles.largest_in_tiles([x * x], [128])
        return jnp.sum(tiles.spread(scale, 128) * x)

    def plain(x):
        scale = jnp.max(in_blocks(x * x, 128), axis=-1)
        return jnp.sum(in_blocks(x, 128) * scale[..., None])

    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 256)), jnp.float32)
    found, expected = jax.vmap(jax.grad(total))(x), jax.vmap(jax.grad(plain))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.usefixtures("tpu_compiler")
def test_xla_fuses_no_blocks_in_other_forms(monkeypatch):
    tx = adam_jax.adamw(1e-3, mu_dtype=jnp.int8, nu_dtype=jnp.int8)
    tx = adam_jax.with_kernel(tx, "xla")
    params = jax.ShapeDtypeStruct((8192, 8192), jnp.float32)
    hbm, temporary = temporaries.on_v5e(tx, params)
    assert hbm < 36 and temporary < 2.2
    monkeypatch.setattr("adam_jax.xla.maxima.fits", lambda *_: False)
    hbm, temporary = temporaries.on_v5e(tx, params)
    jax.clear_caches()
    assert hbm > 60 and temporary > 6, "adam_jax/xla/tiles.py can go"
