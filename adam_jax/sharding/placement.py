"""The shardings of parameters and of each array of a state.

An array of a state whose path contains a parameter's path is split like that parameter. The storage
format does the splitting, so this module does not depend on codes or factors.
"""

import itertools
import math
from typing import Any, Self

import jax
import jax.core
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adam_jax._types import Leaf, Params, PyTree, State
from adam_jax.engine.boxes import axes_in
from adam_jax.engine.masks import FrozenTree
from adam_jax.engine.states import owners
from adam_jax.formats.dtypes import moves
from adam_jax.formats.policy import format_of
from adam_jax.formats.quantized import fitting_block
from adam_jax.rules.pytrees import frozen_pytree, static
from adam_jax.validation import check_integer

MIN_SIZE = 4096


@frozen_pytree
class Placement:
    """How parameters are partitioned, and how the state of each one is split.

    Attributes:
      mesh: the devices.
      axes: the mesh axes over which the state is split.
      specs: of the parameters, a tree or the prefix of one; None if they are not partitioned.
      min_size: in elements; the state of smaller parameters is not split.
    """

    mesh: Mesh = static()
    axes: tuple[str, ...] = static()
    specs: FrozenTree | None = static()
    min_size: int = static()

    @classmethod
    def of(cls, mesh: PyTree, axis: Any, specs: PyTree, min_size: Any) -> Self:
        """Checks the arguments of `shard_state`."""
        if not isinstance(mesh, Mesh):
            raise ValueError(
                f"mesh must be a jax.sharding.Mesh, got {mesh!r}: jax.make_mesh makes one."
            )
        axes = axes_in(axis)
        missing = [name for name in axes if name not in mesh.axis_names]
        if missing or not axes:
            raise ValueError(
                f"axis must be of the mesh, whose axes are {mesh.axis_names}, got {axis!r}: write"
                f" axis={mesh.axis_names[0]!r}."
            )
        frozen = None if specs is None else FrozenTree.of(specs)
        min_size = check_integer("min_size", min_size, 0, instead="0 splits all that divide")
        return cls(mesh, axes, frozen, min_size)

    def of_params(self, params: Params) -> list[PartitionSpec]:
        """The spec of each parameter; None leaves are left out."""
        if self.specs is None:
            return [PartitionSpec()] * len(jax.tree.leaves(params))
        try:
            below = self.specs.treedef.flatten_up_to(params)
        except ValueError:
            raise ValueError(
                f"specs must be a tree of PartitionSpecs like the parameters, or a prefix of it,"
                f" got {self.specs.treedef} for {jax.tree.structure(params)}."
            ) from None
        counts = (len(jax.tree.leaves(subtree)) for subtree in below)
        pairs = zip(self.specs.leaves, counts, strict=True)
        return [spec for spec, count in pairs for _ in range(count)]

    def of_state(self, params: Params) -> list[PartitionSpec]:
        """The spec of each parameter's state."""
        specs = zip(self.of_params(params), jax.tree.leaves(params), strict=True)
        # Leaves that are not updated have no computation to split.
        return [self.split(spec, np.shape(p)) if moves(p) else spec for spec, p in specs]

    def split(self, spec: PartitionSpec, shape: tuple[int, ...]) -> PartitionSpec:
        """Partitions one more dimension: the first divisible one, unpartitioned ones preferred.

        The first, since blocks of codes run along the last, and gathered data is then contiguous.
        The last dimension ranks after all others if no block fits into a part of it.
        """
        parts = [*spec, *[None] * (len(shape) - len(spec))]
        names = [axes_in(part) for part in parts]
        ways, taken = self.devices(self.axes), {*itertools.chain(*names)}
        if ways == 1 or math.prod(shape) < self.min_size or taken & {*self.axes}:
            return spec

        def rank(i: int) -> tuple[bool, bool]:
            part = shape[i] // (self.devices(names[i]) * ways)
            return i == len(shape) - 1 and fitting_block(part) is None, bool(names[i])

        for i in sorted(range(len(shape)), key=rank):
            if shape[i] % (self.devices(names[i]) * ways) == 0:
                axes = [*names[i], *self.axes]
                parts[i] = tuple(axes) if len(axes) > 1 else axes[0]
                return PartitionSpec(*parts)
        return spec

    def devices(self, axes: tuple[str, ...]) -> int:
        """The number of devices along these mesh axes."""
        return math.prod(self.mesh.shape[name] for name in axes)

    def sharding(self, spec: PartitionSpec) -> NamedSharding:
        """The sharding of a spec on this mesh."""
        return NamedSharding(self.mesh, spec)

    def place(self, tree: PyTree, specs: list[PartitionSpec]) -> PyTree:
        """Places every leaf by its spec; None leaves stay."""
        leaves, treedef = jax.tree.flatten(tree)
        placed = [self.move(x, spec) for x, spec in zip(leaves, specs, strict=True)]
        return treedef.unflatten(placed)

    def move(self, x: Leaf, spec: PartitionSpec) -> Leaf:
        """Places one array; under jit this is a sharding constraint for the compiler."""
        if not isinstance(x, jax.core.Tracer):
            return jax.device_put(x, self.sharding(spec))
        mesh = jax.typeof(x).sharding.mesh  # `inspect` describes automatic axes as explicit ones.
        if mesh.are_all_axes_explicit:
            return jax.sharding.reshard(x, NamedSharding(mesh, spec))
        return jax.lax.with_sharding_constraint(x, self.sharding(spec))

    def of_stored(
        self, state: State, params: Params
    ) -> tuple[list[NamedSharding], list[PartitionSpec]]:
        """The shardings of a state, and the specs of gradients and parameters in the step.

        Returns:
          The sharding of each array of the state, and a spec for each parameter: that of
          `of_state`, or a coarser one if the stored arrays cannot be split that way.
        """
        specs, shapes = self.of_state(params), list(map(np.shape, jax.tree.leaves(params)))
        told = list(specs)

        where = []
        for stored, i in owners(state, params):
            arrays, fmt = jax.tree.leaves(stored), format_of(stored)
            shape = () if fmt is None else fmt.shape(stored)
            if fmt is None or i is None or not shape or shapes[i] != shape:
                where += [self.sharding(PartitionSpec())] * len(arrays)
                continue
            own = jax.tree.leaves(fmt.shardings(stored, self.sharding(told[i])))
            where += own
            whole = (s.spec for x, s in zip(arrays, own, strict=True) if np.shape(x) == shape)
            specs[i] = next((spec for spec in whole if spec != told[i]), specs[i])
        return where, specs
