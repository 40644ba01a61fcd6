"""Blocks of 128 elements in the tiles of XLA:TPU, 8 x 128, so that they are fused.

XLA:TPU, with jax 0.10.2 and libtpu 0.0.52, fuses neither a reduction over the last axis of
(R, C/128, 128) nor a broadcast along it. A step of 8-bit moments of a leaf of 8192 x 8192 passes
116 bytes per parameter through HBM and has 16 of temporaries. It does fuse both in an array of
tiles (R/8, C/128, 8, 128), as which an array of (R, C) lies in memory, if all moments are reduced
at once: 34 bytes, and 1.6 of temporaries, which are scales.

Rows that are no multiple of 8 XLA does not fuse in any form: (50257, 768) passes 69 bytes as it is,
103 when it is padded, and 111 when the last row is apart.

Delete it when tests/xla/test_tiles.py finds that a step passes no more bytes without it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

ROWS, LANES = 8, 128


def fits(x: jax.Array, block: int) -> bool:
    """Whether blocks of so many elements along the last axis are parts of rows of tiles."""
    # An array that is split along an axis of an explicit mesh has to have whole tiles everywhere.
    sharding = jax.typeof(x).sharding
    shape = sharding.shard_shape(x.shape) if sharding.mesh.are_all_axes_explicit else x.shape
    whole = len(shape) > 1 and shape[-2] % ROWS == 0 and shape[-1] % block == 0
    return whole and block % LANES == 0


def largest_in_tiles(arrays: Sequence[jax.Array], blocks: Sequence[int]) -> list[jax.Array]:
    """The largest number in each block of each array, by one reduction.

    Args:
      arrays: of one shape, which `fits`; not negative.
      blocks: of each, elements along the last axis.
    """
    tiles = tuple(_tiles(x) for x in arrays)
    zeros = (np.float32(0),) * len(tiles)
    found = jax.lax.reduce(tiles, zeros, _maxima, (tiles[0].ndim - 1,))
    return [_blocks(x, block // LANES) for x, block in zip(found, blocks, strict=True)]


def _maxima(x: Sequence[jax.Array], y: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    return tuple(jax.lax.max(*pair) for pair in zip(x, y, strict=True))


def spread(scale: jax.Array, block: int) -> jax.Array:
    """Each number as often as its block has elements.

    Args:
      scale: a number for each block of an array that `fits`.
      block: elements along the last axis.
    """
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
    # One axis after the other: of an explicit mesh JAX does not know where both would be.
    x = jnp.reshape(x, (*others, rows, columns // LANES, LANES))
    x = jnp.reshape(x, (*others, rows // ROWS, ROWS, columns // LANES, LANES))
    return jnp.swapaxes(x, -2, -3)


def _blocks(x: jax.Array, parts: int) -> jax.Array:
    """(..., R/8, C/128, 8) as (..., R, C/128), and of so many neighbours the largest."""
    x = jnp.swapaxes(x, -1, -2)
    *others, tiles, rows, columns = x.shape
    x = jnp.reshape(x, (*others, tiles * rows, columns))
    if parts == 1:
        return x
    return jnp.max(jnp.reshape(x, (*x.shape[:-1], columns // parts, parts)), axis=-1)
