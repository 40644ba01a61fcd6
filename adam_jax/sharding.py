"""Optimizer state beyond one device: sharded (ZeRO-1), spread by matrices, or in host memory.

An array of a state whose path contains a parameter's path is split like that parameter. The storage
format does the splitting, so nothing here depends on codes or factors.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import jax
import jax.core
import numpy as np
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from adam_jax._types import AnyTransformation, Function, Leaf, Params, PyTree, State
from adam_jax.core.boxes import axes_in
from adam_jax.core.masks import FrozenTree
from adam_jax.core.states import owners
from adam_jax.core.step import Body, Step
from adam_jax.core.transformation import Transformation, body_of
from adam_jax.core.trees import leaf_paths
from adam_jax.formats.base import sharding_of
from adam_jax.formats.blockwise import fitting_block
from adam_jax.formats.dense import format_of, is_floating
from adam_jax.pytrees import frozen_pytree, static
from adam_jax.spreading import SpreadState, placed_as, specs_of, spread
from adam_jax.validation import check_expression, check_integer, printed

__all__ = ["SpreadState", "offload", "shard_state", "spread", "state_shardings"]

MIN_SIZE = 4096


@frozen_pytree
class Offloaded(Body):
    """The body of `offload`, with its arguments."""

    inner: Body
    where: str = static()

    def init(self, params: Params) -> State:
        """The inner state, with the selected arrays in host memory."""
        return self.stored(self.inner.init(params))

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        """The inner step, between two transfers."""
        fetched = self.moved(state, lambda x: jax.device_put(x, jax.memory.Space.Device))
        out, new = self.inner.run(step, fetched)
        return out, self.stored(new)

    def stored(self, state: State) -> State:
        """The state with the selected arrays in host memory."""

        def store(x: Leaf) -> Leaf:
            if isinstance(x, jax.core.Tracer):
                return jax.device_put(x, jax.memory.Space.Host)
            return jax.device_put(x, x.sharding.with_memory_kind("pinned_host"))

        return self.moved(state, store)

    def moved(self, state: State, move: Function) -> State:
        """The state with the selected arrays moved."""
        leaves, treedef = jax.tree.flatten(state)
        pairs = zip(leaves, self.on_host(state), strict=True)
        return treedef.unflatten([move(x) if host else x for x, host in pairs])

    def on_host(self, state: State) -> list[bool]:
        """Whether each array of the state belongs in host memory."""
        pairs = zip(jax.tree.leaves(state), leaf_paths(state, none_is_leaf=False), strict=True)
        return [x.ndim > 0 and re.fullmatch(self.where, path) is not None for x, path in pairs]


def offload(tx: optax.GradientTransformation, *, where: str = r".*") -> Transformation:
    r"""Keeps the state in pinned host memory, from which each step fetches it leaf by leaf.

    The device holds only a few leaves of the state at a time. Each step transfers the state both
    ways: 16 bytes per parameter for float32 moments, 4 for 8-bit moments, which are preferable.

    Args:
      tx: any Optax transformation; the state is its own.
      where: a regular expression that must match the whole path of an array in the state to offload
        it: `r".*/nu/.*"`, or `r".*/embedding/.*"` for everything that belongs to those parameters.
        Scalars, such as the step count, stay on the device.

    Returns:
      A transformation to put around all others, including `shard_state`. Under jit the state has
      host-memory types on input and on output, and may be donated.

    Raises:
      ValueError: an invalid regular expression.

    Differs from PyTorch (DeepSpeed's ZeRO-Offload) in: the step itself runs on the device.
    """
    where = check_expression("where", where)
    return Transformation.around(Offloaded(body_of("tx", tx), where))


@frozen_pytree
class Placement:
    """How parameters are partitioned, and how the state of each one is split.

    Attributes:
      mesh: the devices.
      axes: the mesh axes over which the state is split.
      specs: of the parameters, a tree or the prefix of one; None if they are not partitioned.
      min_size: in elements; the state of smaller parameters is not split.
    """

    mesh: Mesh | AbstractMesh = static()
    axes: tuple[str, ...] = static()
    specs: FrozenTree | None = static()
    min_size: int = static()

    @classmethod
    def of(cls, mesh: PyTree, axis: Any, specs: PyTree, min_size: Any) -> Self:
        """Checks the arguments of `shard_state`."""
        if not isinstance(mesh, Mesh | AbstractMesh):
            raise ValueError(
                f"mesh must be a jax.sharding.Mesh, got {printed(mesh)}: jax.make_mesh makes one."
            )
        axes = axes_in(axis)
        if not axes or not {*axes} <= {*mesh.axis_names}:
            raise ValueError(
                f"axis must be of the mesh, whose axes are {mesh.axis_names}, got {printed(axis)}:"
                f" write axis={mesh.axis_names[0]!r}."
            )
        min_size = check_integer("min_size", min_size, 0, instead="0 splits all that divide")
        return cls(mesh, axes, None if specs is None else FrozenTree.of(specs), min_size)

    def of_params(self, params: Params) -> list[PartitionSpec]:
        """The spec of each parameter; None leaves are left out."""
        specs = FrozenTree.of(PartitionSpec()) if self.specs is None else self.specs
        return specs_of(specs, params)

    def of_state(self, params: Params) -> list[PartitionSpec]:
        """The spec of each parameter's state."""
        specs = zip(self.of_params(params), jax.tree.leaves(params), strict=True)
        # Leaves that are not updated have no computation to split.
        return [self.split(spec, np.shape(p)) if is_floating(p) else spec for spec, p in specs]

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

    def place(self, tree: PyTree, specs: Iterable[PartitionSpec]) -> PyTree:
        """Places every leaf by its spec; None leaves stay."""
        leaves, treedef = jax.tree.flatten(tree)
        pairs = zip(leaves, specs, strict=True)
        return treedef.unflatten([placed_as(x, NamedSharding(self.mesh, s)) for x, s in pairs])

    def of_stored(
        self, state: State, params: Params
    ) -> tuple[list[PartitionSpec], list[PartitionSpec]]:
        """The spec of each array of a state, and of each parameter in the step.

        That is the spec of `of_state`, or a coarser one if the stored arrays cannot be split so.
        """
        told, shapes = self.of_state(params), list(map(np.shape, jax.tree.leaves(params)))
        specs, where = list(told), []
        for stored, i in owners(state, params):
            arrays, fmt = jax.tree.leaves(stored), format_of(stored)
            shape = () if fmt is None else fmt.shape(stored)
            if fmt is None or i is None or not shape or shapes[i] != shape:
                where += [PartitionSpec()] * len(arrays)
                continue
            shardings = fmt.shardings(stored, NamedSharding(self.mesh, told[i]))
            own = [x.spec for x in jax.tree.leaves(shardings)]
            where += own
            whole = (s for x, s in zip(arrays, own, strict=True) if np.shape(x) == shape)
            specs[i] = next((spec for spec in whole if spec != told[i]), specs[i])
        by_matrix = PartitionSpec(self.axes)  # Arrays in a SpreadState, which no leaf owns.
        flat = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, SpreadState))
        its = [isinstance(x, SpreadState) for x in flat for _ in jax.tree.leaves(x)]
        return [by_matrix if own else w for own, w in zip(its, where, strict=True)], specs

    def check_devices(self, arrays: PyTree) -> None:
        """Checks that there are devices for arrays that are not traced."""
        if isinstance(self.mesh, AbstractMesh) and not _is_traced(arrays):
            raise ValueError(
                "mesh must have devices, got an AbstractMesh, which stands for those of another"
                " run, in state_shardings: train with shard_state(tx, jax.make_mesh(...))."
            )

    def shardings(self, state: State, params: Params) -> PyTree:
        """A tree like the state with the sharding of each array."""
        where, _ = self.of_stored(state, params)
        return jax.tree.structure(state).unflatten(NamedSharding(self.mesh, s) for s in where)


@frozen_pytree
class Sharded(Body):
    """The body of `shard_state`."""

    inner: Body
    placement: Placement

    def init(self, params: Params) -> State:
        """The inner state, split over the devices from the start."""
        self.placement.check_devices(params)
        self.check(params)
        if not _is_traced(params) and not _all_explicit(params):
            state = jax.jit(self.init)(params)
        else:
            split = self.placement.place(params, self.placement.of_state(params))
            state = self.explicit_init(split)
        return self.placement.place(state, self.placement.of_stored(state, params)[0])

    def explicit_init(self, params: Params) -> PyTree:
        """`init` with shardings in the types of the parameters, since blocks depend on them."""
        if _all_explicit(params):
            return self.inner.init(params)
        automatic = self.placement.mesh.abstract_mesh
        explicit = automatic.update(axis_types=(AxisType.Explicit,) * len(automatic.axis_names))
        leaves, treedef = jax.tree.flatten(params)
        told = [NamedSharding(explicit, spec) for spec in self.placement.of_state(params)]
        with jax.sharding.use_abstract_mesh(explicit):
            state = self.inner.init(treedef.unflatten(jax.sharding.reshard(leaves, told)))
        untold = NamedSharding(automatic, PartitionSpec())
        with jax.sharding.use_abstract_mesh(automatic):
            return jax.tree.map(lambda x: jax.sharding.reshard(x, untold), state)

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        """The inner step; each device steps its own part of the gradients and parameters."""
        placement, missing = self.placement, len(step.here) < step.treedef.num_leaves
        placement.check_devices(state)
        # If a gradient is None and params are not given, its part of the state is unknown.
        partly = missing and step.params is None
        known = step.params if missing and not partly else step.tree
        where, specs = placement.of_stored(state, known)
        paths = leaf_paths(known, none_is_leaf=False)
        split = dict(zip(paths, specs, strict=True))
        whole = dict(zip(paths, placement.of_params(known), strict=True))

        def place(leaves: Sequence[Leaf], specs: Mapping[str, PartitionSpec]) -> list[Leaf]:
            its = [specs[path] for path, x in zip(step.paths, leaves, strict=True) if x is not None]
            return placement.place(list(leaves), its)

        # Parameters first with their own specs: otherwise a loop around the step would carry only
        # this device's part, and the parameters it returns would be split as well.
        g, p = place(step.g, split), place(place(step.p, whole), split)
        if not partly and not _is_traced(state):  # Under jit XLA infers the state's sharding.
            state = placement.place(state, where)
        shardings = {path: NamedSharding(placement.mesh, spec) for path, spec in split.items()}
        out, new = self.inner.run(step.but(g=g, p=p, shardings=shardings), state)
        new = new if partly else placement.place(new, where)
        results = place(out.finished(), whole)
        return out.but(g=results, p=step.p, factors=(), done=out.done or out.last), new

    def check(self, params: Params) -> None:
        """Checks that parameters are partitioned as `specs` says, where that is visible."""
        paths, leaves = leaf_paths(params, none_is_leaf=False), jax.tree.leaves(params)
        for path, p, spec in zip(paths, leaves, self.placement.of_params(params), strict=True):
            found = None if isinstance(p, jax.core.Tracer) else sharding_of(p)
            told = NamedSharding(self.placement.mesh, spec)
            if isinstance(found, NamedSharding) and not told.is_equivalent_to(found, np.ndim(p)):
                raise ValueError(
                    f"specs must say how the parameters are partitioned, got {spec} for {path!r},"
                    f" which is {found.spec} on {dict(found.mesh.shape)}: write"
                    f" specs=jax.tree.map(lambda p: p.sharding.spec, params)."
                )


def shard_state(
    tx: optax.GradientTransformation,
    mesh: Mesh | AbstractMesh,
    axis: str | tuple[str, ...] = "data",
    *,
    specs: PyTree = None,
    min_size: int = MIN_SIZE,
) -> Transformation:
    """Splits the state over the devices that hold copies of the parameters (ZeRO, stage 1).

    Each of n devices keeps 1/n of the state and steps 1/n of every parameter. XLA reduce-scatters
    the gradients and all-gathers the new parameters, which together sends as many bytes as the
    all-reduce that they replace. (On CPUs, and on 16 TPU chips, it sends 1.5 times as many.)

    Args:
      tx: any Optax transformation; the state is its own, and so are checkpoints.
      mesh: the devices; a `jax.sharding.AbstractMesh` for those of another run (`state_shardings`).
      axis: the axis of the mesh, or several, over which batches are split and parameters are not.
      specs: how the parameters are already partitioned, over other axes (tensor parallelism) or
        this one (FSDP, which splits their state as well): a tree of `PartitionSpec`s like the
        parameters, or a prefix of it. None if they are not partitioned.
      min_size: in elements; the state of smaller parameters is replicated, not split.

    Returns:
      A transformation to put around all others. `init` outside jit shards the state as it creates
      it: no device ever holds all of it. Restore a checkpoint with `state_shardings`, or pass the
      restored state directly to the step. A state stored in another format than `init` would use
      keeps its format and is split as far as that allows.

    Raises:
      ValueError: the mesh has no such axis; `tx` is offloaded; in `init`, parameters that are
        partitioned otherwise than `specs` says.

    Differs from PyTorch (`ZeroRedundancyOptimizer`) in: each parameter is split, not assigned whole
    to one device; DeepSpeed's stage 1 also splits.

    Reference: Rajbhandari et al. 2020, section 5.1 (P_os). Xu et al. 2020, weight-update sharding.
    """
    body = body_of("tx", tx)
    if isinstance(body, Offloaded):
        raise ValueError(
            "tx must not be offloaded, since the state would return to the devices: write"
            " offload(shard_state(tx, mesh))."
        )
    return Transformation.around(Sharded(body, Placement.of(mesh, axis, specs, min_size)))


def without_sharding(tx: AnyTransformation) -> PyTree:
    """The same transformation on one device."""

    def is_sharded(x: Leaf) -> bool:
        return isinstance(x, Sharded)

    return jax.tree.map(lambda x: x.inner if is_sharded(x) else x, tx, is_leaf=is_sharded)


def like_params(state: State, params: Params) -> PyTree:
    """The shardings of a state that is partitioned like its parameters; counts are replicated.

    Parameters are `jax.ShapeDtypeStruct`s with shardings on one mesh, or none if replicated.
    """
    [mesh, *_] = (p.sharding.mesh for p in jax.tree.leaves(params) if p.sharding)
    whole = PartitionSpec()
    specs = FrozenTree.of(jax.tree.map(lambda p: p.sharding.spec if p.sharding else whole, params))
    return Placement(mesh, (), specs, 0).shardings(state, params)


def state_shardings(
    tx: optax.GradientTransformation,
    params: Params,
    mesh: Mesh,
    axis: str | tuple[str, ...] = "data",
    *,
    specs: PyTree = None,
    min_size: int = MIN_SIZE,
) -> PyTree:
    """The sharding of each array of the state under `shard_state`, for `jax.jit`, Orbax and others.

    Args:
      tx: any Optax transformation. With `offload` around it the shardings include the kind of
        memory. With `shard_state` around it, the state is that which its `init` makes: write the
        mesh of the run that began, `shard_state(tx, AbstractMesh((4,), ("data",)))`.
      params: the parameters, or `jax.ShapeDtypeStruct`s of them.
      mesh: as in `shard_state`.
      axis: as in `shard_state`.
      specs: as in `shard_state`.
      min_size: as in `shard_state`.

    Returns:
      A tree of `NamedSharding`s like the state.
    """
    return _shardings(Placement.of(mesh, axis, specs, min_size), body_of("tx", tx), params)


def _shardings(placement: Placement, body: Body, params: Params) -> PyTree:
    """The state's shardings and kinds of memory, inside `offload` and `shard_state`."""
    if not isinstance(body, Offloaded):
        own = body if isinstance(body, Sharded) else Sharded(body, placement)
        return placement.shardings(jax.eval_shape(own.init, params), params)
    on_host = body.on_host(jax.eval_shape(body.inner.init, params))
    shardings, treedef = jax.tree.flatten(_shardings(placement, body.inner, params))
    pairs = zip(shardings, on_host, strict=True)
    return treedef.unflatten(
        [s.with_memory_kind("pinned_host") if host else s for s, host in pairs]
    )


def _all_explicit(tree: PyTree) -> bool:
    return all(jax.typeof(x).sharding.mesh.are_all_axes_explicit for x in jax.tree.leaves(tree))


def _is_traced(tree: PyTree) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))
