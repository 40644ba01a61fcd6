"""The maximum of each block, with NaN and infinity, and its memory traffic; also in tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import adam_jax
from adam_jax.xla import maxima
from tests.catalogue import temporaries

EIGHT = adam_jax.adamw(1e-3, mu_dtype=jnp.int8, nu_dtype=jnp.int8)
# The program of other platforms than the CPU.
BY_ELEMENT = """
def largest(arrays):
    return [jnp.max(maxima.in_blocks(maxima.magnitudes(x), n), axis=-1) for x, n, _ in arrays]
leaf.largest = largest
"""


def rows_with(number, size):
    """A row for each position of the value."""
    rows = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    np.fill_diagonal(rows, number)
    return rows


@pytest.mark.parametrize("size", [40, 128])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, -100.0])
def test_the_largest_magnitude_is_found_at_each_place(size, number):
    [found] = jax.jit(lambda x: maxima.largest([maxima.InBlocks(x, size)]))(rows_with(number, size))
    np.testing.assert_array_equal(found, 100.0 if number == -100 else np.inf)


@pytest.mark.bits
def test_xla_loses_nans():
    found = jax.jit(lambda x: jnp.max(x, axis=-1))(rows_with(np.nan, 128))
    assert not np.any(np.isnan(found)), "adam_jax/xla/maxima.py can perhaps go"


@pytest.mark.slow
@pytest.mark.bits
def test_xla_stores_moments_twice_for_a_search_by_element():
    by_element = temporaries.of_eight_bits(devices=1, first=BY_ELEMENT)
    assert by_element > temporaries.of_eight_bits(devices=1) + 0.4


@pytest.mark.parametrize("block", [128, 256])
@pytest.mark.parametrize("shape", [(16, 512), (2, 3, 8, 256)])
def test_blocks_are_the_same_in_tiles(shape, block):
    rng = np.random.default_rng(0)
    xs = [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2)]
    xs[0] = xs[0].at[..., 3, 7].set(jnp.nan).at[..., 0, 200].set(-jnp.inf)
    assert all(maxima.fits(x, block) for x in xs)
    found = jax.jit(
        lambda *xs: maxima.largest_in_tiles([maxima.magnitudes(x) for x in xs], [block] * 2)
    )
    for x, scale, expected in zip(
        xs, found(*xs), maxima.largest([maxima.InBlocks(x, block) for x in xs]), strict=True
    ):
        np.testing.assert_array_equal(scale, expected)
        spread = jnp.broadcast_to(expected[..., None], maxima.in_blocks(x, block).shape)
        np.testing.assert_array_equal(maxima.spread(scale, block), jnp.reshape(spread, shape))


@pytest.mark.parametrize(
    "shape, block",
    [((1024,), 128), ((12, 256), 128), ((16, 1000), 125), ((16, 256), 64), ((16, 192), 96)],
)
def test_others_are_left_to_xla(shape, block):
    assert not maxima.fits(jnp.zeros(shape), block)


@pytest.mark.parametrize("spec", [("x",), (None, "x"), (("x", "y"),), ("x", "y")])
@pytest.mark.parametrize("shape", [(64, 1024), (16, 1024), (8, 64, 1024)])
def test_on_explicit_meshes_it_is_lowered(shape, spec):
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    with jax.set_mesh(mesh):
        params = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
        tx = adam_jax.cautious(EIGHT)
        state = jax.eval_shape(tx.init, params)
        jax.jit(tx.step).trace(params, state, params).lower(lowering_platforms=("tpu",))


@pytest.mark.slow
def test_it_has_derivatives_and_can_be_mapped():
    def total(x):
        [scale] = maxima.largest_in_tiles([x * x], [128])
        return jnp.sum(maxima.spread(scale, 128) * x)

    def plain(x):
        scale = jnp.max(maxima.in_blocks(x * x, 128), axis=-1)
        return jnp.sum(maxima.in_blocks(x, 128) * scale[..., None])

    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 256)), jnp.float32)
    found, expected = jax.vmap(jax.grad(total))(x), jax.vmap(jax.grad(plain))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.usefixtures("tpu_compiler")
def test_xla_fuses_no_blocks_in_other_forms(monkeypatch):
    tx = adam_jax.with_kernel(EIGHT, "xla")
    params = jax.ShapeDtypeStruct((8192, 8192), jnp.float32)
    hbm, temporary = temporaries.on_v5e(tx, params)
    assert hbm < 36 and temporary < 2.2
    monkeypatch.setattr("adam_jax.xla.maxima.fits", lambda *_: False)
    hbm, temporary = temporaries.on_v5e(tx, params)
    jax.clear_caches()
    assert hbm > 60 and temporary > 6, "the tiles of adam_jax/xla/maxima.py can go"
