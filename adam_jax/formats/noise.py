"""Random bits for stochastic rounding: a hash of an element's index and a salt.

The salt is of the step, the leaf and the slot. The bits do not depend on the number of devices, are
the same after a resume, and need no memory, because XLA computes them in the loop that rounds. (A
generator's bits are stored, 4 bytes per element.) Inside `shard_map` and `vmap` the index counts
within the part, so all parts have the same bits.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax.formats.base import sharding_by_type


def mixed(x: jax.Array) -> jax.Array:
    """A hash of 32 bits to 32 bits, uint32: "lowbias32" of Wellons 2018, hash-prospector."""
    x = _upper_half_mixed(x)
    return x ^ (x >> np.uint32(16))


def _upper_half_mixed(x: jax.Array) -> jax.Array:
    """`mixed` without its last step, which changes only the lower half."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    return (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)


MOMENTS, WEIGHTS = np.uint32(0x6D6F6D65), np.uint32(0x77656967)
"""The kinds of rounded arrays: each has its own bits, even with the same seed."""

GOLDEN = np.uint32(0x9E3779B9)
"""2³² times the fraction of the golden ratio, whose multiples modulo one are spread most evenly."""

LEAVES = np.uint32(0x85EBCA6B)
"""The distance between the salts of consecutive leaves."""


def salt_of(what: np.uint32, seed: int, count: jax.typing.ArrayLike) -> jax.Array:
    """The salt of one optimizer step, uint32."""
    count = jax.lax.convert_element_type(count, jnp.uint32)
    return mixed(mixed(jnp.uint32(seed) ^ what) + count * GOLDEN)


class Salt(NamedTuple):
    """The salt of the random bits of one leaf's moments in one step.

    Each step adds the golden ratio to the bits of an element, so they are spread evenly over many
    steps. Independent bits would make a random walk: the largest updates of 8-bit moments in 2,500
    steps are 1.2 times those of float32, instead of 1.5.
    """

    leaf: jax.Array  # uint32, the same in all steps.
    turned: jax.Array  # uint32, added to the bits.

    def of_layer(self, number: jax.Array) -> "Salt":
        """The salt of the leaf that comes `number` (uint32) leaves later."""
        own = number * LEAVES
        return Salt(self.leaf + own, self.turned + own * GOLDEN)


def salt_of_moments(count: jax.typing.ArrayLike, leaf: int) -> Salt:
    """The salt for the moments of a leaf, `count` steps after the first."""
    own = np.uint32((int(MOMENTS) + leaf * int(LEAVES)) % 2**32)
    # Each leaf has its own offset: XLA:GPU fuses the kernels of leaves that share a number, up to
    # 18 of them, and then stores their moments.
    count = jax.lax.bitcast_convert_type(jnp.asarray(count, jnp.int32), jnp.uint32)
    return Salt(jnp.asarray(own), (count + own) * GOLDEN)


class Positions(NamedTuple):
    """Where the elements of an array are in the larger array that it is part of, in uint32."""

    first: jax.Array  # The row-major index of the first element in the larger array.
    further: jax.Array  # The increase of that index from the first element to each.
    diagonal: jax.Array  # The increase of that index for one step along every axis.


Where = tuple[int, ...] | jax.Array | Positions
"""The shape of an array, an array that is split alike, or the positions of a tile."""


def bits_of_moments(where: Where, salt: Salt, slot: int) -> jax.Array:
    """16 random bits per element for one slot of a leaf, in the upper half; two share one hash."""
    number, which = divmod(slot, 2)
    bits = random_bits(where, salted(salt.leaf, part=number), first=salt.leaf)
    bits = bits << np.uint32(16) if which else bits
    return bits + salt.turned


def salted(salt: jax.Array, leaf: int = 0, part: int = 0) -> jax.Array:
    """The salt of a leaf, or of a part of it. `random_bits` mixes it per element."""
    return salt + np.uint32((leaf * int(LEAVES) + part * 0xC2B2AE35) % 2**32)


def bits_of_weights(where: Where, salt: jax.Array) -> jax.Array:
    """16 random bits per element, in the upper half: as `random_bits`, in fewer operations."""
    return _upper_half_mixed(_indices(where, 0) ^ salt)


def random_bits(where: Where, salt: jax.Array, first: jax.typing.ArrayLike = 0) -> jax.Array:
    """32 random bits per element, uint32: a hash of its row-major index and the salt.

    The index wraps at 2³², so a larger array repeats its bits. It starts at `first` along each
    axis, which differs per leaf, so that XLA:GPU finds nothing that leaves share.
    """
    return mixed(_indices(where, first) ^ salt)


def _indices(where: Where, first: jax.typing.ArrayLike) -> jax.Array:
    """The row-major index of each element, with `first` added along each axis."""
    if isinstance(where, Positions):
        return where.further + (where.first + jnp.uint32(first) * where.diagonal)
    # On explicit axes, indices without a sharding are those of the whole array on every device.
    out = sharding_by_type(where)
    shape = where if isinstance(where, tuple) else where.shape
    index = jnp.zeros(shape, jnp.uint32, out_sharding=out)
    for axis, stride in reversed(list(enumerate(strides(shape)))):
        position = jax.lax.broadcasted_iota(jnp.uint32, shape, axis, out_sharding=out)
        position = position + jnp.uint32(first)
        index = index + position * np.uint32(stride % 2**32)
    return index


def strides(shape: tuple[int, ...]) -> list[int]:
    """The row-major distance between neighbours along each axis."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
