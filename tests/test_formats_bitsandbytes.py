"""bitsandbytes' codes and blocks, against its table and its rounding, naively written."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from adam_jax.formats.bitsandbytes import BLOCK, DynamicMap, FlatBlockwise

CODES = jnp.arange(256, dtype=jnp.uint8)
every_sign = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])


def table(signed):
    """What create_dynamic_map(signed) is without its roundings: float64, in rising order."""
    numbers = [0.0, 1.0]
    for decade in range(7):
        parts = 2 ** (decade if signed else decade + 1)
        edges = np.linspace(0.1, 1.0, parts + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6)
        numbers += [*middles, *(-middles if signed else [])]
    return np.sort(np.asarray(numbers))


def naive_codes(y, signed):
    """The nearest in the table; of negative numbers near zero the one below zero."""
    numbers = table(signed)
    codes = np.searchsorted((numbers[:-1] + numbers[1:]) / 2, np.asarray(y, np.float64))
    return np.where((y < 0) & (numbers[codes] == 0), codes - 1, codes)


def naive_encode(x, signed):
    """Codes and scales, block by block of the flattened array."""
    x = np.asarray(x, np.float32)
    parts = [x.ravel()[i : i + BLOCK] for i in range(0, x.size, BLOCK)]
    scales = [np.abs(part).max() for part in parts]
    shares = [part / (scale or 1) for part, scale in zip(parts, scales, strict=True)]
    return naive_codes(np.concatenate(shares), signed).reshape(x.shape), np.asarray(scales)


def naive_decode(codes, scales, signed):
    numbers = table(signed)[np.asarray(codes).ravel()] * np.repeat(scales, BLOCK)[: codes.size]
    return numbers.reshape(codes.shape)


def sample(shape, signed, seed=0):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=shape) * 10.0 ** rng.integers(-6, 3, shape)).astype(np.float32)
    return x if signed else x * x


def places(x):
    """How many float32 numbers lie between each and zero: neighbours differ by one."""
    return np.asarray(x, np.float32).view(np.int32).astype(np.int64)


@every_sign
def test_each_code_is_a_number_of_the_table_and_is_the_code_of_it(signed):
    codec, numbers = DynamicMap(signed), table(signed)
    values = np.asarray(jax.jit(codec.value)(CODES))
    assert numbers.size == 256
    assert np.abs(places(values) - places(numbers)).max() <= 1
    assert values[127 if signed else 0] == 0.0 and values[-1] == 1.0
    np.testing.assert_array_equal(codec.code(values, None), CODES)


@every_sign
def test_the_table_is_the_one_that_pytorch_makes(signed):
    """Line by line as bitsandbytes makes it, in float32; the last places depend on the CPU."""
    torch = pytest.importorskip("torch", reason="PyTorch is in a group of its own")
    numbers = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (decade if signed else decade + 1) + 1)
        middles = 10 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2.0)
        numbers += [*middles.tolist(), *((-middles).tolist() if signed else [])]
    values = np.asarray(DynamicMap(signed).value(CODES))
    assert np.abs(places(values) - places(np.sort(np.float32(numbers)))).max() <= 4


@every_sign
def test_each_number_has_the_nearest_code(signed):
    """A dense sweep, and all float32 numbers around each middle of two codes."""
    numbers = table(signed)
    middles = (numbers[:-1] + numbers[1:]) / 2
    sweep = np.concatenate([np.linspace(0, 1, 200_001), 10.0 ** np.linspace(-9, 0, 200_001)])
    around = (places(middles) + np.arange(-8, 9)[:, None]).astype(np.int32).view(np.float32)
    y = np.concatenate([sweep, -sweep if signed else [], around.ravel()]).astype(np.float32)
    y = np.clip(y, -1.0 if signed else 0.0, 1.0)
    codes = np.asarray(jax.jit(lambda y: DynamicMap(signed).code(y, None))(y)).astype(int)
    expected = naive_codes(y, signed)
    off = codes != expected
    # The middles themselves are no float32 numbers: which of the two beside one is past it, is
    # decided by a rounding. Here, and in bitsandbytes by what it has made of the table.
    between = middles[np.minimum(codes, expected)[off]]
    assert np.all(np.abs(codes - expected)[off] == 1)
    assert np.all(np.abs(y[off] - between) <= np.spacing(np.abs(y[off])))
    assert off.sum() < 300
    rising = np.argsort(y, kind="stable")
    assert np.all(np.diff(codes[rising]) >= 0)


def test_there_is_no_stochastic_rounding():
    with pytest.raises(NotImplementedError):
        DynamicMap(True).code(jnp.ones(3), jnp.ones(3, jnp.uint32))


def test_a_negative_number_is_never_zero_and_a_positive_may_be():
    y = jnp.asarray([-1e-30, -2.7e-7, -0.0, 0.0, 1e-30, 2.7e-7, 2.8e-7, -1.0, 1.0])
    codes = DynamicMap(signed=True).code(y, None)
    assert codes.tolist() == [126, 126, 127, 127, 127, 127, 128, 0, 255]
    assert DynamicMap(signed=False).code(jnp.asarray([0.0, 1.6e-7, 1.7e-7]), None).tolist() == [
        0, 0, 1
    ]  # fmt: skip


@every_sign
@pytest.mark.parametrize("shape", [(1,), (255,), (256,), (257,), (3, 5, 100), (20, 300), (0, 4)])
def test_blocks_of_the_flattened_leaf(signed, shape):
    fmt, x = FlatBlockwise(DynamicMap(signed)), sample(shape, signed)
    encode, decode = jitted(signed)
    stored = encode(x)
    assert stored.codes.shape == fmt.shape(stored) == shape and stored.codes.dtype == jnp.uint8
    assert stored.scale.shape == (-(-x.size // 256),) and stored.scale.dtype == jnp.float32
    if x.size:
        codes, scales = naive_encode(x, signed)
        np.testing.assert_array_equal(stored.codes, codes)
        np.testing.assert_array_equal(stored.scale, scales)
        np.testing.assert_allclose(decode(stored), naive_decode(codes, scales, signed), rtol=3e-7)


@functools.cache
def jitted(signed):
    fmt = FlatBlockwise(DynamicMap(signed))
    return jax.jit(fmt.encode), jax.jit(lambda stored: fmt.decode(stored, jnp.float32))


finite = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


@every_sign
@settings(deadline=None, max_examples=50)
@given(x=arrays(np.float32, (300,), elements=finite), power=st.integers(-20, 20))
def test_laws(signed, x, power):
    encode, decode = jitted(signed)
    x = np.where(np.abs(x) < 1e-20, np.float32(0), x if signed else np.abs(x))
    stored = encode(x)
    decoded = np.asarray(decode(stored))
    again = encode(decoded)
    # -1 has no code: a block with nothing larger in it shrinks.
    if np.all(x >= -0.9929 * np.repeat(stored.scale, 256)[:300]):
        np.testing.assert_array_equal(again.codes, stored.codes)
        np.testing.assert_array_equal(again.scale, stored.scale)
    assert np.all(decoded * x >= 0) and np.all(decoded[x < 0] < 0) and np.all(decoded[x == 0] == 0)
    order = np.argsort(x[:256], kind="stable")
    assert np.all(np.diff(decoded[:256][order]) >= 0)
    scaled = encode(x * np.float32(2.0**power))
    np.testing.assert_array_equal(scaled.codes, stored.codes)
    np.testing.assert_array_equal(scaled.scale, stored.scale * np.float32(2.0**power))


@every_sign
def test_blocks_of_zeros_and_of_what_is_not_finite(signed):
    (encode, decode), x = jitted(signed), sample((5, 256), signed)
    x[1], x[2, 7], x[3, 200] = 0.0, np.nan, np.inf
    decoded = np.asarray(decode(encode(x)))
    assert np.all(decoded[1] == 0)
    assert np.all(np.isnan(decoded[2])) and not np.any(np.isfinite(decoded[3]))
    np.testing.assert_array_equal(decoded[[0, 4]], decode(encode(x[[0, 4]])))
    with jax.debug_nans(True):  # Zeros are not divided by zero.
        np.testing.assert_array_equal(FlatBlockwise(DynamicMap(signed)).encode(x[1]).scale, 0.0)


@every_sign
def test_the_start_is_what_encoding_it_gives(signed):
    fmt, (encode, decode) = FlatBlockwise(DynamicMap(signed)), jitted(signed)
    for start in np.float32([0.0, 0.1, 3e-6]):
        x = np.full((20, 30), start)
        stored = fmt.init(jnp.asarray(x), start)
        jax.tree.map(np.testing.assert_array_equal, stored, encode(x))
        np.testing.assert_array_equal(decode(stored), x)


def test_float64_leaves(x64):
    fmt, x = FlatBlockwise(DynamicMap(signed=True)), sample((300,), True)
    stored = jax.jit(fmt.encode)(x.astype(np.float64))
    jax.tree.map(np.testing.assert_array_equal, stored, jax.jit(fmt.encode)(x))
    assert stored.scale.dtype == jnp.float32 and fmt.decode(stored, float).dtype == jnp.float64
