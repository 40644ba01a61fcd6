"""ZeRO-1: the state is split over the devices that hold copies of the parameters.

Where a slot of the state lies is what `init` makes of it for a parameter that lies there: so every
format and every transformation splits its own state, and nothing here knows what is in it.
"""

import itertools
import math
import weakref
from typing import Any

import jax
import jax.core
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from adam_jax.body import Body, Call
from adam_jax.leaves import FrozenTree, leaf_paths
from adam_jax.rules.pytrees import frozen_pytree, static
from adam_jax.scale.offload import Offloaded
from adam_jax.transform import Transformation, body_of
from adam_jax.validation import check_integer

MIN_SIZE = 4096


@frozen_pytree
class Layout:
    """Where parameters lie, and where the state of each is to lie.

    Attributes:
      mesh: the devices.
      axes: those of the mesh over which the state is split.
      specs: of the parameters, a tree or the prefix of one; None if they are not partitioned.
      min_size: in elements.
    """

    mesh: Mesh = static()
    axes: tuple[str, ...] = static()
    specs: FrozenTree | None = static()
    min_size: int = static()

    def of_params(self, params: Any) -> list[PartitionSpec]:
        """How each parameter is partitioned, None leaves left out."""
        leaves, treedef = jax.tree.flatten(params)
        if self.specs is None:
            return [PartitionSpec()] * len(leaves)
        given = self.specs.tree
        try:
            below = jax.tree.structure(given).flatten_up_to(
                treedef.unflatten(list(range(len(leaves))))
            )
        except ValueError:
            raise ValueError(
                f"specs must be a tree of PartitionSpecs like the parameters, or a prefix of it,"
                f" got {jax.tree.structure(given)} for {treedef}."
            ) from None
        specs = [PartitionSpec()] * len(leaves)
        for spec, subtree in zip(jax.tree.leaves(given), below, strict=True):
            for index in jax.tree.leaves(subtree):
                specs[index] = spec
        return specs

    def of_state(self, params: Any) -> list[PartitionSpec]:
        """How the state of each parameter is partitioned."""
        specs = zip(self.of_params(params), jax.tree.leaves(params), strict=True)
        return [self.split(spec, np.shape(p)) for spec, p in specs]

    def split(self, spec: PartitionSpec, shape: tuple[int, ...]) -> PartitionSpec:
        """Partitions one dimension more: the first that divides and is whole, else the first.

        The first, as blocks of codes lie along the last, and what is gathered is then contiguous.
        """
        parts = [*spec, *[None] * (len(shape) - len(spec))]
        names = [_names(part) for part in parts]
        ways, taken = self.devices(self.axes), {*itertools.chain(*names)}
        if ways == 1 or math.prod(shape) < self.min_size or taken & {*self.axes}:
            return spec
        for whole in (True, False):
            for i, size in enumerate(shape):
                if bool(names[i]) != whole and size % (self.devices(names[i]) * ways) == 0:
                    axes = [*names[i], *self.axes]
                    parts[i] = tuple(axes) if len(axes) > 1 else axes[0]
                    return PartitionSpec(*parts)
        return spec

    def devices(self, axes: tuple[str, ...]) -> int:
        """Along these axes of the mesh."""
        return math.prod(self.mesh.shape[name] for name in axes)

    def sharding(self, spec: PartitionSpec) -> NamedSharding:
        """On this mesh."""
        return NamedSharding(self.mesh, spec)

    def place(self, tree: Any, specs: list[PartitionSpec]) -> Any:
        """Moves every leaf to where it belongs; None leaves stay."""
        leaves, treedef = jax.tree.flatten(tree)
        placed = [self.move(x, spec) for x, spec in zip(leaves, specs, strict=True)]
        return treedef.unflatten(placed)

    def move(self, x: Any, spec: PartitionSpec) -> Any:
        """Moves one array; under jit the compiler is told, and sends what is needed."""
        if not isinstance(x, jax.core.Tracer):
            return jax.device_put(x, self.sharding(spec))
        if jax.typeof(x).sharding.mesh.are_all_axes_explicit:
            return jax.sharding.reshard(x, self.sharding(spec))
        return jax.lax.with_sharding_constraint(x, self.sharding(spec))

    def shardings(self, body: Body, params: Any) -> Any:
        """The tree of where the state of a body lies."""
        leaves, treedef = jax.tree.flatten(params)
        shaped = map(_shaped, leaves)
        key = self, treedef, tuple((x.shape, x.dtype) for x in shaped)
        try:
            known = _KNOWN.setdefault(body, {})
        except TypeError:  # Some of its numbers are traced.
            known = {}
        if key not in known:
            known[key] = _shardings(*key, body)
        shardings, treedef = known[key]
        return treedef.unflatten(shardings)


_KNOWN: weakref.WeakKeyDictionary[Body, dict[Any, Any]] = weakref.WeakKeyDictionary()
"""`Layout.shardings` of each body for as long as it lives, and with it its schedules."""


def _shardings(
    layout: Layout, treedef: Any, arrays: tuple[tuple[Any, Any], ...], body: Body
) -> tuple[list[NamedSharding], Any]:
    """`Layout.shardings`, flat; kept, as it takes longer than to trace the step itself."""
    # Under explicit axes a shape says how it is partitioned, and JAX what becomes of that.
    explicit = (AxisType.Explicit,) * len(layout.mesh.axis_names)
    mesh = Mesh(layout.mesh.devices, layout.mesh.axis_names, axis_types=explicit)
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in arrays]
    specs = layout.of_state(treedef.unflatten(shapes))
    placed = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
        for x, spec in zip(shapes, specs, strict=True)
    ]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        state = jax.eval_shape(body.init, treedef.unflatten(placed))
    leaves, treedef = jax.tree.flatten(state)
    specs = [PartitionSpec() if x.sharding is None else x.sharding.spec for x in leaves]
    return [layout.sharding(spec) for spec in specs], treedef


def _names(part: Any) -> tuple[str, ...]:
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)


def _shaped(x: Any) -> Any:
    return x if hasattr(x, "dtype") else np.asarray(x, np.float32)


@frozen_pytree
class Sharded:
    """The body of `shard_state`."""

    inner: Body
    layout: Layout

    def init(self, params: Any) -> Any:
        """The inner state, each device with its own part of it from the start."""
        self.check(params)
        split = self.layout.place(params, self.layout.of_state(params))
        return self.placed(self.inner.init(split), params)

    def run(self, updates: Any, state: Any, params: Any, call: Call) -> tuple[Any, Any]:
        """The inner step, each device on its own part of the gradients and the parameters."""
        layout = self.layout
        split = layout.place(updates, layout.of_state(updates))
        theirs = params
        if params is not None:
            # First as they are: else a loop around this would carry its own half of each step, and
            # the parameters that come out of it would be split as well.
            theirs = layout.place(params, layout.of_params(params))
            theirs = layout.place(theirs, layout.of_state(params))
        result, new = self.inner.run(split, state, theirs, call)
        if params is not None or None not in jax.tree.leaves(updates, is_leaf=lambda x: x is None):
            new = self.placed(new, updates if params is None else params)
        return layout.place(result, layout.of_params(result)), new

    def placed(self, state: Any, params: Any) -> Any:
        """The state where it belongs; that of parameters like these."""
        leaves, treedef = jax.tree.flatten(state)
        shardings = treedef.flatten_up_to(self.layout.shardings(self.inner, params))
        placed = [self.layout.move(x, s.spec) for x, s in zip(leaves, shardings, strict=True)]
        return treedef.unflatten(placed)

    def check(self, params: Any) -> None:
        """Checks that parameters lie where this was told they do, where that can be seen.

        Raises:
          ValueError: one does not; the message has its path.
        """
        specs = self.layout.of_params(params)
        for i, (p, spec) in enumerate(zip(jax.tree.leaves(params), specs, strict=True)):
            found = None if isinstance(p, jax.core.Tracer) else getattr(p, "sharding", None)
            if not isinstance(found, NamedSharding) or not getattr(p, "committed", False):
                continue
            told = self.layout.sharding(spec)
            if not told.is_equivalent_to(found, np.ndim(p)):
                path = leaf_paths(params, none_is_leaf=False)[i]
                raise ValueError(
                    f"specs must say how the parameters are partitioned, got {spec} for {path!r},"
                    f" which is {found.spec} on {dict(found.mesh.shape)}: write"
                    f" specs=jax.tree.map(lambda p: p.sharding.spec, params)."
                )


def shard_state(
    tx: optax.GradientTransformation,
    mesh: Mesh,
    axis: str | tuple[str, ...] = "data",
    *,
    specs: Any = None,
    min_size: int = MIN_SIZE,
) -> Transformation:
    """Splits the state over the devices that hold copies of the parameters (ZeRO, stage 1).

    Of n devices, each keeps 1/n of the state, and steps 1/n of every parameter: gradients are
    reduce-scattered and new parameters all-gathered, by XLA, which sends as many bytes for that as
    for the all-reduce of the gradients that it replaces.

    Args:
      tx: any Optax transformation; the state is its own, and so are checkpoints.
      mesh: the devices.
      axis: the axis of the mesh, or several, over which batches are split and parameters are not.
      specs: how the parameters are partitioned already, over other axes (tensor parallelism) or
        this one (FSDP, which splits their state as well): a tree of `PartitionSpec`s like the
        parameters, or a prefix of it. None: they are not.
      min_size: elements; the state of smaller parameters is copied, not split.

    Returns:
      A transformation to go around all others. `init` outside jit places the state as it makes it:
      no device ever has it whole. A state restored from a checkpoint goes where `state_shardings`
      says, or simply into the step.

    Raises:
      ValueError: the mesh has no such axis; `tx` is offloaded; in `init`, parameters that lie
        elsewhere than `specs` says.

    XLA:GPU and XLA:TPU make one reduce-scatter of an all-reduce of which each device keeps a part;
    XLA:CPU does not, and sends 1.5 times the bytes.

    Differs from PyTorch (`ZeroRedundancyOptimizer`) in: each parameter is split, not dealt out
    whole; DeepSpeed's stage 1 splits likewise.

    Reference: Rajbhandari et al. 2020, section 5.1 (P_os). Xu et al. 2020, weight-update sharding.
    """
    body = body_of("tx", tx)
    if isinstance(body, Offloaded):
        raise ValueError(
            "tx must not be offloaded, as the state would come back to the devices: write"
            " offload(shard_state(tx, mesh))."
        )
    return Transformation.around(Sharded(body, _layout(mesh, axis, specs, min_size)))


def state_shardings(
    tx: optax.GradientTransformation,
    params: Any,
    mesh: Mesh,
    axis: str | tuple[str, ...] = "data",
    *,
    specs: Any = None,
    min_size: int = MIN_SIZE,
) -> Any:
    """Where each array of the state lies under `shard_state`, for `jax.jit`, Orbax and others.

    Args:
      tx: any Optax transformation, without `shard_state` or with it; with `offload` around it, the
        shardings say what lies in the memory of the host.
      params: the parameters, or `jax.ShapeDtypeStruct`s of them.
      mesh: as for `shard_state`, and so are the others.
      axis: the same.
      specs: the same.
      min_size: the same.

    Returns:
      A tree of `NamedSharding`s like the state.
    """
    return _placement(_layout(mesh, axis, specs, min_size), body_of("tx", tx), params)


def _placement(layout: Layout, body: Body, params: Any) -> Any:
    """`Layout.shardings`, and the memory, of what is inside of `offload` and `shard_state`."""
    if isinstance(body, Sharded):
        return _placement(layout, body.inner, params)
    if not isinstance(body, Offloaded):
        return layout.shardings(body, params)
    on_host = body.on_host(jax.eval_shape(body.inner.init, params))
    return jax.tree.map(
        lambda sharding, host: sharding.with_memory_kind(body.to) if host else sharding,
        _placement(layout, body.inner, params),
        on_host,
    )


def _layout(mesh: Any, axis: Any, specs: Any, min_size: Any) -> Layout:
    if not isinstance(mesh, Mesh):
        raise ValueError(
            f"mesh must be a jax.sharding.Mesh, got {mesh!r}: jax.make_mesh makes one."
        )
    axes = _names(axis)
    missing = [name for name in axes if name not in mesh.axis_names]
    if missing or not axes:
        raise ValueError(
            f"axis must be of the mesh, whose axes are {mesh.axis_names}, got {axis!r}: write"
            f" axis={mesh.axis_names[0]!r}."
        )
    frozen = None if specs is None else FrozenTree.of(specs)
    min_size = check_integer("min_size", min_size, 0, instead="0 splits all that divides")
    return Layout(mesh, axes, frozen, min_size)
