"""Random bits for stochastic rounding, from nothing but where a number lies and which step it is.

No key and no generator: each element's bits are a hash of its index and a salt (the step, the leaf,
the slot). They are the same whatever the number of devices, after a resume too, and cost no memory
(inside `shard_map` and `vmap` an index is that of the part, whose bits the others have too): XLA
computes them in the loop that rounds. (A generator's are stored, 4 bytes per element; threefry
is 20 rounds for each.)
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def mixed(x: jax.Array) -> jax.Array:
    """A hash of 32 bits to 32 bits, uint32: "lowbias32" of Wellons 2018, hash-prospector."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


MOMENTS, WEIGHTS = np.uint32(0x6D6F6D65), np.uint32(0x77656967)
"""What is rounded: each has its own bits, with the same seed too."""


GOLDEN = np.uint32(0x9E3779B9)
"""2³² times the golden ratio's fraction: of all multiples modulo one its are spread most evenly."""


LEAVES = np.uint32(0x85EBCA6B)
"""How far apart the salts of two leaves are that follow each other."""


def salt_of(what: np.uint32, seed: int, count: jax.typing.ArrayLike) -> jax.Array:
    """The salt of one optimizer step, uint32."""
    count = jax.lax.convert_element_type(count, jnp.uint32)
    return mixed(mixed(jnp.uint32(seed) ^ what) + count * GOLDEN)


class Salt(NamedTuple):
    """What makes the random bits of the moments of a leaf in a step its own.

    In each step the bits of an element are turned on by the golden ratio, so that over many steps
    they are spread evenly. A moment that moves little in each step is then rounded up in about as
    many of them as it should be, where independent bits make a random walk: the largest updates of
    8-bit moments in 2,500 steps are 1.2 times those of float32, not 1.5.

    Attributes:
      leaf: uint32, the same in all steps.
      turned: uint32, to be added to the bits.
    """

    leaf: jax.Array
    turned: jax.Array

    def further(self, number: jax.Array) -> "Salt":
        """That of the leaf which comes so many leaves later; uint32."""
        own = number * LEAVES
        return Salt(self.leaf + own, self.turned + own * GOLDEN)


def salt_of_moments(count: jax.typing.ArrayLike, leaf: int) -> Salt:
    """For the moments of a leaf, `count` steps after the first."""
    own = np.uint32((int(MOMENTS) + leaf * int(LEAVES)) % 2**32)
    # Turned from another start: XLA:GPU fuses the kernels of leaves that share a number, up to 18
    # of them, and stores their moments for that.
    count = jax.lax.bitcast_convert_type(jnp.asarray(count, jnp.int32), jnp.uint32)
    return Salt(jnp.asarray(own), (count + own) * GOLDEN)


class Positions(NamedTuple):
    """Where the elements of an array lie in the larger one that it is a part of.

    Attributes:
      at: uint32, row by row in the larger array.
      diagonal: uint32, how much further one along every axis is.
    """

    at: jax.Array
    diagonal: jax.Array


def bits_of_moments(where: tuple[int, ...] | Positions, salt: Salt, slot: int) -> jax.Array:
    """Random bits for the slots of one leaf, 16 for each; one hash is enough for two slots."""
    number, which = divmod(slot, 2)
    bits = random_bits(where, salted(salt.leaf, part=number), first=salt.leaf)
    bits = bits << np.uint32(16) if which else bits
    return bits + salt.turned


def salted(salt: jax.Array, leaf: int = 0, part: int = 0) -> jax.Array:
    """The salt of a leaf, or of a part of it. `random_bits` mixes it, for each element."""
    return salt + np.uint32((leaf * int(LEAVES) + part * 0xC2B2AE35) % 2**32)


def random_bits(
    where: tuple[int, ...] | Positions, salt: jax.Array, first: jax.typing.ArrayLike = 0
) -> jax.Array:
    """32 random bits for each element, uint32: a hash of its index, row by row, and the salt.

    The index wraps at 2³²: a larger array has the same bits twice. Only the upper 16 bits are for
    one use, so that two numbers can be rounded by one hash.

    Args:
      where: the shape of the array, or the positions of its elements.
      salt: uint32.
      first: uint32, the index along each axis of what is first. One of its own for each leaf, so
        that XLA:GPU finds nothing that leaves share.
    """
    if isinstance(where, Positions):
        index = where.at + jnp.uint32(first) * where.diagonal
        return mixed(index ^ salt)
    index = jnp.zeros(where, jnp.uint32)
    for axis, stride in reversed(list(enumerate(strides(where)))):
        position = jax.lax.broadcasted_iota(jnp.uint32, where, axis) + jnp.uint32(first)
        index = index + position * np.uint32(stride % 2**32)
    return mixed(index ^ salt)


def strides(shape: tuple[int, ...]) -> list[int]:
    """How far apart, row by row, two elements are that are neighbours along each axis."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def in_unit_interval(bits: jax.Array) -> jax.Array:
    """The upper 16 random bits as float32 numbers in [0, 1), multiples of 2⁻¹⁶."""
    # By int32, which TPUs convert in one operation.
    upper = jax.lax.convert_element_type(bits >> np.uint32(16), jnp.int32)
    return jax.lax.convert_element_type(upper, jnp.float32) * np.float32(2**-16)
