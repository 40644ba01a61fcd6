"""The largest magnitude in each block; on CPUs it keeps NaNs and is vectorized.

XLA:CPU, in jax 0.10.2:

  * Its maximum along a last axis of 64 elements or more loses NaNs. A sum keeps them.
  * If every element is tested for NaN, it stores each 8-bit moment twice: 1.9 instead of 1.0 bytes
    of temporaries per parameter, and a step takes 5.1 instead of 2.7 times AdamW's time.
  * It reduces the last axis one element at a time, and other axes many at a time. Reshaping blocks
    into `LANES` columns saves a third of the time of a step.

XLA:GPU behaves in none of these ways, and would launch four more kernels for the sum.

Delete it when tests/xla/test_maxima.py finds that a maximum keeps its NaNs. `elsewhere` is then
enough, if its bytes and the 8-bit rows in benchmarks/step.py stay the same.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax._types import Function
from adam_jax.xla.tiles import fits, largest_in_tiles, spread

LANES = 16


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
    """The largest magnitude in each block of arrays of one shape; infinite where there is a NaN.

    On TPUs this is one reduction, if the blocks fit the tiles.
    """
    if any(of.along is not None for of in arrays):
        return [jnp.max(magnitudes(x), axis=along, keepdims=True) for x, _, along in arrays]
    blocks = [of.block for of in arrays]

    # Other orders of these lines also store each moment twice.
    def on_cpu(x: jax.Array, block: int) -> jax.Array:
        missing = jnp.isnan(jnp.sum(in_blocks(x, block), axis=-1))
        sizes = in_blocks(jnp.abs(x), block)
        if sizes.shape[-1] % LANES == 0:
            lanes = (*sizes.shape[:-1], sizes.shape[-1] // LANES, LANES)
            sizes = jnp.max(jnp.reshape(sizes, lanes), axis=-2)
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
