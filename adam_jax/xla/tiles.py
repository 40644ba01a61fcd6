"""Blocks of 128 elements in the tiles of XLA:TPU, 8 x 128, so that it fuses them.

With jax 0.10.2 and libtpu 0.0.52, XLA:TPU fuses neither a reduction over the last axis of (R,
C/128, 128) nor a broadcast along it. A step of 8-bit moments of a leaf of 8192 x 8192 then moves
116 bytes per parameter through HBM and takes 16 of temporaries. XLA:TPU fuses both in an array of
tiles (R/8, C/128, 8, 128), the memory layout of an (R, C) array, if one reduction covers all
moments: 34 bytes, and 1.6 of temporaries, which are scales.

If the number of rows is no multiple of 8, XLA fuses no form of it: (50257, 768) moves 69 bytes
unchanged, 103 padded, and 111 with the last row separate.

Delete it when tests/xla/test_tiles.py finds that a step moves no more bytes without it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

ROWS, LANES = 8, 128


def fits(x: jax.Array, block: int) -> bool:
    """Whether blocks of this size along the last axis are parts of rows of tiles."""
    # An array sharded along an axis of an explicit mesh needs whole tiles on every device.
    sharding = jax.typeof(x).sharding
    shape = sharding.shard_shape(x.shape) if sharding.mesh.are_all_axes_explicit else x.shape
    whole = len(shape) > 1 and shape[-2] % ROWS == 0 and shape[-1] % block == 0
    return whole and block % LANES == 0


def largest_in_tiles(arrays: Sequence[jax.Array], blocks: Sequence[int]) -> list[jax.Array]:
    """The largest number in each block of each array, by one reduction.

    Args:
      arrays: all of one shape, which `fits`; no negative numbers.
      blocks: for each array, the elements along the last axis.
    """
    tiles = tuple(_tiles(x) for x in arrays)
    zeros = (np.float32(0),) * len(tiles)
    found = jax.lax.reduce(tiles, zeros, _maxima, (tiles[0].ndim - 1,))
    return [_blocks(x, block // LANES) for x, block in zip(found, blocks, strict=True)]


def _maxima(x: Sequence[jax.Array], y: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    return tuple(jax.lax.max(*pair) for pair in zip(x, y, strict=True))


def spread(scale: jax.Array, block: int) -> jax.Array:
    """Repeats each block's number once per element of the block.

    Args:
      scale: one number per block of an array that `fits`.
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
    # One axis at a time: on an explicit mesh JAX cannot shard the result of splitting both.
    x = jnp.reshape(x, (*others, rows, columns // LANES, LANES))
    x = jnp.reshape(x, (*others, rows // ROWS, ROWS, columns // LANES, LANES))
    return jnp.swapaxes(x, -2, -3)


def _blocks(x: jax.Array, parts: int) -> jax.Array:
    """(..., R/8, C/128, 8) as (..., R, C/128), reduced to the maximum of `parts` neighbours."""
    x = jnp.swapaxes(x, -1, -2)
    *others, tiles, rows, columns = x.shape
    x = jnp.reshape(x, (*others, tiles * rows, columns))
    if parts == 1:
        return x
    return jnp.max(jnp.reshape(x, (*x.shape[:-1], columns // parts, parts)), axis=-1)
