"""How a Pallas kernel goes through a leaf on a TPU, or why XLA makes the program."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from adam_jax.engine.leaf_step import LeafArrays, Program, Steps
from adam_jax.formats.base import Format, MeasuredFormat
from adam_jax.formats.weights import Split
from adam_jax.xla.layout import order_on_tpus

LANES = 128
SMALLEST = 2**16
"""Elements of a leaf below which a kernel saves nothing that can be measured."""

DTYPES = {"float32", "bfloat16", "int4", "int8", "uint8", "int16"}
"""Of arrays that kernels read and write."""

VMEM = 12 * 2**20
"""Bytes for the blocks that are read and written, and for the next ones."""


class Plan(NamedTuple):
    """How a kernel goes through a leaf.

    Attributes:
      order: the axes of the leaf as they lie in memory: the last one along the lanes of a register.
      along: the axis of a tile, -1 or -2, that is one block of a format; None if there are none.
      vmem: rows and columns that lie in VMEM at a time.
      tile: rows and columns that are stepped at a time.
    """

    order: tuple[int, ...]
    along: int | None
    vmem: tuple[int, int]
    tile: tuple[int, int]


def plan_of(program: Program, steps: Steps, leaf: LeafArrays) -> Plan | str:
    """The plan of a leaf, or why it has none, as the end of a sentence."""
    formats = [fmt for fs in program.formats for fmt in fs]
    fused = not any(isinstance(fmt, MeasuredFormat) or fmt.stochastic for fmt in formats)
    if fused and (not isinstance(leaf.param, Split) or leaf.param.rest is None):
        return "XLA steps it in one pass"
    shape = jnp.shape(leaf.g)
    return _refused(program, steps, leaf, formats) or _planned(shape, formats, _bytes(leaf))


def _refused(program: Program, steps: Steps, leaf: LeafArrays, formats: list[Format]) -> str | None:
    """Why no kernel can step this leaf, whatever its shape, or is worth it."""
    whole = [type(rule).__name__ for rule, _ in steps if not rule.elementwise]
    whole += [type(fmt).__name__ for fmt in formats if fmt.block is None]
    if whole:
        return f"{whole[0]} sees whole leaves"
    arrays = [x for x in jax.tree.leaves(leaf) if jnp.ndim(x)]
    unknown = {jnp.dtype(x.dtype).name for x in arrays} | {jnp.dtype(program.dtype).name}
    if unknown := sorted(unknown - DTYPES):
        return f"Mosaic has no {unknown[0]}"
    if jnp.result_type(float) != jnp.float32 or any(jnp.ndim(x) for x in jax.tree.leaves(steps)):
        return "its scalars are not float32 numbers"
    shape = jnp.shape(leaf.g)
    if len(shape) < 2 or math.prod(shape) < SMALLEST:
        return f"it is a vector, or has less than {SMALLEST} elements"
    return None


def _bytes(leaf: LeafArrays) -> float:
    """Read and written, per element, at most."""
    shape = jnp.shape(leaf.g)
    read = [x.dtype for x in jax.tree.leaves(leaf) if jnp.shape(x) == shape]
    written = jax.tree.leaves((leaf.stored, leaf.param))
    written = [x.dtype for x in written if jnp.shape(x) == shape]
    return sum(jnp.dtype(d).itemsize for d in (*read, *written, jnp.float32))


def _planned(shape: tuple[int, ...], formats: list[Format], size: float) -> Plan | str:
    """The largest parts, up to those of which larger ones are no faster, that fit into VMEM."""
    order = order_on_tpus(shape)
    rows, columns = (shape[axis] for axis in order[-2:])
    along = order.index(len(shape) - 1) - len(shape)
    blocks = {fmt.block for fmt in formats if fmt.block is not None} - {1}
    if len(blocks) > 1:
        return f"it has blocks of {' and '.join(map(str, sorted(blocks)))} elements"
    block = blocks.pop() if blocks else None
    most = VMEM / (2 * size)
    if block is None:
        wide = min(1024, _multiple(columns, LANES))
        high = _largest((256, 128, 64, 32), _multiple(rows, 32), wide, most)
        return Plan(order, None, (high, wide), (min(high, 128), LANES)) if high else TOO_LARGE
    if along == -1:
        if block % LANES:
            return f"blocks of {block} elements are not whole registers of {LANES}"
        wide = min(columns, 8 * block)
        high = rows if rows < 128 else _largest((256, 128), rows, wide, most)
        tile = (high if rows < 128 else 128, block)
        return Plan(order, -1, (high, wide), tile) if high and high * wide <= most else TOO_LARGE
    if along == -2:
        wide = columns if columns < LANES else _largest((512, 256, LANES), columns, rows, most)
        return Plan(order, -2, (rows, wide), (block, min(wide, LANES))) if wide else TOO_LARGE
    return "its blocks lie along neither of the axes that are in a register"


TOO_LARGE = "what has to be in VMEM at a time is too large"


def _largest(sizes: tuple[int, ...], limit: int, other: int, most: float) -> int:
    return next((n for n in sizes if n <= limit and n * other <= most), 0)


def _multiple(size: int, of: int) -> int:
    return -(-size // of) * of
