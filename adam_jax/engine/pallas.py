"""The program of a leaf as one Pallas TPU kernel, which moves each array through HBM once.

The kernel runs the step on one tile after another, with the same arithmetic as XLA's program.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding, PartitionSpec

from adam_jax._types import DType, Leaf, PyTree
from adam_jax.engine.kernel_numbers import packed, unpacked
from adam_jax.engine.kernel_views import View
from adam_jax.engine.leaf import LeafArrays, Program, Stepped
from adam_jax.engine.plan import Plan
from adam_jax.formats.blockwise import Blockwise
from adam_jax.formats.noise import Positions, strides
from adam_jax.formats.rounding import Split


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Maps the leaves of the step's arguments to the leaves of its result.

    Attributes:
      step: of a tile: a function of the program, these arguments and the positions in the leaf.
      program: the static description of the step, without the plan.
      plan: how the kernel traverses the leaf.
      structure: of these arguments, without the program.
      interpret: compile it as an XLA program, on any platform.
      whole: the shape of the leaf if these arrays are a part of it, whose offset, uint32, is then
        the last argument; else None.
    """

    step: Callable[..., Stepped]
    program: Program
    plan: Plan
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
        views = [View(self.plan, args[i].shape != shape) for i in arrays]
        out_views = [View(self.plan, x.shape != shape) for x in places]
        physical = tuple(shape[axis] for axis in self.plan.order)
        grid = (*physical[:-2], *map(pl.cdiv, physical[-2:], self.plan.vmem))
        outputs = pl.pallas_call(
            functools.partial(
                self._body, shape, [(x.ndim, x.dtype) for x in args], views, out_views
            ),
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

    def _leaf(self, args: Sequence[PyTree]) -> LeafArrays:
        return self.structure.unflatten(args[: self.structure.num_leaves])[1]

    def renewed(self, args: Sequence[Leaf]) -> tuple[list[int], DType]:
        """The argument that each result replaces; and the dtype of the first result."""
        leaf, at = self._leaf(args), self._leaf(range(len(args)))
        dtype, param, rests = self.program.dtype, at.param, []
        if isinstance(leaf.param, Split):
            dtype = leaf.param.stored.dtype if self.program.apply else leaf.param.dtype
            param, rests = at.param.stored, jax.tree.leaves(at.param.rest)
        # The update replaces the gradient, which is not needed afterwards.
        first = param if self.program.apply else at.g
        return [first, *rests, *jax.tree.leaves(at.stored)], dtype

    def _body(
        self,
        shape: tuple[int, ...],
        args: list[tuple[int, Any]],
        views: "list[View]",
        out_views: "list[View]",
        *refs: Any,
    ) -> None:
        """Steps the tiles of the block in VMEM."""
        scalars = unpacked(refs[0], refs[1], [dtype for ndim, dtype in args if not ndim])
        read = refs[2 : 2 + len(views)]
        written = refs[2 + len(views) :]
        program = self._program_of_tiles()
        point = [pl.program_id(axis) for axis in range(len(shape))]  # Unavailable inside loops.
        further = self._further(self.whole or shape)

        def step(row: Leaf, column: Leaf) -> None:
            arrays = (v.read(x, row, column) for v, x in zip(views, read, strict=True))
            numbers = iter(scalars)
            flat = [next(arrays) if ndim else next(numbers) for ndim, _ in args]
            begin = jnp.uint32(0) if self.whole is None else flat.pop()
            where = self._positions(self.whole or shape, begin, point, row, column, further)
            steps, leaf, taken, reduced = self.structure.unflatten(flat)
            if self.program.layers:
                leaf = leaf.of_layer(self._layer(shape, point) * np.uint32(self.program.stride))
            stepped = self.step(program, steps, leaf, taken, reduced, where)
            results = jax.tree.leaves(stepped)
            for view, x, result in zip(out_views, written, results, strict=True):
                view.write(x, row, column, result)

        _for_tiles(self.plan, step)

    def _program_of_tiles(self) -> Program:
        along = self.plan.along or 0  # Unused without blocks.
        formats = tuple(
            tuple(f.of_tiles(along) if isinstance(f, Blockwise) else f for f in fs)
            for fs in self.program.formats
        )
        return self.program._replace(formats=formats, plan="", parts=None, layers=0, stride=0)

    def _layer(self, shape: tuple[int, ...], point: list[jax.Array]) -> jax.Array:
        """The row-major index of the layer in VMEM."""
        steps = strides(shape[: self.program.layers])
        at = dict(zip(self.plan.order, point, strict=True))
        return sum(
            (_uint32(at[axis]) * np.uint32(step) for axis, step in enumerate(steps)), jnp.uint32(0)
        )

    def _steps(self, shape: tuple[int, ...]) -> list[np.uint32]:
        """The row-major distances of neighbours in the leaf, or in their layer, modulo 2³²."""
        layers = self.program.layers
        by_axis = [0] * layers + strides(shape[layers:])
        return [np.uint32(by_axis[axis] % 2**32) for axis in self.plan.order]

    def _further(self, shape: tuple[int, ...]) -> jax.Array:
        """The distance of each element of a tile from the first."""
        rows, columns = (
            jax.lax.broadcasted_iota(jnp.uint32, self.plan.tile, axis) * step
            for axis, step in enumerate(self._steps(shape)[-2:])
        )
        return rows + columns

    def _positions(
        self,
        shape: tuple[int, ...],
        begin: jax.Array,
        point: list[jax.Array],
        row: Leaf,
        column: Leaf,
        further: jax.Array,
    ) -> Positions:
        """The positions of a tile's elements in the leaf, or in their layer."""
        steps = self._steps(shape)
        for i, step in zip(point[:-2], steps[:-2], strict=True):
            begin = begin + _uint32(i) * step
        for axis, i in enumerate((row, column)):
            first = point[axis - 2] * self.plan.vmem[axis] + i * self.plan.tile[axis]
            begin = begin + _uint32(first) * steps[axis - 2]
        return Positions(begin, further, jnp.uint32(sum(map(int, steps)) % 2**32))


@dataclasses.dataclass(frozen=True)
class KernelOfParts:
    """A kernel for each of several devices, on its part of the leaf, without communication.

    Attributes:
      kernel: for the arrays of one device.
      sharding: of the leaf.
    """

    kernel: Kernel
    sharding: NamedSharding

    def __call__(self, *args: Leaf) -> Sequence[jax.Array]:
        """Runs the kernels."""
        specs = [self.sharding.spec if x.ndim else PartitionSpec() for x in args]
        shape = self.kernel.whole or ()
        axes = [*self.sharding.spec, *[None] * (len(shape) - len(self.sharding.spec))]

        def of_part(*args: Leaf) -> tuple[jax.Array, ...]:
            begin = jnp.uint32(0)
            part = self.sharding.shard_shape(shape)
            for axis, size, stride in zip(axes, part, strides(shape), strict=True):
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


def _for_tiles(plan: Plan, step: Callable[[Leaf, Leaf], None]) -> None:
    """Calls `step` with the row and column of each tile in a block."""
    rows, columns = (size // part for size, part in zip(plan.vmem, plan.tile, strict=True))
    _for_each(rows, lambda row: _for_each(columns, lambda column: step(row, column)))


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
