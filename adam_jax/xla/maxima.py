"""The largest magnitude in each block: with its NaNs on CPUs, fused on CPUs and TPUs.

XLA:CPU, in jax 0.10.2:

  * Its maximum along a last axis of 64 elements or more loses NaNs. A sum keeps them.
  * If every element is tested for NaN, it stores each 8-bit moment twice: 1.9 instead of 1.0 bytes
    of temporaries per parameter, and a step takes 5.1 instead of 2.7 times AdamW's time.
  * It reduces the last axis one element at a time, and other axes many at a time. Reshaping blocks
    into `COLUMNS` columns saves a third of the time of a step.

XLA:TPU (libtpu 0.0.52) fuses neither a reduction over the last axis of (R, C/128, 128) nor a
broadcast along it. A step of 8-bit moments of a leaf of 8192 x 8192 then moves 116 bytes per
parameter through HBM and takes 16 of temporaries. It fuses both in an array of tiles (R/8, C/128,
8, 128), the memory layout of an (R, C) array, if one reduction covers all moments: 34 bytes, and
1.6 of temporaries, which are scales. If R is no multiple of 8, it fuses no form of it: (50257, 768)
moves 69 bytes unchanged, 103 padded, and 111 with the last row separate.

XLA:GPU behaves in none of these ways, and would launch four more kernels for the sum.

Delete it when tests/xla/test_maxima.py finds that a maximum keeps its NaNs, and that a step on TPUs
moves no more bytes without tiles. `elsewhere` is then enough, if its bytes and the 8-bit rows in
benchmarks/step.py stay the same.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax._types import Function

COLUMNS = 16
ROWS, LANES = 8, 128


class InBlocks(NamedTuple):
    """An array whose largest magnitude in each block is needed.

    Attributes:
      x: float32.
      block: elements along the last axis.
      along: in a kernel's tile, the axis that holds one block at a time, and is kept; else None.
    """

    x: jax.Array
    block: int
    along: int | None = None


def largest(arrays: Sequence[InBlocks]) -> list[jax.Array]:
    """The largest magnitude in each block of arrays of one shape; infinite where there is a NaN."""
    if any(of.along is not None for of in arrays):
        return [jnp.max(magnitudes(x), axis=along, keepdims=True) for x, _, along in arrays]
    blocks = [of.block for of in arrays]

    # Other orders of these lines also store each moment twice.
    def on_cpu(x: jax.Array, block: int) -> jax.Array:
        missing = jnp.isnan(jnp.sum(in_blocks(x, block), axis=-1))
        sizes = in_blocks(jnp.abs(x), block)
        if block % COLUMNS == 0:
            sizes = jnp.max(in_blocks(sizes, COLUMNS), axis=-2)
        return jnp.where(missing, np.float32(np.inf), jnp.max(sizes, axis=-1))

    def elsewhere(x: jax.Array, block: int) -> jax.Array:
        return jnp.max(in_blocks(magnitudes(x), block), axis=-1)

    def in_tiles(*xs: jax.Array) -> list[jax.Array]:
        return largest_in_tiles([magnitudes(x) for x in xs], blocks)

    xs = [of.x for of in arrays]
    tiled = {"tpu": in_tiles} if xs and all(map(fits, xs, blocks)) else {}
    return jax.lax.platform_dependent(
        *xs,
        cpu=lambda *xs: list(map(on_cpu, xs, blocks)),
        default=lambda *xs: list(map(elsewhere, xs, blocks)),
        **tiled,
    )


def each_by_its_block(f: Function, block: int, scale: jax.Array, *arrays: jax.Array) -> jax.Array:
    """`f` of one number per block and of the elements of arrays.

    Args:
      f: elementwise.
      block: elements along the last axis.
      scale: one number per block.
      *arrays: all of one shape, the shape of the result.
    """

    def in_all(scale: jax.Array, *arrays: jax.Array) -> jax.Array:
        y = f(scale[..., None], *(in_blocks(x, block) for x in arrays))
        return jnp.reshape(y, arrays[0].shape)

    def in_tiles(scale: jax.Array, *arrays: jax.Array) -> jax.Array:
        return f(spread(scale, block), *arrays)

    if not fits(arrays[0], block):
        return in_all(scale, *arrays)
    return jax.lax.platform_dependent(scale, *arrays, tpu=in_tiles, default=in_all)


def in_blocks(x: jax.Array, block: int) -> jax.Array:
    """The last axis split in two; the new last axis runs through a block."""
    return jnp.reshape(x, (*x.shape[:-1], x.shape[-1] // block, block))


def magnitudes(x: jax.Array) -> jax.Array:
    """|x|, infinite where x is NaN, because a maximum may lose a NaN."""
    return jnp.where(jnp.isnan(x), np.float32(np.inf), jnp.abs(x))


def fits(x: jax.Array, block: int) -> bool:
    """Whether blocks of this size along the last axis are parts of rows of tiles."""
    # An array sharded along an axis of an explicit mesh needs whole tiles on every device.
    sharding = jax.typeof(x).sharding
    shape = sharding.shard_shape(x.shape) if sharding.mesh.are_all_axes_explicit else x.shape
    whole = len(shape) > 1 and shape[-2] % ROWS == 0 and shape[-1] % block == 0
    return whole and block % LANES == 0


def largest_in_tiles(arrays: Sequence[jax.Array], blocks: Sequence[int]) -> list[jax.Array]:
    """The largest number in each block of each array, which `fits`; no number is negative."""
    tiles = tuple(_tiles(x) for x in arrays)
    zeros = (np.float32(0),) * len(tiles)
    found = jax.lax.reduce(tiles, zeros, _maxima, (tiles[0].ndim - 1,))
    maxima = []
    for x, block in zip(found, blocks, strict=True):  # (..., R/8, C/128, 8) to (..., R, C/128)
        x = jnp.swapaxes(x, -1, -2)
        *others, high, rows, columns = x.shape
        x = jnp.reshape(x, (*others, high * rows, columns))
        parts = block // LANES
        maxima.append(x if parts == 1 else jnp.max(in_blocks(x, parts), axis=-1))
    return maxima


def _maxima(x: Sequence[jax.Array], y: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    return tuple(map(jax.lax.max, x, y))


def spread(scale: jax.Array, block: int) -> jax.Array:
    """Repeats each block's number once per element of the block, in an array that `fits`."""
    parts = block // LANES
    scale = scale if parts == 1 else jnp.repeat(scale, parts, axis=-1)
    *others, rows, columns = scale.shape
    tiles = jnp.reshape(scale, (*others, rows // ROWS, ROWS, columns)).swapaxes(-1, -2)
    tiles = jnp.broadcast_to(tiles[..., None], (*tiles.shape, LANES)).swapaxes(-2, -3)
    tiles = jnp.reshape(tiles, (*others, rows, columns, LANES))
    return jnp.reshape(tiles, (*others, rows, columns * LANES))


def _tiles(x: jax.Array) -> jax.Array:
    """(..., R, C) as (..., R/8, C/128, 8, 128)."""
    *others, rows, columns = x.shape
    # One axis at a time: on an explicit mesh JAX cannot shard the result of splitting both.
    x = in_blocks(x, LANES)
    x = jnp.reshape(x, (*others, rows // ROWS, ROWS, columns // LANES, LANES))
    return jnp.swapaxes(x, -2, -3)
