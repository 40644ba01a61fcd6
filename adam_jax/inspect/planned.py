"""What a run will hold, as shapes and dtypes, and to which parameter each belongs."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax._types import AnyTransformation, Leaf, Params, PyTree, State, Updates
from adam_jax.engine.states import owners
from adam_jax.engine.transformation import body_of
from adam_jax.engine.trees import is_stored, leaf_paths
from adam_jax.inspect.amounts import SHARED, Bytes, bytes_of
from adam_jax.sharding.shard import without_sharding
from adam_jax.wrap.telemetry import telemetry


@dataclasses.dataclass(frozen=True)
class Plan:
    """Trees of `jax.ShapeDtypeStruct`s, sharded where a mesh has them.

    Attributes:
      params: the parameters.
      grads: a tree like them, with None for a leaf that has none.
      state: of the optimizer.
      lost: as in `Bytes`.
    """

    params: Params
    grads: Updates
    state: State
    lost: tuple[str, ...]

    @classmethod
    def of(cls, params: Params, tx: optax.GradientTransformation, grads: Updates) -> "Plan":
        """That of these parameters; without `grads`, gradients are like their parameters.

        Raises:
          ValueError: they do not fit together.
        """
        body_of("tx", tx)
        params = _described("params", params)
        if not jax.tree.leaves(params):
            raise ValueError(
                f"params must have arrays or jax.ShapeDtypeStructs in it, got {params!r}: pass the"
                f" parameters, or jax.eval_shape(model.init, ...)."
            )
        if grads is None:
            grads = jax.tree.map(lambda p: p if _is_inexact(p) else None, params)
        else:
            grads = _described("grads", grads)
            _check_gradients(params, grads)
        state = _state(params, tx)
        return cls(params, grads, state, _lost_codes(params, tx, state))

    def bytes(self, patterns: Mapping[str, str] | None) -> Bytes:
        """All of it, by group."""
        group_of = telemetry(optax.identity(), patterns=patterns).body.group  # The same convention.
        members: dict[str, list[Bytes]] = {}
        leaves, treedef = jax.tree.flatten(self.params)
        names = list(map(group_of, leaf_paths(self.params, False)))
        for p, g, name in zip(leaves, treedef.flatten_up_to(self.grads), names, strict=True):
            leaf = Bytes(int(np.prod(p.shape)), bytes_of(p), 0 if g is None else bytes_of(g), 0)
            members.setdefault(name, []).append(leaf)
        for stored, i in owners(self.state, self.params):
            state = sum(map(bytes_of, jax.tree.leaves(stored)))
            members.setdefault(SHARED if i is None else names[i], []).append(Bytes(0, 0, 0, state))
        order = sorted(members, key=lambda name: (name == SHARED, name))
        rows = {name: _sum(members[name], {}) for name in order}
        return dataclasses.replace(_sum(rows.values(), rows), lost_codes=self.lost)


def _sum(parts: Collection[Bytes], groups: Mapping[str, Bytes]) -> Bytes:
    return Bytes(
        size=sum(x.size for x in parts),
        parameters=sum(x.parameters for x in parts),
        gradients=sum(x.gradients for x in parts),
        state=sum(x.state for x in parts),
        groups=groups,
    )


def _described(argument: str, tree: PyTree) -> Any:
    leaves = jax.tree.leaves(tree)
    for path, x in zip(leaf_paths(tree, none_is_leaf=False), leaves, strict=True):
        if not hasattr(x, "dtype") and not isinstance(x, int | float | complex):
            raise ValueError(
                f"{argument} must be a tree of arrays or jax.ShapeDtypeStructs, got"
                f" {type(x).__name__} at {path!r}: put None there."
            )

    def described(x: Leaf, seen: Any) -> Leaf:
        sharding = getattr(x, "sharding", None)  # That of a single device is nobody's choice.
        sharding = sharding if isinstance(sharding, jax.sharding.NamedSharding) else None
        return jax.ShapeDtypeStruct(seen.shape, seen.dtype, sharding=sharding)

    return jax.tree.map(described, tree, jax.eval_shape(lambda t: t, tree))


def _is_inexact(p: Leaf) -> bool:
    return jnp.issubdtype(p.dtype, jnp.inexact)


def _check_gradients(params: Params, grads: Updates) -> None:
    leaves, treedef = jax.tree.flatten(params)
    try:
        own = treedef.flatten_up_to(grads)
    except ValueError:
        raise ValueError(
            f"grads must be a tree like params, with None for a leaf that has no gradient, got"
            f" {jax.tree.structure(grads)} for {treedef}."
        ) from None
    for path, p, g in zip(leaf_paths(params, none_is_leaf=False), leaves, own, strict=True):
        if g is not None and getattr(g, "shape", None) != p.shape:
            raise ValueError(
                f"grads must be like params, got {g} for the shape {p.shape} at {path!r}: pass the"
                f" gradients of these parameters."
            )


def _state(params: Params, tx: optax.GradientTransformation) -> PyTree:
    """Sharded as `tx.init` outside of jit makes it of such parameters."""
    shardings = [x.sharding for x in jax.tree.leaves(params)]
    meshes = {sharding.mesh for sharding in shardings if sharding is not None}
    if len(meshes) != 1:
        return jax.eval_shape(tx.init, params)
    # Only on a mesh whose axes are explicit do arrays have shardings while they are traced.
    [mesh] = meshes
    explicit = (jax.sharding.AxisType.Explicit,) * len(mesh.axis_names)
    described = jax.sharding.AbstractMesh(mesh.axis_sizes, mesh.axis_names, axis_types=explicit)
    with jax.sharding.use_abstract_mesh(described):
        state = jax.eval_shape(tx.init, _on(described, params))
    return _on(mesh, state)


def _on(mesh: PyTree, tree: PyTree) -> PyTree:
    """The same shardings on another mesh with the same axes."""

    def moved(x: Leaf) -> Leaf:
        sharding = x.sharding and jax.sharding.NamedSharding(mesh, x.sharding.spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(moved, tree)


def _lost_codes(params: Params, tx: AnyTransformation, state: State) -> tuple[str, ...]:
    """The parameters that would have codes if nothing were split, and have none in this state."""
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    whole = jax.eval_shape(without_sharding(tx).init, params)
    paths = leaf_paths(params, False)
    flat, _ = jax.tree_util.tree_flatten_with_path(state, is_leaf=is_stored)
    kept = {keys: x for (keys, _), x in zip(flat, owners(state, params), strict=True)}
    lost = {}
    for keys, coded in jax.tree_util.tree_flatten_with_path(whole, is_leaf=is_stored)[0]:
        # Buffers of small leaves, which have no codes, depend on the devices as well.
        stored, i = kept.get(keys, (coded, None))
        if is_stored(coded) and not is_stored(stored):
            lost[jax.tree_util.keystr(keys) if i is None else paths[i]] = None
    return tuple(lost)
