"""The arrays of a leaf as a kernel sees them: blocks in VMEM, tiles of blocks, and their layout."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from adam_jax._compat import described_like
from adam_jax._types import DType, Leaf, PyTree
from adam_jax.engine.plan import Plan


@dataclasses.dataclass(frozen=True)
class View:
    """How a kernel views an array of the leaf, or the scales of its blocks.

    Attributes:
      plan: of the leaf.
      scales: whether it has one element per block.
    """

    plan: Plan
    scales: bool

    @property
    def turned(self) -> bool:
        """Whether rows and columns are swapped: a few columns fill only an eighth of a register."""
        return self.scales and self.plan.along == -1

    @property
    def vmem(self) -> tuple[int, int]:
        """Rows and columns of one block in VMEM."""
        rows, columns = self.plan.vmem
        if not self.scales:
            return rows, columns
        if self.turned:
            return columns // self.plan.tile[1], rows
        return rows // self.plan.tile[0], columns

    def spec(self, grid: tuple[int, ...]) -> pl.BlockSpec:
        """The block in VMEM at each point of the grid."""
        others = len(grid) - 2

        def index(*point: Leaf) -> tuple[Leaf, ...]:
            row, column = point[others:]
            return (*point[:others], column, row) if self.turned else point

        return pl.BlockSpec((None,) * others + self.vmem, index)

    def read(self, block: PyTree, row: Leaf, column: Leaf) -> jax.Array:
        """The part of a block in VMEM that belongs to a tile."""
        x = block[self._tile(row, column)]
        if not self.turned:
            return x
        return jnp.broadcast_to(x, (self.plan.tile[1], x.shape[1])).T

    def write(self, block: PyTree, row: Leaf, column: Leaf, x: jax.Array) -> None:
        """The inverse of `read`."""
        if self.turned:
            x = jnp.broadcast_to(x, self.plan.tile).T[:1]
        block[self._tile(row, column)] = x

    def _tile(self, row: Leaf, column: Leaf) -> tuple[Any, Any]:
        rows, columns = (
            pl.ds(i * size if isinstance(i, int) else pl.multiple_of(i * size, size), size)
            for i, size in zip((row, column), self.plan.tile, strict=True)
        )
        if self.turned:
            return pl.ds(column, 1), rows
        return (pl.ds(row, 1) if self.scales else rows), columns

    def _order(self) -> tuple[int, ...]:
        *others, second, last = self.plan.order
        return (*others, last, second) if self.turned else (*others, second, last)

    def seen(self, x: jax.Array) -> jax.Array:
        """The array in its memory layout: nothing is moved."""
        return jnp.transpose(x, self._order())

    def placed(self, x: Leaf, dtype: DType) -> jax.ShapeDtypeStruct:
        """The shape and dtype of the result that replaces x, in this view."""
        shape = tuple(x.shape[axis] for axis in self._order())
        return described_like(x, shape, dtype)

    def back(self, x: jax.Array) -> jax.Array:
        """The inverse of `seen`."""
        return jnp.transpose(x, np.argsort(self._order()).tolist())
