"""The program of a leaf as one Pallas TPU kernel, which moves each array through HBM once.

The kernel runs the step on one tile after another, with the same arithmetic as XLA's program.
"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding, PartitionSpec

from adam_jax._compat import described_like
from adam_jax._types import DType, Function, Leaf, PyTree
from adam_jax.formats.noise import Positions, strides
from adam_jax.formats.rounding import Split
from adam_jax.kernels.tiles import Tiles
from adam_jax.kernels.tpus import Kernels, on_tpus


def by_kernel(step: Function, by_xla: Function, plan: PyTree, args: tuple[Any, ...]) -> PyTree:
    """The step of a leaf by a kernel on TPUs, and by XLA elsewhere.

    Args:
      step: `leaf_step`, for a tile.
      by_xla: the step of the whole leaf.
      plan: the `Plan` of the leaf, with tiles.
      args: the numbers of the rules, `Arrays`, whether the step is taken, sums over the leaf.
    """

    tiles, sharding = plan.parts or (plan.kernel, None)

    def kernels(interpret: bool) -> Kernels:
        rest = jax.tree.structure(args), interpret
        alone = None if isinstance(plan.kernel, str) else Kernel(step, plan, plan.kernel, *rest)
        if sharding is None:
            return Kernels(alone)
        of_part = Kernel(step, plan, tiles, *rest, whole=args[1].g.shape)
        return Kernels(alone, KernelOfParts(of_part, sharding))

    every = kernels(False)
    if tiles.everywhere:
        every = every._replace(elsewhere=kernels(True))
    return on_tpus(lambda *args: by_xla(*args[:3]), every, *args)


@dataclasses.dataclass(frozen=True)
class Operand:
    """How a kernel views an array of the leaf, or the scales of its blocks."""

    tiles: Tiles  # Of the leaf.
    scales: bool  # It has one element per block.

    @property
    def transposed(self) -> bool:
        """Whether rows and columns are swapped: a few columns fill only an eighth of a register."""
        return self.scales and self.tiles.along == -1

    @property
    def vmem(self) -> tuple[int, int]:
        """Rows and columns of one block in VMEM."""
        rows, columns = self.tiles.vmem
        if not self.scales:
            return rows, columns
        if self.transposed:
            return columns // self.tiles.tile[1], rows
        return rows // self.tiles.tile[0], columns

    def spec(self, grid: tuple[int, ...]) -> pl.BlockSpec:
        """The block in VMEM at each point of the grid."""
        others = len(grid) - 2

        def index(*point: Leaf) -> tuple[Leaf, ...]:
            row, column = point[others:]
            return (*point[:others], column, row) if self.transposed else point

        return pl.BlockSpec((None,) * others + self.vmem, index)

    def read(self, block: PyTree, row: Leaf, column: Leaf) -> jax.Array:
        """The part of a block in VMEM that belongs to a tile."""
        x = block[self._tile(row, column)]
        if not self.transposed:
            return x
        return jnp.broadcast_to(x, (self.tiles.tile[1], x.shape[1])).T

    def write(self, block: PyTree, row: Leaf, column: Leaf, x: jax.Array) -> None:
        """The inverse of `read`."""
        if self.transposed:
            x = jnp.broadcast_to(x, self.tiles.tile).T[:1]
        block[self._tile(row, column)] = x

    def _tile(self, row: Leaf, column: Leaf) -> tuple[Any, Any]:
        rows, columns = (
            pl.ds(i * size if isinstance(i, int) else pl.multiple_of(i * size, size), size)
            for i, size in zip((row, column), self.tiles.tile, strict=True)
        )
        if self.transposed:
            return pl.ds(column, 1), rows
        return (pl.ds(row, 1) if self.scales else rows), columns

    def _order(self) -> tuple[int, ...]:
        *others, second, last = self.tiles.order
        return (*others, last, second) if self.transposed else self.tiles.order

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


def packed(scalars: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The floating-point numbers and the others as two vectors, which are never empty."""
    floats, integers = [jnp.zeros([], jnp.float32)], [jnp.zeros([], jnp.int32)]
    for x in scalars:
        if x.dtype == jnp.float32:
            floats.append(x)
        elif x.dtype == jnp.uint32:
            integers.append(jax.lax.bitcast_convert_type(x, jnp.int32))
        else:
            integers.append(jax.lax.convert_element_type(x, jnp.int32))
    return jnp.stack(floats), jnp.stack(integers)


def unpacked(floats: Any, integers: Any, dtypes: list[Any]) -> list[jax.Array]:
    """The inverse of `packed`, on two references."""
    scalars, of_float, of_integer = [], itertools.count(1), itertools.count(1)
    for dtype in dtypes:
        if dtype == jnp.float32:
            scalars.append(floats[next(of_float)])
        elif dtype == jnp.bool_:
            scalars.append(integers[next(of_integer)] != 0)
        else:
            scalars.append(jax.lax.convert_element_type(integers[next(of_integer)], dtype))
    return scalars


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Maps the leaves of the step's arguments to the leaves of its result.

    Attributes:
      step: of a tile: a function of the plan, these arguments and the positions in the leaf.
      plan: the `Plan` of the leaf.
      tiles: how the kernel traverses the leaf.
      structure: of these arguments; see `by_kernel`.
      interpret: compile it as an XLA program, on any platform.
      whole: the shape of the leaf if these arrays are a part of it, whose offset, uint32, is then
        the last argument; else None.
    """

    step: Callable[..., PyTree]
    plan: PyTree
    tiles: Tiles
    structure: Any
    interpret: bool = False
    whole: tuple[int, ...] | None = None

    def __call__(self, *args: Leaf) -> Sequence[jax.Array]:
        """Runs the kernel."""
        shape = self._leaf(args).g.shape
        arrays = [i for i, x in enumerate(args) if x.ndim]
        renewed, dtype = self.renewed(args)
        places = [args[i] for i in renewed]
        dtypes = [dtype, *(x.dtype for x in places[1:])]
        aliases = {
            2 + arrays.index(i): k for k, i in enumerate(renewed) if args[i].dtype == dtypes[k]
        }
        views = [Operand(self.tiles, args[i].shape != shape) for i in arrays]
        out_views = [Operand(self.tiles, x.shape != shape) for x in places]
        physical = tuple(shape[axis] for axis in self.tiles.order)
        grid = (*physical[:-2], *map(pl.cdiv, physical[-2:], self.tiles.vmem))
        kinds = [(x.ndim, x.dtype) for x in args]
        outputs = pl.pallas_call(
            functools.partial(self._body, shape, kinds, views, out_views),
            grid=grid,
            in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM)] * 2 + [v.spec(grid) for v in views],
            out_specs=[view.spec(grid) for view in out_views],
            out_shape=[v.placed(x, d) for v, x, d in zip(out_views, places, dtypes, strict=True)],
            input_output_aliases=aliases,
            interpret=self.interpret,
            name="leaf_step",
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel",) * len(grid), vmem_limit_bytes=48 * 2**20
            ),
        )(
            *packed([x for x in args if not x.ndim]),
            *(self._placed(view.seen(args[i])) for view, i in zip(views, arrays, strict=True)),
        )
        return [view.back(x) for view, x in zip(out_views, outputs, strict=True)]

    def _placed(self, x: jax.Array) -> jax.Array:
        """The array in HBM: otherwise XLA takes long to choose small leaves to copy to VMEM."""
        return x if self.interpret else pltpu.with_memory_space_constraint(x, pltpu.HBM)

    def _leaf(self, args: Sequence[PyTree]) -> PyTree:
        return self.structure.unflatten(args[: self.structure.num_leaves])[1]

    def renewed(self, args: Sequence[Leaf]) -> tuple[list[int], DType]:
        """The argument that each result replaces; and the dtype of the first result."""
        leaf, at = self._leaf(args), self._leaf(range(len(args)))
        dtype, param, rests = self.plan.dtype, at.param, []
        if isinstance(leaf.param, Split):
            dtype = leaf.param.stored.dtype if self.plan.apply else leaf.param.dtype
            param, rests = at.param.stored, jax.tree.leaves(at.param.rest)
        # The update replaces the gradient, which is not needed afterwards.
        first = param if self.plan.apply else at.g
        return [first, *rests, *jax.tree.leaves(at.stored)], dtype

    def _body(
        self,
        shape: tuple[int, ...],
        args: list[tuple[int, Any]],
        views: list[Operand],
        out_views: list[Operand],
        floats: Any,
        integers: Any,
        *refs: Any,
    ) -> None:
        """Steps the tiles of the block in VMEM."""
        scalars = unpacked(floats, integers, [dtype for ndim, dtype in args if not ndim])
        read, written = refs[: len(views)], refs[len(views) :]
        plan, layers = self.plan, self.plan.layers
        along = self.tiles.along or 0  # Unused without blocks.
        formats = tuple(
            tuple(f.of_tiles(along) if f.measures else f for f in fs) for fs in plan.formats
        )
        of_tile = plan._replace(formats=formats, kernel="", parts=None, layers=0, stride=0)
        point = [pl.program_id(axis) for axis in range(len(shape))]  # Unavailable inside loops.
        # The row-major distances of neighbours in the leaf, or in their layer, modulo 2³².
        by_axis = [0] * layers + strides((self.whole or shape)[layers:])
        steps = [np.uint32(by_axis[axis] % 2**32) for axis in self.tiles.order]
        iotas = (jax.lax.broadcasted_iota(jnp.uint32, self.tiles.tile, axis) for axis in (0, 1))
        down, across = (iota * step for iota, step in zip(iotas, steps[-2:], strict=True))
        further = down + across

        def step(row: Leaf, column: Leaf) -> None:
            arrays = (v.read(x, row, column) for v, x in zip(views, read, strict=True))
            numbers = iter(scalars)
            flat = [next(arrays) if ndim else next(numbers) for ndim, _ in args]
            begin = jnp.uint32(0) if self.whole is None else flat.pop()
            begin = self._first(begin, steps, point, row, column)
            where = Positions(begin, further, jnp.uint32(sum(map(int, steps)) % 2**32))
            numbers, leaf, taken, sums = self.structure.unflatten(flat)
            if layers:
                leaf = leaf.of_layer(self._layer(shape, point) * np.uint32(plan.stride))
            stepped = self.step(of_tile, numbers, leaf, taken, sums, where)
            results = jax.tree.leaves(stepped)
            for view, x, result in zip(out_views, written, results, strict=True):
                view.write(x, row, column, result)

        rows, columns = map(operator.floordiv, self.tiles.vmem, self.tiles.tile)
        _for_each(rows, lambda row: _for_each(columns, lambda column: step(row, column)))

    def _layer(self, shape: tuple[int, ...], point: list[jax.Array]) -> jax.Array:
        """The row-major index of the layer in VMEM."""
        steps = strides(shape[: self.plan.layers])
        at = dict(zip(self.tiles.order, point, strict=True))
        return sum(
            (_uint32(at[axis]) * np.uint32(step) for axis, step in enumerate(steps)), jnp.uint32(0)
        )

    def _first(
        self,
        begin: jax.Array,
        steps: list[np.uint32],
        point: list[jax.Array],
        row: Leaf,
        column: Leaf,
    ) -> jax.Array:
        """The position of a tile's first element in the leaf, or in its layer."""
        for i, step in zip(point[:-2], steps[:-2], strict=True):
            begin = begin + _uint32(i) * step
        for axis, i in enumerate((row, column)):
            first = point[axis - 2] * self.tiles.vmem[axis] + i * self.tiles.tile[axis]
            begin = begin + _uint32(first) * steps[axis - 2]
        return begin


@dataclasses.dataclass(frozen=True)
class KernelOfParts:
    """A kernel for each of several devices, on its part of the leaf, without communication."""

    kernel: Kernel
    sharding: NamedSharding  # Of the leaf.

    def __call__(self, *args: Leaf) -> Sequence[jax.Array]:
        """Runs the kernels."""
        specs = [self.sharding.spec if x.ndim else PartitionSpec() for x in args]
        shape = self.kernel.whole or ()

        def of_part(*args: Leaf) -> tuple[jax.Array, ...]:
            begin = jnp.uint32(0)
            part = self.sharding.shard_shape(shape)
            # The specification may be shorter than the shape.
            for axis, size, stride in zip(self.sharding.spec, part, strides(shape), strict=False):
                if axis is not None:
                    first = _uint32(jax.lax.axis_index(axis))
                    begin = begin + first * np.uint32(size * stride % 2**32)
            return tuple(self.kernel(*args, begin))

        results = len(self.kernel.renewed(args)[0])
        return jax.shard_map(
            of_part,
            mesh=self.sharding.mesh,
            in_specs=tuple(specs),
            out_specs=(self.sharding.spec,) * results,
            check_vma=False,
        )(*args)


def _for_each(count: int, f: Callable[[Leaf], None]) -> None:
    """Calls f with the integers below `count`; with a constant if there is only one.

    Mosaic schedules two turns of the loop together. With more, it takes longer to compile, but the
    kernel takes as many instructions.
    """
    if count == 1:
        f(0)
    else:
        jax.lax.fori_loop(0, count, lambda i, _: f(i), None, unroll=1 + (count % 2 == 0))


def _uint32(x: Leaf) -> jax.Array:
    return jax.lax.convert_element_type(x, jnp.uint32)
