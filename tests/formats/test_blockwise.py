"""8-bit and 4-bit blockwise codes: properties of each codec and of blocks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from adam_jax.formats.blockwise import Blockwise
from adam_jax.formats.noise import GOLDEN, WEIGHTS, random_bits, salt_of, salt_of_moments, salted
from adam_jax.formats.rounding import rounded_stochastically
from tests.catalogue.low_precision import CODECS, every_codec

SIGNED = {name: c for name, c in CODECS.items() if c.signed}
every_signed = pytest.mark.parametrize("codec", SIGNED.values(), ids=SIGNED)


def numbers(codec, shape=(6, 256), seed=0):
    """Blocks of numbers in the many magnitudes that the codec is made for."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * 10.0 ** rng.integers(-6, 6, (*shape[:-1], 1))
    return np.asarray(x if codec in SIGNED.values() else x * x, np.float32)


def all_codes(codec):
    """Every code, in numerical order."""
    if codec.signed:
        return jnp.arange(-codec.steps, codec.steps + 1).astype(codec.dtype)
    low = -8 if codec.bits == 4 else 0
    return jnp.arange(low, low + codec.steps).astype(codec.dtype)


@pytest.mark.bits
@every_codec
def test_each_code_is_the_code_of_its_number_and_numbers_rise(codec):
    codes = all_codes(codec)
    values = np.asarray(codec.value(codes))
    assert np.all(np.diff(values) > 0)
    assert values[-1] == 1.0
    again = np.asarray(codec.value(codec.code(jnp.asarray(values), None)))
    np.testing.assert_array_equal(again, values)


@pytest.mark.parametrize("noise", [None, 0, 2**16 - 1])
@every_codec
def test_a_share_that_is_a_little_more_than_one_has_the_last_code(codec, noise):
    shares = jnp.float32(1) + jnp.asarray([0, 2**-23, 2**-22], jnp.float32)
    shares = jnp.concatenate([shares, -shares]) if codec.signed else shares
    noise = None if noise is None else jnp.full_like(shares, noise << 16, jnp.uint32)
    numbers = codec.value(codec.code(shares, noise))
    np.testing.assert_array_equal(numbers, np.sign(shares))


def naive(codec, x, block):
    """The formulas of both codecs in float64, block by block and element by element."""
    result, power = np.empty(x.shape), 2 if codec.signed else 4
    for row, start in itertools.product(range(x.shape[0]), range(0, x.shape[1], block)):
        part = np.asarray(x[row, start : start + block], np.float64)
        scale = np.abs(part).max()
        for i, value in enumerate(part):
            root = (abs(value) / scale) ** (1 / power)
            if codec.signed:
                code = np.rint(codec.steps * root) / codec.steps
                decoded = np.sign(value) * code**power
            else:
                code = np.clip(np.rint(codec.steps * root) - 1, 0, codec.steps - 1)
                decoded = ((code + 1) / codec.steps) ** power
            result[row, start + i] = decoded * scale
    return result


@pytest.mark.bits
@pytest.mark.parametrize("name", CODECS)
def test_against_the_formula_in_float64(name):
    codec, x = CODECS[name], numbers(CODECS[name])
    fmt = Blockwise(codec, 128)
    stored = jax.jit(fmt.encode)(x)
    assert stored.codes.shape == x.shape and stored.codes.dtype == codec.dtype
    assert stored.scale.shape == (6, 2) and stored.scale.dtype == jnp.float32
    decoded, expected = np.asarray(fmt.decode(stored, jnp.float32)), naive(codec, x, 128)
    # The rounding of the root decides for numbers halfway between two codes.
    off = ~np.isclose(decoded, expected, rtol=1e-6, atol=0)
    assert off.mean() < 2e-3


def as_numbers(codes):
    return np.asarray(codes.astype(jnp.float32))


@pytest.mark.bits
@every_codec
def test_a_block_knows_its_own_numbers_and_a_power_of_two_is_the_scale_s(codec):
    fmt, x = Blockwise(codec, 64), numbers(codec)
    order = np.random.default_rng(1).permutation(4)
    moved = x.reshape(6, 4, 64)[:, order].reshape(6, 256) * 2.0**-7
    plain, other = fmt.encode(jnp.asarray(x)), fmt.encode(jnp.asarray(moved))
    np.testing.assert_array_equal(np.asarray(plain.scale)[:, order] * 2.0**-7, other.scale)
    codes, others = (as_numbers(c).reshape(6, 4, 64) for c in (plain.codes, other.codes))
    np.testing.assert_array_equal(codes[:, order], others)


@pytest.mark.bits
@every_signed
def test_signs_are_kept_and_zero_is_zero(codec):
    fmt, x = Blockwise(codec, 64), numbers(codec)
    x[0, :64], x[1, 3] = 0.0, 0.0
    decoded = np.asarray(fmt.decode(fmt.encode(jnp.asarray(x)), jnp.float32))
    assert np.all(decoded * x >= 0)
    assert np.all(decoded[0, :64] == 0) and decoded[1, 3] == 0
    np.testing.assert_array_equal(decoded, -np.asarray(fmt.decode(fmt.encode(-x), jnp.float32)))


@pytest.mark.parametrize("name", ["int8 nu", "int4 nu"])
def test_a_second_moment_is_zero_in_a_block_of_zeros_only(name):
    fmt, x = Blockwise(CODECS[name], 64), np.zeros((1, 128), np.float32)
    x[0, 70] = 3.0
    decoded = np.asarray(fmt.decode(fmt.encode(x), jnp.float32))
    assert np.all(decoded[0, :64] == 0) and np.all(decoded[0, 64:] > 0) and decoded[0, 70] == 3.0
    assert decoded[0, 64] <= 3.0 * (2.4e-10 if "8" in name else 1.6e-5)


@every_codec
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_shows_in_its_block_alone(codec, bad):
    """At every position: XLA:CPU's maximum loses some NaNs."""
    fmt = Blockwise(codec, 64)
    encode = jax.jit(fmt.encode)
    for block, position in itertools.product((0, 9, 23), (0, 3, 17, 63)):
        x = numbers(codec).reshape(-1, 64)
        x[block, position] = bad
        decoded = np.asarray(fmt.decode(encode(x.reshape(6, 256)), jnp.float32)).reshape(-1, 64)
        assert not np.any(np.isfinite(decoded[block])), position
        assert np.all(np.isfinite(np.delete(decoded, block, axis=0)))


# The power of the numbers whose mean stochastic rounding preserves: updates divide by √nu.
KEPT = {"int8 mu": 1, "int4 mu": 1, "int8 nu": -1, "int4 nu": -0.5}


@pytest.mark.parametrize("name", KEPT)
def test_stochastic_codes_keep_a_mean(name):
    codec, power = CODECS[name], KEPT[name]
    fmt = Blockwise(codec, 128, stochastic=True)
    x = numbers(codec, (1, 128))
    if not codec.signed:  # The smallest number cannot be rounded down.
        x = np.maximum(x, x.max() * 1e-3)

    def read(x):
        return np.sign(x) * np.abs(x) ** power

    def one(salt):
        return fmt.decode(fmt.encode(x, random_bits(x.shape, salt)), jnp.float32)

    draws = np.asarray(jax.vmap(one)(salts(4096)), np.float64)
    nearest = read(np.asarray(fmt.decode(fmt.encode(x), jnp.float32), np.float64))
    draws, exact = read(draws), read(np.asarray(x, np.float64))
    spread = draws.std(axis=0) / 64
    assert np.all(np.abs(draws.mean(axis=0) - exact) <= 5 * spread + 1e-6 * np.abs(exact).max())
    assert np.abs(nearest - exact).max() > 5 * spread.max()


def test_stochastic_rounding_to_bfloat16():
    """Rounds to one of two neighbours with the right mean; representable numbers do not change."""
    rng = np.random.default_rng(0)
    x = np.asarray(rng.normal(size=64) * 10.0 ** rng.integers(-8, 4, 64), np.float32)

    def one(salt):
        return rounded_stochastically(jnp.asarray(x), random_bits((64,), salt))

    draws = jax.vmap(one)(salts(8192))
    exact = np.asarray(draws.astype(jnp.float32), np.float64)
    below, above = exact.min(axis=0), exact.max(axis=0)
    assert np.all((below <= x) & (x <= above))
    assert np.all([len(np.unique(column)) <= 2 for column in exact.T])
    spread = exact.std(axis=0) / np.sqrt(8192)
    assert np.all(np.abs(exact.mean(axis=0) - x) <= 5 * spread + (above - below) * 2**-10)
    special = jnp.asarray([0.0, -0.0, jnp.inf, -jnp.inf, 1.5, -(2.0**-14), 2.0**-24], jnp.float32)
    noise = random_bits((7,), jnp.uint32(7)) | np.uint32(0xFFFF0000)
    kept = rounded_stochastically(special, noise).astype(jnp.float32)
    np.testing.assert_array_equal(kept, special)
    all_ones = jax.lax.bitcast_convert_type(jnp.uint32(0x7FFFFFFF), jnp.float32)  # A GPU's NaN.
    nans = jnp.stack([all_ones, jnp.float32(np.nan)])
    assert jnp.isnan(rounded_stochastically(nans, noise[:2])).all()


def salts(count):
    return jnp.arange(count, dtype=jnp.uint32) * np.uint32(2654435761)


def test_the_bits_of_moments_are_spread_evenly_over_the_steps_of_an_element():
    first = np.asarray(random_bits((64,), salt_of_moments(0, leaf=0).leaf))
    turned = [np.asarray(salt_of_moments(count, leaf=0).turned) for count in range(100)]
    with np.errstate(over="ignore"):
        bits = np.sort(first[:, None] + np.stack(turned), axis=1) / 2.0**32
    gaps = np.diff(bits, axis=1, prepend=bits[:, -1:] - 1)
    assert gaps.max() < 0.02  # For independent numbers about 0.05, and 0.1 for some elements.
    start, end = (int(salt_of_moments(count, leaf=0).turned) for count in (0, 2**31 - 1))
    assert (end - start) % 2**32 == (2**31 - 1) * int(GOLDEN) % 2**32


def test_noise_is_even_and_each_seed_step_leaf_and_part_has_its_own():
    of_weights = [salt_of(WEIGHTS, *seed_and_step) for seed_and_step in ((0, 5), (0, 6), (1, 5))]
    parts = list(itertools.product(range(3), range(2)))
    salts = [salted(salt, leaf, part) for salt in of_weights for leaf, part in parts]
    salts += [salted(salt_of_moments(5, leaf).leaf, part=part) for leaf, part in parts]
    noise = np.stack([np.ravel(random_bits((1000, 128), salt)) / 2.0**32 for salt in salts])
    assert np.abs(noise.mean(axis=1) - 0.5).max() < 3e-3
    assert np.abs(noise.std(axis=1) - 12**-0.5).max() < 3e-3
    assert np.abs(np.corrcoef(noise) - np.eye(len(salts))).max() < 0.02
    assert abs(np.corrcoef(noise[0, :-1], noise[0, 1:])[0, 1]) < 0.02
    whole, part = random_bits((16, 8), jnp.uint32(3)), random_bits((2, 8), jnp.uint32(3))
    np.testing.assert_array_equal(whole[:2], part)  # Depends on the index alone.


def test_which_leaves_are_quantised():
    params = {
        "kernel": jnp.ones((64, 384)),
        "narrow": jnp.ones((512, 80)),
        "prime": jnp.ones((64, 127)),
        "odd": jnp.ones((512, 62, 2)),
        "bias": jnp.ones(4095),
        "scalar": jnp.ones(()),
    }
    state = adam_jax.scale_by_adam(mu_dtype=jnp.int8, nu_dtype=jnp.int4).init(params)
    blocks = {
        name: getattr(getattr(x, "format", None), "block", None) for name, x in state.nu.items()
    }
    assert blocks == dict.fromkeys(params) | {"kernel": 128, "narrow": 80, "prime": 127}
    assert state.mu["kernel"].codes.dtype == jnp.int8
    assert state.nu["kernel"].codes.dtype == jnp.int4
    assert state.mu["bias"].dtype == state.nu["odd"].dtype == jnp.float32


def test_by_path():
    policy = adam_jax.by_path(
        {"embed/.*": jnp.float32, ".*/kernel": jnp.int8}, default=jnp.bfloat16
    )
    leaf = jnp.ones((64, 128))
    params = {"embed": {"kernel": leaf}, "head": {"kernel": leaf, "other": leaf}}
    nu = adam_jax.scale_by_adam(nu_dtype=policy).init(params).nu
    assert nu["embed"]["kernel"].dtype == jnp.float32
    assert nu["head"]["kernel"].codes.dtype == jnp.uint8
    assert nu["head"]["other"].dtype == jnp.bfloat16
