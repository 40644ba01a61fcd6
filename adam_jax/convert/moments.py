"""The moments in a state, by the path of their parameter: read out of one tree, put into another.

Every conversion goes through here. What is not moments or a count of optimizer steps (an average
of the parameters, a gradient in the middle of accumulation) is nobody else's, and starts anew.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax._types import AnyTransformation, Leaf, Params, PyTree, State, Stored
from adam_jax.convert.entries import placed_like
from adam_jax.convert.names import listed
from adam_jax.engine.leafwise import fetched
from adam_jax.engine.states import described, found, is_state, states_in
from adam_jax.engine.trees import align_slot, is_stored, leaf_paths, unflatten_slot
from adam_jax.engine.unrounded import arithmetic_dtype
from adam_jax.formats.base import Format
from adam_jax.formats.dense import Dense
from adam_jax.formats.policy import format_of
from adam_jax.modify.pack import is_packed, pack_state, unpack_state

Key = tuple[str, str]
"""The path of a parameter, and a slot of its: `("layers/0/kernel", "mu")`."""


@dataclasses.dataclass(frozen=True)
class Moments:
    """The moments of every parameter that has some.

    Attributes:
      slots: what is stored, in its format; or a NumPy array.
      counts: optimizer steps, by the path of the parameter.
      kinds: the types of the states that they are from, where those are known.
    """

    slots: Mapping[Key, Stored]
    counts: Mapping[str, int]
    kinds: frozenset[type] = frozenset()


class Target:
    """The state that a transformation begins with, and which moments it has places for.

    Attributes:
      kinds: the type of the member's state, for each path and slot.
      shapes: of each parameter.
    """

    def __init__(self, params: Params, tx: AnyTransformation) -> None:
        if not hasattr(tx, "init"):
            raise ValueError(
                f"tx must be the transformation that goes on, such as adamw(1e-3), got {tx!r}."
            )
        self.params, self.tx, self.initial = params, tx, tx.init(params)
        self.state = unpack_state(self.initial, params)
        self.kinds: dict[Key, type] = {}
        for member in members(self.state):
            for key in _stored(member, params):
                if key in self.kinds:
                    raise ValueError(
                        f"tx must keep each moment once, got {key[1]!r} of {key[0]!r} twice."
                    )
                self.kinds[key] = type(member)
        if not self.kinds:
            raise ValueError(
                f"tx must be a member of Adam's family, or transformations around one, got a state"
                f" without moments: {jax.tree.structure(self.state)}."
            )
        leaves = jax.tree.leaves(params, is_leaf=lambda x: x is None)
        self.shapes = dict(zip(leaf_paths(params), map(np.shape, leaves), strict=True))

    def filled(self, moments: Moments) -> State:
        """The state with these moments, which are those that there are places for."""
        steps = max(moments.counts.values())

        def fill(member: State) -> State:
            stored = _stored(member, self.params)
            own = {moments.counts[path] for path, _ in stored} or {steps}
            if len(own) > 1:
                _complain_of_counts(
                    {path: moments.counts[path] for path, _ in stored}, type(member).__name__
                )
            new = {key: _encoded(moments.slots[key], old) for key, old in stored.items()}
            return _with_slots(member, self.params, new, own.pop())

        state = _with_count(self.state, steps, fill)
        if not found(self.initial, is_packed):
            return state
        return pack_state(self.tx, state, self.params)


def members(state: State) -> list[State]:
    """The states with moments in a state, at any depth."""
    return [x for x in states_in(state) if described(x).slots]


def read(state: State, params: Params) -> Moments:
    """The moments in a state of this package or of Optax.

    Raises:
      ValueError: there are none, or counts that are not one number.
    """
    slots: dict[Key, Stored] = {}
    counts: dict[str, int] = {}
    state = unpack_state(state, params)
    for member in members(state):
        stored = _stored(member, params)
        if not described(member).counts:
            raise ValueError(
                f"state must count its optimizer steps, got {type(member).__name__}"
                f"({', '.join(member._fields)}), which has no count."
            )
        count = getattr(member, described(member).counts[0])
        if np.ndim(count):
            raise ValueError(
                f"state must be that of one run, got counts of shape {np.shape(count)}: take one"
                f" of a population, jax.tree.map(lambda x: x[i], state)."
            )
        slots |= stored
        counts |= {path: int(count) for path, _ in stored}
    if not slots:
        raise ValueError(
            f"state must have the moments of a member of Adam's family in it, got"
            f" {jax.tree.structure(state)}: pass what init or update returned."
        )
    return Moments(slots, counts, frozenset(map(type, members(state))))


def left_behind(state: State) -> list[str]:
    """The paths of arrays in a state that are neither moments nor counts of steps, but matter."""

    def strip(x: Leaf) -> Leaf:
        if not is_state(x):
            return x
        fields = described(x)
        own = fields.own if fields.matters(x) else ()
        inside = {name: walk(getattr(x, name)) for name in fields.inner}
        return inside | {name: getattr(x, name) for name in own}

    def walk(x: Leaf) -> Leaf:
        return jax.tree.map(strip, x, is_leaf=is_state)

    return leaf_paths(walk(state), none_is_leaf=False)


def _with_count(state: State, steps: int, fill: Callable[[Any], Any]) -> State:
    """The state with its counts of optimizer steps set, and its members filled."""

    def renew(x: Leaf) -> Leaf:
        if not is_state(x):
            return x
        fields = described(x)
        counts = {n: jnp.full_like(getattr(x, n), steps) for n in fields.counts}
        inside = {n: _with_count(getattr(x, n), steps, fill) for n in fields.inner}
        x = x._replace(**counts, **inside)
        return fill(x) if fields.slots else x

    return jax.tree.map(renew, state, is_leaf=is_state)


def _stored(member: State, params: Params) -> dict[Key, Stored]:
    """What a member's state keeps for each parameter that is its."""
    return {
        (path, slot): x
        for slot in described(member).slots
        for path, x in zip(leaf_paths(params), _aligned(params, getattr(member, slot)), strict=True)
        if format_of(x) is not None
    }


def _aligned(params: Params, slot_tree: PyTree) -> list[State]:
    """What one slot keeps for each parameter; `optax.MaskedNode` where it keeps nothing."""
    treedef = jax.tree.structure(params, is_leaf=lambda x: x is None)
    try:
        return align_slot(treedef, params, slot_tree)
    except ValueError:
        pass

    # The labels of `optax.partition` may be for whole subtrees, which then are one masked node.
    def spread(x: Leaf, below: Any) -> Leaf:
        return jax.tree.map(lambda _: x, below) if _is_masked(x) else x

    try:
        tree = jax.tree.map(spread, slot_tree, params, is_leaf=_is_masked_or_stored)
        return align_slot(treedef, params, tree)
    except ValueError:
        given, kept = set(leaf_paths(params)), set(leaf_paths(slot_tree, none_is_leaf=False))
        raise ValueError(
            f"params must be those that the state was made for, got {listed(sorted(given))}: the"
            f" state has {listed(sorted(kept))}."
        ) from None


def _is_masked(x: Leaf) -> bool:
    return isinstance(x, optax.MaskedNode)


def _is_masked_or_stored(x: Leaf) -> bool:
    return _is_masked(x) or is_stored(x)


def _with_slots(member: State, params: Params, new: Mapping[Key, Stored], count: int) -> State:
    treedef = jax.tree.structure(params, is_leaf=lambda x: x is None)
    fields = {}
    for name in described(member).counts:
        fields[name] = jnp.full_like(getattr(member, name), count)
    for name in described(member).slots:
        old = getattr(member, name)
        aligned = zip(leaf_paths(params), _aligned(params, old), strict=True)
        slot = unflatten_slot(treedef, params, [new.get((p, name), x) for p, x in aligned])
        fields[name] = jax.tree.map(
            lambda x, y: x if _is_masked(x) else y, old, slot, is_leaf=_is_masked_or_stored
        )
    return member._replace(**fields)


def _encoded(x: Leaf, like: PyTree) -> Leaf:
    """What is to be stored, in the form of `like`: as it is, if that is its form already."""
    fmt = format_of(like)
    assert fmt is not None
    x = fetched(x)
    if isinstance(x, np.ndarray) or format_of(x) != fmt:
        x = jnp.asarray(x if isinstance(x, np.ndarray) else dense(x))
        x = fmt.encode(x) if isinstance(fmt, Dense) else _encode(fmt, x)
    return jax.tree.map(placed_like, x, like)


def dense(stored: Stored) -> jax.Array:
    """What is stored, as one number per element, at least float32."""
    fmt = format_of(stored)
    assert fmt is not None
    if isinstance(fmt, Dense):
        return fmt.decode(stored, arithmetic_dtype(stored))
    return _decode(fmt, stored)


# One program for each shape, where they would be one for each operation.
@functools.partial(jax.jit, static_argnums=0)
def _encode(fmt: Format, x: jax.Array) -> Stored:
    return fmt.encode(x)


@functools.partial(jax.jit, static_argnums=0)
def _decode(fmt: Format, stored: Stored) -> jax.Array:
    return fmt.decode(stored, jnp.result_type(float))


def _complain_of_counts(counts: Mapping[str, int], member: str) -> None:
    few = [f"{path}: {count}" for path, count in sorted(counts.items())]
    raise ValueError(
        f"the parameters of one {member} must have taken the same number of steps, got"
        f" {listed(few)}: put those that began later into a transformation of their own,"
        f" optax.partition."
    )
