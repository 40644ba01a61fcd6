"""Packs small leaves into buffers: many biases and scales then step as a few arrays."""

import dataclasses
import functools
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax._types import Leaf, Params, PyTree, Result, State, Updates
from adam_jax.engine.call import Body, Call, NoPipeline
from adam_jax.engine.layers import Layers
from adam_jax.engine.pipeline import Pipeline
from adam_jax.engine.states import found
from adam_jax.engine.transformation import Transformation, body_of
from adam_jax.engine.trees import leaf_paths
from adam_jax.engine.unrounded import Unrounded, dtypes_of, unrounded, values
from adam_jax.formats.base import Format, SlotPolicy
from adam_jax.formats.dense import AT_LEAST_FLOAT32, is_floating, leaf_dtype, wider_dtype
from adam_jax.rules.pytrees import frozen_pytree, static
from adam_jax.validation import check_integer
from adam_jax.xla.offsets import offsets

Bins = tuple[tuple[int, ...], ...]
"""The indices, in the tree's order, of the leaves in each buffer."""


@frozen_pytree
class Packed:
    """A tree like the parameters, with the small leaves in buffers.

    Attributes:
      small: one buffer per bin, the concatenation of its leaves.
      large: the tree of the other leaves; each small one is replaced by `optax.MaskedNode()`.
      bins: the leaves in each buffer.
    """

    small: tuple[Leaf, ...]
    large: PyTree
    bins: Bins = static()


def packed(tree: PyTree, bins: Bins) -> Packed:
    """Packs a tree."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=lambda x: x is None)
    inside = [i for bin in bins for i in bin]
    last = max(inside, default=-1)
    if last >= len(leaves):
        raise ValueError(
            f"the state must be of these parameters, got a packed one of at least {last + 1} leaves"
            f" for the {len(leaves)} at {leaf_paths(tree)}: call init with these parameters."
        )
    missing = [i for i in inside if leaves[i] is None]
    if missing:
        raise ValueError(
            f"at {leaf_paths(tree)[missing[0]]!r}, the gradient is None: a leaf that shares a"
            f" buffer needs one. Pass zeros, or wrap pack_small_leaves in optax.masked."
        )
    small = tuple(_concatenated([leaves[i] for i in bin]) for bin in bins)
    for i in inside:
        leaves[i] = optax.MaskedNode()
    return Packed(small, jax.tree.unflatten(treedef, leaves), bins)


def unpacked(tree: Packed, like: PyTree) -> PyTree:
    """Unpacks a tree; `like` gives the shapes, as the parameters do."""
    shapes, treedef = jax.tree.flatten(like, is_leaf=lambda x: x is None)
    leaves = treedef.flatten_up_to(tree.large)
    for buffer, bin in zip(tree.small, tree.bins, strict=True):
        sizes = [np.size(shapes[i]) for i in bin]
        for i, start in zip(bin, offsets(sizes, buffer), strict=True):
            part = jax.lax.dynamic_slice(
                buffer, (start,), (np.size(shapes[i]),), allow_negative_indices=False
            )
            leaves[i] = jnp.reshape(part, np.shape(shapes[i]))
    return jax.tree.unflatten(treedef, leaves)


def _concatenated(leaves: list[Leaf]) -> jax.Array:
    dtype = functools.reduce(wider_dtype, map(leaf_dtype, leaves))
    return jnp.concatenate([jnp.ravel(jnp.asarray(x, dtype)) for x in leaves])


@frozen_pytree
class PackSmallLeaves(Body):
    """The body of `pack_small_leaves`.

    Attributes:
      head: the stages up to the last with slots; they act on the buffers.
      tail: the stages after it, weight decay and learning rate; they act on each leaf, since they
        read the parameters, which are not packed, and have masks.
      below: leaves with fewer elements are packed.
    """

    head: Pipeline
    tail: Pipeline
    below: int = static()

    def init(self, params: Params) -> State:
        """The member's state, with the small leaves of each slot in buffers."""
        if not jax.tree.leaves(params):
            # optax.tree.map_params calls this to find parameter-like leaves, buffers included.
            return self.alone.init(params)
        head = self.head.init(packed(params, _bins(params, self.below)))
        return self.join(head, self.tail.init(params))

    def run(self, updates: Updates, state: State, params: Params, call: Call) -> Result:
        """One optimizer step: packs the gradients and unpacks the updates."""
        packed_trees = found(state, is_packed)
        if not packed_trees and not jax.tree.leaves(updates):
            return self.alone.run(updates, state, params, call)
        if not packed_trees:
            raise ValueError(
                f"the state must be that of pack_small_leaves, got {type(state).__name__}: call"
                f" init of this transformation, or pack_state with a state of the member alone."
            )
        bins = packed_trees[0].bins
        head_state, tail_state = self.split(state)
        theta = None
        if params is not None and any(stage.rule.needs_params for stage in self.head.stages):
            theta = packed(params, bins)
        its_call = call._replace(apply=False)
        arrays = values(unrounded(updates))
        u, head_state = self.head.run(packed(arrays, bins), head_state, theta, its_call)
        u = Unrounded(unpacked(u, arrays), dtypes_of(updates))
        u, tail_state = self.tail.run(u, tail_state, params, call)
        return u, self.join(head_state, tail_state)

    def told_of(self, layers: Layers) -> "PackSmallLeaves":
        """Packed stages are elementwise; masks in the tail see single layers."""
        return dataclasses.replace(self, tail=dataclasses.replace(self.tail, layers=layers))

    @property
    def alone(self) -> Pipeline:
        """The member without buffers."""
        return dataclasses.replace(self.head, stages=self.head.stages + self.tail.stages)

    def split(self, state: State) -> Result:
        """The states of head and tail."""
        if not self.head.chained:
            return state, ()
        count = len(self.head.stages)
        return state[:count], state[count:]

    def join(self, head: PyTree, tail: PyTree) -> PyTree:
        """The inverse of `split`."""
        return (*head, *tail) if self.head.chained else head


def _bins(params: Params, below: int) -> Bins:
    """Leaves of one dtype and one placement share a buffer; partitioned leaves stay separate."""
    bins: dict[Any, list[int]] = {}
    for i, p in enumerate(jax.tree.leaves(params, is_leaf=lambda x: x is None)):
        if p is None or not is_floating(p) or np.size(p) >= below or _is_partitioned(p):
            continue
        placement = None if isinstance(p, jax.core.Tracer) else jnp.asarray(p).sharding
        bins.setdefault((leaf_dtype(p), placement), []).append(i)
    return tuple(tuple(bin) for bin in bins.values() if len(bin) > 1)


def _is_partitioned(p: Leaf) -> bool:
    """Whether it is known to be partitioned; for a tracer only its type tells."""
    if isinstance(p, jax.core.Tracer):
        return any(axis is not None for axis in jax.typeof(p).sharding.spec)
    return isinstance(p, jax.Array) and not p.sharding.is_fully_replicated


def is_packed(x: Leaf) -> bool:
    """Whether this is a tree with buffers."""
    return isinstance(x, Packed)


def pack_small_leaves(inner: optax.GradientTransformation, below: int = 65536) -> Transformation:
    """Keeps the moments of small leaves in one buffer: hundreds of biases step as one array.

    The parameters are not packed. The arithmetic is the same, bit for bit.

    Args:
      inner: a member of this package, such as `adamw(...)`, modified or not. Modifiers that read
        whole leaves (`cautious`, `clip_update_rms`) cannot be packed, nor can
        `transfer.mup(...)`, whose numbers differ between leaves.
      below: in elements; a smaller leaf is packed with those of its dtype and device placement. A
        leaf partitioned over devices stays separate. Therefore call `init` outside jit, where
        placement is unknown until compilation (except on meshes with explicit axes).

    Returns:
      A transformation with the member's state, whose trees are `Packed`. Wrap it, not `inner`:
      `accumulate(pack_small_leaves(adamw(1e-3)), 4)`. `unpack_state` converts it to the member's
      own state and `pack_state` converts back: for checkpoints, and for `optax.tree.map_params`
      with other trees (alone it maps the buffers).

    Raises:
      ValueError: `inner` is not such a member; in a step, a packed leaf has no gradient.

    Differs from PyTorch (`foreach`, `fused`) in: the buffers are part of the state.
    """
    below = check_integer("below", below, 0, instead="0 packs nothing, 65536 is usual")
    try:
        body = body_of("inner", inner).pipeline()
        if body.member is None:
            raise NoPipeline("a pipeline without accumulators")
    except ValueError as error:
        got = error if isinstance(inner, Transformation) else type(inner).__name__
        raise ValueError(
            f"inner must be a member of adam_jax, such as adamw(1e-3), got {got}: put"
            f" pack_small_leaves innermost, and chain, accumulate, ... around it."
        ) from None
    if body.factors:
        raise ValueError(
            "inner must have the same numbers for all leaves of a buffer, got mup(...): leave"
            " pack_small_leaves out."
        )
    behind = body.member + 1
    stages = body.stages[:behind]
    of_leaves = [x.rule for x in stages if x.mask or x.rule.reduces or not x.rule.elementwise]
    whole = [type(rule).__name__ for rule in of_leaves]
    if whole:
        raise ValueError(
            f"inner must treat each element by itself to be packed, got {whole[0]}: pack the member"
            f" without it, or leave pack_small_leaves out."
        )
    policies = [d for stage in stages for d in stage.dtypes if isinstance(d, SlotPolicy | Format)]
    if any(policy != AT_LEAST_FLOAT32 for policy in policies):
        raise ValueError(
            "inner must store its moments in plain dtypes to be packed, got a policy by size or"
            " path: leave pack_small_leaves out. With int8 and similar, small leaves are float32."
        )
    head = dataclasses.replace(body, stages=stages, layers=Layers())
    tail = dataclasses.replace(body, stages=body.stages[behind:], chained=True)
    return Transformation.around(PackSmallLeaves(head, tail, below))


def unpack_state(state: State, params: Params) -> State:
    """The state that the same transformation without `pack_small_leaves` would have.

    Args:
      state: a state with `Packed` trees anywhere in it.
      params: the parameters, for their shapes.
    """

    def unpack(x: Leaf) -> Leaf:
        return unpacked(x, params) if is_packed(x) else x

    return jax.tree.map(unpack, state, is_leaf=is_packed)


def pack_state(tx: optax.GradientTransformation, state: State, params: Params) -> PyTree:
    """Packs the state of a transformation without `pack_small_leaves` for `tx`, which has it.

    Args:
      tx: the transformation that continues the run.
      state: of the same transformation without `pack_small_leaves`.
      params: the parameters, placed on devices as in that run.

    Raises:
      ValueError: the state belongs to another transformation.
    """
    like, treedef = jax.tree.flatten(tx.init(params), is_leaf=is_packed)
    try:
        parts = treedef.flatten_up_to(state)
    except ValueError as error:
        raise ValueError(
            f"state must be that of the same transformation without pack_small_leaves: {error}."
        ) from None
    leaves = [packed(s, x.bins) if is_packed(x) else s for x, s in zip(like, parts, strict=True)]
    return jax.tree.unflatten(treedef, leaves)
