"""The interface between rules and formats: a format unknown to every rule can store a slot."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

from adam_jax.formats.base import Format
from tests.catalogue import every_member_slowly


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
    expected, expected_state = params, plain.init(params)
    state = split.init(params)
    assert getattr(state[0], member.slots[0])["a"].high.dtype == jnp.uint16
    for _ in range(3):
        grads = jax.tree.map(jnp.sin, params)
        updates, new = jax.jit(split.update)(grads, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
        state = new
        expected, expected_state = jax.jit(plain.update)(grads, expected_state, params)
        np.testing.assert_allclose(updates["a"], expected["a"], rtol=1e-6)
    for slot in member.slots:
        stored, exact = getattr(state[0], slot)["a"], getattr(expected_state[0], slot)["a"]
        np.testing.assert_allclose(SplitBits().decode(stored, jnp.float32), exact, rtol=1e-6)
    assert split == member.alias(1e-2, **member.stored(SplitBits(), SplitBits()))
