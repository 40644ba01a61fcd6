"""Whole matrices, each on one of the devices that hold its parts."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from adam_jax._types import Function, Leaf, Params, PyTree, State
from adam_jax.core.boxes import axes_in
from adam_jax.core.masks import FrozenTree
from adam_jax.core.stacked import Layers
from adam_jax.core.states import register
from adam_jax.core.step import PASS_ON, Body, Step, check_state
from adam_jax.core.transformation import Transformation
from adam_jax.core.trees import leaf_paths
from adam_jax.formats.dense import is_floating
from adam_jax.pytrees import frozen_pytree, static
from adam_jax.wrap.chain import inner_body


class SpreadState(NamedTuple):
    """State of `spread`: stacked states of the matrices of each dtype, shape and spec, by name."""

    inner_states: dict[str, State]


register(SpreadState, inner=["inner_states"])


class Way(NamedTuple):
    """Mesh axes of this many devices, over which an axis of the matrices is split; 0 for none."""

    names: tuple[str, ...]
    devices: int
    axis: int


def _whole(parts: Sequence[Any], lead: Sequence[Any], ways: Sequence[Way]) -> Any:
    """This device's matrices, from its parts of all of them; zeros follow the last."""
    pairs = zip(parts, lead, strict=True)
    stack = jnp.concatenate([x.reshape(-1, *x.shape[len(layers) :]) for x, layers in pairs])
    missing = -len(stack) % math.prod(n for _, n, _ in ways)
    stack = jnp.pad(stack, [(0, missing)] + [(0, 0)] * (stack.ndim - 1))
    for names, n, axis in ways:
        if axis:
            stack = jax.lax.all_to_all(stack, names, 0, axis, tiled=True)
        else:
            stack = stack.reshape(n, -1, *stack.shape[1:])[jax.lax.axis_index(names)]
    return stack


def _parts(stack: Any, lead: Sequence[Any], ways: Sequence[Way]) -> list[Any]:
    """The inverse of `_whole`."""
    for names, _, axis in reversed(ways):
        if axis:
            stack = jax.lax.all_to_all(stack, names, axis, 0, tiled=True)
        else:
            stack = jax.lax.all_gather(stack, names, tiled=True)
    pieces = jnp.split(stack, [*itertools.accumulate(map(math.prod, lead))])
    return [x.reshape(*layers, *x.shape[1:]) for x, layers in zip(pieces, lead, strict=False)]


@frozen_pytree
class Spread(Body):
    """The body of `spread`."""

    inner: Body
    axes: tuple[str, ...] = static()
    specs: FrozenTree | None = static()
    layers: Layers = static(default=Layers())

    def init(self, params: Params) -> SpreadState:
        """The inner states, each on the device of its matrix from the start."""

        def states(params: Params) -> dict[str, State]:
            p = jax.tree.leaves(params)
            inner = self.inner.told_of(Layers())  # It sees one layer at a time.
            made = self.mapped(lambda p, *_: (p, inner.init(p)), params, p, None, None)[1]
            # Without unused parameters a program would be for one device.
            return jax.lax.optimization_barrier((made, p))[0]

        return SpreadState(jax.jit(states)(params))

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        """The inner step of each matrix, on its device."""
        check_state(state, SpreadState)
        step.needed_params()
        # On explicit axes JAX passes arrays into shard_map only as arguments.
        numbers, treedef = jax.tree.flatten(
            (self.inner.told_of(Layers()), step.ok, dict(step.extra))
        )
        arrays = [x if isinstance(x, jax.Array) else None for x in numbers]

        def one(p: Any, g: Any, state: State, arrays: Any) -> tuple[Any, State]:
            pairs = zip(numbers, arrays, strict=True)
            inner, ok, extra = treedef.unflatten(x if a is None else a for x, a in pairs)
            out, state = inner.run(Step.of(g, p, False, extra).but(ok=ok, last=False), state)
            return (out.values if out.factors else out.g)[0], state

        def stepped(g: Sequence[Any], params: Params, old: PyTree) -> tuple[Any, PyTree]:
            given = dict(zip(step.paths, g, strict=True))
            every = list(map(given.get, leaf_paths(params, none_is_leaf=False)))
            u, new = self.mapped(one, params, every, old, arrays)
            return [x for x in u if x is not None], new

        u, new = jax.jit(stepped)(step.rounded(), step.joined_params(), state.inner_states)
        return step.with_results(u, step.widened().dtypes), SpreadState(new)

    def mesh(self, leaves: Sequence[Leaf]) -> Any:
        """The mesh of the parameters, or that of the context."""
        known = [jax.typeof(x).sharding.mesh for x in leaves] + [jax.sharding.get_abstract_mesh()]
        mesh = next((x for x in known if not x.empty), known[-1])
        if leaves and not {*self.axes} <= {*mesh.axis_names}:
            raise ValueError(
                f"axis must be of the mesh of the parameters or of jax.set_mesh, got {self.axes}"
                f" for {mesh.axis_names}: place the parameters on a mesh with this axis."
            )
        if self.specs is None and not mesh.are_all_axes_explicit:
            raise ValueError(
                "specs must be given on automatic axes and in shard_map, where no type shows how a"
                " leaf is split, got None: write specs=jax.tree.map(lambda p: p.sharding.spec,"
                " params), or a prefix of it."
            )
        return mesh

    def mapped(
        self, f: Function, params: Params, g: list[Any], states: PyTree, arrays: Any
    ) -> tuple[list[Any], dict[str, State]]:
        """Maps f over the matrices, each on its device; a state without gradient stays."""
        leaves, paths = jax.tree.leaves(params), leaf_paths(params, none_is_leaf=False)
        mesh, layers = self.mesh(leaves), list(map(self.layers.axes, paths))
        manual = not {*self.axes}.isdisjoint(mesh.manual_axes)
        specs = [jax.typeof(x).sharding.spec for x in leaves]
        specs = specs if self.specs is None else specs_of(self.specs, params)
        inside: list[PartitionSpec] = []
        stacks: dict[str, list[int]] = {}
        ways: dict[str, list[Way]] = {}
        for i, (p, spec, n) in enumerate(zip(leaves, specs, layers, strict=True)):
            parts = [tuple(a for a in axes_in(x) if a in self.axes) for x in spec]
            parts = [()] * n + parts[n:] + [()] * (p.ndim - len(parts))
            inside.append(PartitionSpec(*parts))
            sizes = [math.prod(mesh.shape[a] for a in part) for part in parts]
            name = str(p.dtype)
            for size, k, part in [*zip(p.shape, sizes, parts, strict=True)][n:]:
                name += "@".join([f"_{size * k if manual else size}", *part])
            if is_floating(p):
                stacks.setdefault(name, []).append(i)
            rest = tuple(a for a in self.axes if a not in sum(parts, ()))
            split = zip(parts[n:], sizes[n:], itertools.count(1), strict=False)
            left = (rest, math.prod(mesh.shape[a] for a in rest), 0)
            ways[name] = [Way(*way) for way in (*split, left) if way[0]]
        if states is not None and states.keys() != stacks.keys():
            raise ValueError(
                f"the state must have the matrices {list(stacks)}, got {list(states)}: {PASS_ON}"
            )

        def local(p: Any, g: Any, states: Any, arrays: Any) -> tuple[list[Any], dict[str, State]]:
            u, new = list(g), dict(states or dict.fromkeys(stacks))
            for name, its in stacks.items():
                grads, lead = [g[i] for i in its], [p[i].shape[: layers[i]] for i in its]
                missing = [x is None for x in grads]
                if any(missing) and not all(missing):
                    raise ValueError(
                        f"all matrices of one shape must have a gradient, got None for"
                        f" {paths[its[missing.index(True)]]!r}: freeze it with groups."
                    )
                if not any(missing):
                    columns = [_whole(x, lead, ways[name]) for x in ([p[i] for i in its], grads)]
                    x, new[name] = jax.vmap(f, (0, 0, 0, None))(*columns, new[name], arrays)
                    for i, part in zip(its, _parts(x, lead, ways[name]), strict=True):
                        u[i] = part
            return u, new

        if manual or not stacks:
            return local(leaves, g, states, arrays)
        own = {k: PartitionSpec(sum((names for names, *_ in way), ())) for k, way in ways.items()}
        own = {name: own[name] for name in stacks}

        def placed(xs: Sequence[Any], specs: Sequence[PartitionSpec]) -> list[Any]:
            pairs = zip(xs, specs, strict=True)
            return [x if x is None else placed_as(x, NamedSharding(mesh, s)) for x, s in pairs]

        u, new = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(inside, inside, own if states else None, PartitionSpec()),
            out_specs=(inside, own),
            check_vma=False,
        )(placed(leaves, inside), placed(g, inside), states, arrays)
        return placed(u, specs), new


def spread(
    tx: optax.GradientTransformation, axis: str | tuple[str, ...] = "data", *, specs: PyTree = None
) -> Transformation:
    """Gives each device whole matrices in place of parts of all: for Muon and others under FSDP.

    The matrices of one shape form a stack of n. Each of d devices along `axis` gets n/d of them in
    one all-to-all, steps them as if each were alone, and sends the updates back in another.

    Args:
      tx: any Optax transformation, which sees one matrix at a time: put clipping by the global
        norm, `skip_nonfinite` and `groups` around it. A matrix is a leaf, or a layer of one that
        `with_layers` declares.
      axis: the axis of the mesh, or several: all those that split the matrices, since parts along
        others are gathered. The mesh is that of the parameters, or of `jax.set_mesh`.
      specs: how the parameters are partitioned, as in `shard_state`. Types show it on explicit
        axes. On automatic ones and inside `shard_map` it is needed; `PartitionSpec()` if they are
        not partitioned: each device then steps its share, and all-gathers the updates.

    Returns:
      A transformation with a `SpreadState`, of which each device holds the part of its matrices. It
      depends on the number of devices through the zeros that fill a stack.

    Raises:
      ValueError: in `init` and `update`, a mesh without the axis, or no `specs` where no type
        shows them; in `update`, params missing.

    Differs from Optax in: there Muon gathers parts of all matrices in each of its products.
    """
    its = None if specs is None else FrozenTree.of(specs)
    return Transformation.around(Spread(inner_body("tx", tx), axes_in(axis), its))


def specs_of(specs: FrozenTree, params: Params) -> list[PartitionSpec]:
    """The spec of each parameter, from a tree of specs or the prefix of one."""
    try:
        below = specs.treedef.flatten_up_to(params)
    except ValueError:
        raise ValueError(
            f"specs must be a tree of PartitionSpecs like the parameters, or a prefix of it,"
            f" got {specs.treedef} for {jax.tree.structure(params)}."
        ) from None
    pairs = zip(specs.leaves, below, strict=True)
    return [spec for spec, subtree in pairs for _ in jax.tree.leaves(subtree)]


def placed_as(x: Leaf, where: NamedSharding) -> Leaf:
    """The array with this sharding, inside of programs too."""
    if not isinstance(x, jax.core.Tracer):
        return jax.device_put(x, where)
    mesh = jax.typeof(x).sharding.mesh  # `inspect` describes automatic axes as explicit.
    if mesh.are_all_axes_explicit:
        return jax.sharding.reshard(x, NamedSharding(mesh, where.spec))
    return jax.lax.with_sharding_constraint(x, where)
