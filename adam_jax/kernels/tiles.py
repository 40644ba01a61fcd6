"""How a Pallas kernel traverses a leaf on a TPU, or why XLA runs the leaf.

A kernel reads its operands row by row. With jax 0.10.2 and libtpu 0.0.52, XLA:TPU stores a
program's arguments and results in the axis order that wastes the least of its tiles of 8 x 128
elements: (1024, 16, 64) with its first axis along the 128. An operand in another order is copied. A
step of 8-bit moments then moves 144 bytes per parameter instead of 16.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from adam_jax._compat import KERNELS
from adam_jax._types import PyTree
from adam_jax.formats.base import Format
from adam_jax.rules.base import Rule

LANES = 128
SMALLEST = 2**16
"""A kernel saves nothing measurable on leaves with fewer elements."""

DTYPES = {"float32", "bfloat16", "int4", "int8", "uint8", "int16"}
"""Dtypes of the arrays that kernels read and write."""

VMEM = 12 * 2**20
"""Bytes for the blocks that are read and written, and for the prefetched next blocks."""


class Tiles(NamedTuple):
    """How a kernel traverses a leaf.

    Attributes:
      order: the axes of the leaf in memory order; the last one is along the lanes of a register.
      along: the axis of a tile, -1 or -2, that is one block of a format; None without blocks.
      vmem: rows and columns of one block in VMEM.
      tile: rows and columns that are stepped at once.
      everywhere: also on other platforms, interpreted.
    """

    order: tuple[int, ...]
    along: int | None
    vmem: tuple[int, int]
    tile: tuple[int, int]
    everywhere: bool = False


def tiles_of(
    rules: Sequence[Rule],
    formats: Sequence[Format],
    leaf: PyTree,
    everywhere: bool,
    sharding: NamedSharding | None,
    layers: int,
) -> tuple[Tiles | str, tuple[Tiles, NamedSharding] | None]:
    """How a kernel traverses a leaf, or why none does; and how it traverses each device's part.

    Args:
      rules: that the leaf runs.
      formats: of all its slots.
      leaf: its arrays, the gradient in `g` and the parameter in `param`.
      everywhere: also on other platforms, interpreted.
      sharding: of the leaf; None if unknown.
      layers: its number of layer axes.
    """
    shape, arrays = np.shape(leaf.g), jax.tree.leaves(leaf)
    size = 2 * sum(jnp.dtype(x.dtype).itemsize for x in arrays if jnp.shape(x) == shape)

    def of_part(part: tuple[int, ...]) -> Tiles | str:
        why = _refused(rules, formats, part, arrays, layers)
        return why or _planned(part, formats, size, layers, everywhere)

    parts = None
    if sharding is not None and not any(sharding.spec[:layers]):
        of_device = of_part(sharding.shard_shape(shape))
        parts = (of_device, sharding) if isinstance(of_device, Tiles) else None
    return of_part(shape), parts


def _refused(
    rules: Sequence[Rule],
    formats: Sequence[Format],
    shape: tuple[int, ...],
    arrays: Sequence[jax.Array],
    layers: int,
) -> str | None:
    """Why no kernel can step this leaf in any memory layout, or why it is not worthwhile."""
    if layers and any(rule.reads_sums for rule in rules):
        return "each of its layers has its own norms or means"
    if not KERNELS:
        return "the kernels need jax 0.10"
    whole = [type(rule).__name__ for rule in rules if not rule.elementwise]
    whole += [type(fmt).__name__ for fmt in formats if fmt.unit is None]
    if whole:
        return f"{whole[0]} sees whole leaves"
    names = {jnp.dtype(x.dtype).name for x in arrays if jnp.ndim(x)}
    if unknown := sorted(names - DTYPES):
        return f"kernels know no {unknown[0]}"
    if jnp.result_type(float) != jnp.float32 or any(map(jnp.ndim, jax.tree.leaves(rules))):
        return "its hyperparameters are not single numbers of 32 bits"
    if len(shape) < 2 or math.prod(shape) < SMALLEST:
        return f"it is a vector, or has less than {SMALLEST} elements"
    return None


def _planned(
    shape: tuple[int, ...], formats: Sequence[Format], size: float, layers: int, everywhere: bool
) -> Tiles | str:
    """The largest blocks that fit into VMEM, up to the size beyond which they are no faster."""
    order = order_on_tpus(shape)
    if min(order[-2:]) < layers:
        return "a register holds several layers"
    rows, columns = (shape[axis] for axis in order[-2:])
    along = order.index(len(shape) - 1) - len(shape)
    blocks = {fmt.unit for fmt in formats if fmt.unit is not None} - {1}
    if len(blocks) > 1:
        return f"it has blocks of {' and '.join(map(str, sorted(blocks)))} elements"
    block = blocks.pop() if blocks else None
    if block is not None and shape[-1] % block:
        return "a block lies on two devices"
    most = VMEM / (2 * size)
    if block is None:
        wide = min(1024, _multiple(columns, LANES))
        high = _largest((256, 128, 64, 32), _multiple(rows, 32), wide, most)
        vmem, tile = (high, wide), (high, LANES)
    elif along == -1:
        if block % LANES:
            return f"blocks of {block} elements are not whole registers of {LANES}"
        wide = min(columns, 8 * block)
        sizes = (rows,) if rows < 128 else (256, 128)
        high = _largest(sizes, rows, wide, most)
        vmem, tile = (high, wide), (high, block)
    elif along == -2:
        wide = columns if columns < LANES else _largest((512, 256, LANES), columns, rows, most)
        vmem, tile = (rows, wide), (block, min(wide, LANES))
    else:
        return "its blocks lie along neither of the axes that are in a register"
    if not min(vmem):
        return TOO_LARGE
    return Tiles(order, None if block is None else along, vmem, tile, everywhere)


TOO_LARGE = "the blocks needed in VMEM at once are too large"


def order_on_tpus(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes in storage order: last the one along the 128, before it the one along the 8.

    Args:
      shape: two axes or more.
    """
    axes = range(len(shape))

    def size(pair: tuple[int, int]) -> int:
        second, last = pair
        rows = min(8, max(4, 1 << (shape[second] - 1).bit_length()))
        others = math.prod(shape[axis] for axis in axes if axis not in pair)
        return others * _multiple(shape[second], rows) * _multiple(shape[last], 128)

    pairs = itertools.permutations(reversed(axes), 2)
    pair = min(((second, last) for last, second in pairs), key=size)
    return (*(axis for axis in axes if axis not in pair), *pair)


def _largest(sizes: tuple[int, ...], limit: int, other: int, most: float) -> int:
    return next((n for n in sizes if n <= limit and n * other <= most), 0)


def _multiple(size: int, of: int) -> int:
    return -(-size // of) * of
