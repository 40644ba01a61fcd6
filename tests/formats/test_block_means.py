"""Block-mean second moments: every member against its paper's formulas with the mean inserted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import adam_jax
from adam_jax.formats.block_means import MeansOverAxes
from adam_jax.formats.dense import Dense, format_of
from adam_jax.slots import Slot
from tests.catalogue import MEMBERS, of_each_kind, oracles, slowly_with
from tests.catalogue.runs import run
from tests.catalogue.second_moments import WITH_NU, gradients, magnitudes, naive

FLOAT32 = np.dtype(np.float32)
# Shapes, and the axes of a block. An axis of 5 is not summed in groups.
BLOCKS = [((8, 6), 0), ((8, 6), 1), ((8, 6), None), ((48, 5), (0,)), ((3, 4, 32), (0, -1))]
BLOCKS += [((2, 3, 4, 5), (0, 1, 2)), ((7,), 0), ((5, 1, 3), -3)]
every_block = pytest.mark.parametrize(("shape", "axes"), BLOCKS)
NU = Slot("nu", magnitude=True)


def form(shape, axes):
    return adam_jax.BlockMeans(axes).resolve(jnp.zeros(shape), NU, "")


@every_block
def test_an_element_is_the_mean_of_its_block(shape, axes):
    fmt, x = form(shape, axes), magnitudes(shape)
    stored = jax.jit(fmt.encode)(x)
    assert fmt.shape(stored) == shape and stored.means.dtype == jnp.float32
    decoded = fmt.decode(stored, jnp.float32)
    np.testing.assert_allclose(decoded, naive(x.astype(np.float64), axes), rtol=1e-6)
    again = jax.jit(fmt.encode)(decoded)
    np.testing.assert_allclose(again.means, stored.means, rtol=1e-6)
    # Reducing twice changes no bit.
    np.testing.assert_array_equal(fmt.encode(stored.means).means, stored.means)


matrices = arrays(np.float32, (16, 6), elements=st.floats(0, 2.0**20, width=32))
encode = jax.jit(MeansOverAxes((-2,), (16,), FLOAT32).encode)


@settings(deadline=None, max_examples=50)
@given(x=matrices, power=st.integers(-40, 20))
def test_laws(x, power):
    x = np.where(x < 1e-6, np.float32(0), x)
    means = np.asarray(encode(x).means)
    np.testing.assert_array_equal(means == 0, np.max(x, axis=0, keepdims=True) == 0)
    np.testing.assert_array_equal(encode(x * np.float32(2.0**power)).means, means * 2.0**power)
    # Blocks are independent of each other, and of the order of their elements.
    np.testing.assert_array_equal(encode(x[:, ::-1]).means, means[:, ::-1])
    np.testing.assert_allclose(encode(x[::-1]).means, means, rtol=1e-6)


@slowly_with(
    "dtype",
    [*((m, "float64") for m in WITH_NU), *((m, "complex128") for m in of_each_kind(WITH_NU))],
)
def test_float64_updates_equal_the_naive_version(member, dtype, x64, monkeypatch):
    """All forms of blocks at once, as leaves of a tree."""
    gs = {f"leaf_{k}": gradients(shape, dtype=dtype) for k, (shape, _) in enumerate(BLOCKS)}
    blocks = {f"leaf_{k}": adam_jax.BlockMeans(axes) for k, (_, axes) in enumerate(BLOCKS)}
    params = jax.tree.map(lambda g: jnp.zeros(g.shape[1:], g.dtype), gs)
    us = run(member.direction(nu_dtype=adam_jax.by_path(blocks)), gs, params)
    for (_, axes), g, u in zip(BLOCKS, gs.values(), us.values(), strict=True):
        monkeypatch.setattr(oracles, "stored", lambda v, axes=axes: naive(v, axes))
        assert u.dtype == dtype
        np.testing.assert_allclose(u, np.stack(list(member.naive(g))), rtol=1e-9, atol=1e-11)


def test_a_maximum_of_means_stays_to_the_last_bit():
    """A maximum over means: in float32, the mean of equal numbers can differ from them."""
    tx = adam_jax.scale_by_amsgrad(nu_dtype=adam_jax.BlockMeans(0))
    g = magnitudes((37, 5))
    _, state = tx.update(g, tx.init(jnp.zeros_like(g)))
    largest = state.nu_max.means
    for _ in range(30):
        _, state = jax.jit(tx.update)(jnp.zeros_like(g), state)
    np.testing.assert_array_equal(state.nu_max.means, largest)
    assert np.all(state.nu.means < largest)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["adam", "amsgrad", "adamax", "yogi", "adabelief"])
def test_what_is_not_finite_makes_its_block_nan(name, bad):
    [member] = [m for m in MEMBERS if m.name == name]
    tx = member.direction(nu_dtype=adam_jax.BlockMeans(0))
    g = jnp.ones((32, 4)).at[3, 2].set(bad)
    u, state = jax.jit(tx.update)(g, tx.init(jnp.zeros_like(g)))
    expected = np.broadcast_to(np.arange(4) == 2, (32, 4))
    np.testing.assert_array_equal(np.isnan(u), expected)
    np.testing.assert_array_equal(np.isnan(state.nu.means), expected[:1])


def test_which_leaves_have_blocks(x64):
    params = {
        "kernel": jnp.ones((4, 6), jnp.bfloat16),
        "double": jnp.ones((4, 6), jnp.float64),
        "complex": jnp.ones((4, 6), jnp.complex64),
        "row": jnp.ones((1, 6)),
        "empty": jnp.ones((0, 6)),
    }
    policy = adam_jax.by_path({"other.*": jnp.bfloat16}, adam_jax.BlockMeans(-2))
    params["other"] = jnp.ones((4, 6), jnp.float32)
    nu = adam_jax.scale_by_adam(nu_dtype=policy).init(params).nu
    float64 = np.dtype(np.float64)
    assert {name: format_of(x) for name, x in nu.items()} == {
        "kernel": MeansOverAxes((-2,), (4,), FLOAT32),
        "double": MeansOverAxes((-2,), (4,), float64),
        "complex": MeansOverAxes((-2,), (4,), FLOAT32),
        "row": Dense(float64),
        "empty": Dense(float64),
        "other": Dense(np.dtype(jnp.bfloat16)),
    }
    assert nu["double"].means.dtype == float64 and nu["kernel"].means.shape == (1, 6)
    assert form((), None) == form((), ()) == Dense(float64)
    assert form((4, 6, 2), (0, -3, 2)) == MeansOverAxes((-3, -1), (4, 2), float64)


def test_a_state_with_other_blocks_is_an_error_with_its_path():
    params = {"w": jnp.ones((4, 6))}
    ours, other = (adam_jax.adam(1e-3, nu_dtype=adam_jax.BlockMeans(axes)) for axes in (0, 1))
    state = ours.init(params)
    mixed = jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(other.init(params)))
    with pytest.raises(ValueError, match=r"at 'w', the state has means of shape \(4, 1\)"):
        ours.update(params, mixed, params)
    with pytest.raises(ValueError, match=r"shape \(5, 6\) and the state \(4, 6\)"):
        ours.update({"w": jnp.ones((5, 6))}, state, params)
