"""The interface between rules and formats, and what each format keeps of it."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from adam_jax.formats.base import Format
from adam_jax.formats.blockwise import Blockwise, Power
from adam_jax.formats.dense import Dense
from adam_jax.slots import Slot
from tests.catalogue import every_member_slowly
from tests.catalogue.training import trained


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Halves:
    """A float32 array as two 16-bit arrays."""

    high: jax.Array
    low: jax.Array
    format: Format = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class SplitBits(Format):
    """Stores the upper and lower 16 bits of each float32 in two arrays, without loss."""

    rounds = False

    def init(self, param, start):
        return self.encode(jnp.full_like(param, start, dtype=jnp.float32))

    def encode(self, x, noise=None):
        bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
        return Halves((bits >> 16).astype(jnp.uint16), bits.astype(jnp.uint16), self)

    def decode(self, stored, dtype):
        bits = stored.high.astype(jnp.uint32) << 16 | stored.low.astype(jnp.uint32)
        return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(dtype)

    def shape(self, stored):
        return stored.high.shape

    def refuses(self, slot):
        return None

    def shardings(self, stored, sharding):
        return jax.tree.map(lambda _: sharding, stored)


@every_member_slowly
def test_a_format_of_two_arrays_carries_any_slot(member):
    plain = member.alias(1e-2)
    split = member.alias(1e-2, **member.stored(SplitBits(), SplitBits()))
    params = {"a": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "b": None}
    expected, expected_state = trained(plain, params)
    moved, state = trained(split, params)
    np.testing.assert_allclose(moved["a"], expected["a"], rtol=1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, split.init(params))
    assert getattr(state[0], member.slots[0])["a"].high.dtype == jnp.uint16
    for slot in member.slots:
        stored, exact = getattr(state[0], slot)["a"], getattr(expected_state[0], slot)["a"]
        np.testing.assert_allclose(SplitBits().decode(stored, jnp.float32), exact, rtol=1e-6)
    assert split == member.alias(1e-2, **member.stored(SplitBits(), SplitBits()))


SHAPES = ((6, 64), (3, 8, 64))
POLICIES = (
    *(adam_jax.BlockMeans(axes) for axes in (0, -1, None)),
    adam_jax.Factored(min_dim_size=2, min_size=1),
    *(adam_jax.Quantized(codes, min_size=1) for codes in ("int8", "int4")),
)
OF_NUMBERS = [Dense(jnp.dtype(d)) for d in ("bfloat16", "float16", "float32", "complex64")]
FORMS = [*OF_NUMBERS, SplitBits(), Blockwise(Power(signed=True), 64)]
FORMS += [p.resolve(jnp.zeros(SHAPES[1]), Slot("nu", magnitude=True), "") for p in POLICIES]


@pytest.mark.parametrize("fmt", FORMS, ids=str)
def test_every_format_keeps_its_word(fmt):
    x = jnp.square(jax.random.normal(jax.random.key(0), SHAPES[1]))
    stored = jax.jit(fmt.encode)(x)
    for start in np.float32([0.0, 0.5]):
        first = fmt.init(x.astype(jnp.bfloat16), start)
        chex.assert_trees_all_equal_shapes_and_dtypes(first, stored)
        if not isinstance(fmt, Blockwise) or start == 0:
            decoded = fmt.decode(first, jnp.float32)
            np.testing.assert_allclose(decoded, np.full(x.shape, start), rtol=1e-6)
    assert fmt.shape(stored) == x.shape
    # What is stored is stored again without another loss.
    decoded = fmt.decode(stored, jnp.float32)
    again = fmt.decode(fmt.encode(decoded), jnp.float32)
    np.testing.assert_allclose(again, decoded, rtol=1e-5)
    if fmt in OF_NUMBERS:
        np.testing.assert_allclose(decoded, x, rtol=float(jnp.finfo(fmt.dtype).eps), atol=1e-7)


def test_forms_compare_by_value_and_are_not_callable():
    """`optax.inject_hyperparams` treats callables as schedules."""
    pairs = {
        adam_jax.Quantized(): adam_jax.Quantized("int8"),
        adam_jax.BlockMeans(0): adam_jax.BlockMeans([0]),
        adam_jax.Factored(): adam_jax.Factored(),
        adam_jax.AdamMini(): adam_jax.AdamMini(),
        Dense(jnp.dtype("float32")): Dense(jnp.dtype("float32")),
        Blockwise(Power(signed=True), 64): Blockwise(Power(signed=True), 64),
    }
    assert len(pairs) == 6  # They differ from each other.
    for one, same in pairs.items():
        assert one == same and hash(one) == hash(same) and not callable(one)
    assert adam_jax.adam(1e-3, nu_dtype=jnp.int8) == adam_jax.adam(1e-3, nu_dtype="int8")
    assert adam_jax.BlockMeans(0) != adam_jax.BlockMeans(1)
    assert adam_jax.Factored() != adam_jax.Factored(min_dim_size=64)
