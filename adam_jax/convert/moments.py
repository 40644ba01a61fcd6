"""Reads the moments of one state by parameter path and writes them into another.

Every conversion uses this module. Only moments and counts of optimizer steps are transferred.
Anything else (an average of the parameters, a partly accumulated gradient) restarts.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax._types import AnyTransformation, Function, Leaf, Params, PyTree, State, Stored
from adam_jax.convert.entries import placed_like
from adam_jax.convert.names import listed
from adam_jax.engine.boxes import unboxed
from adam_jax.engine.leafwise import decoded, fetched
from adam_jax.engine.masks import leaves_below
from adam_jax.engine.states import described, found, is_known, is_state, states_in
from adam_jax.engine.transformation import body_of
from adam_jax.engine.trees import is_stored, leaf_paths, unflatten_slot
from adam_jax.engine.unrounded import arithmetic_dtype
from adam_jax.formats.base import Format
from adam_jax.formats.dense import Dense
from adam_jax.formats.policy import format_of

Key = tuple[str, str]
"""The path of a parameter and one of its slots: `("layers/0/kernel", "mu")`."""


class Target:
    """The initial state of a transformation, and the moments that it can hold.

    Attributes:
      kinds: the type of the member's state, for each path and slot.
      shapes: of each parameter.
    """

    def __init__(self, params: Params, tx: AnyTransformation) -> None:
        body_of("tx", tx)
        self.params, self.state = params, tx.init(params)
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

    def filled(self, slots: Mapping[Key, Stored], counts: Mapping[str, int]) -> State:
        """The state with these moments, which must be exactly those that it holds.

        Args:
          slots: as from `read`; or NumPy arrays.
          counts: as from `read`.
        """
        latest = max(counts.values())

        def fill(x: State) -> State:
            fields, stored = described(x), _stored(x, self.params)
            taken = {path: counts[path] for path, _ in stored}
            if len(set(taken.values())) > 1:
                few = [f"{path}: {count}" for path, count in sorted(taken.items())]
                raise ValueError(
                    f"the parameters of one {type(x).__name__} must have taken the same number of"
                    f" steps, got {listed(few)}: give those that started later a separate"
                    f" transformation, by optax.partition."
                )
            steps = max(taken.values(), default=latest)
            new = {name: jnp.full_like(getattr(x, name), steps) for name in fields.counts}
            for slot in fields.slots:
                own = [_encoded(slots[key], old) for key, old in stored.items() if key[1] == slot]
                new[slot] = unflatten_slot(getattr(x, slot), own)
            return x._replace(**new)

        return map_states(fill, self.state)


def members(state: State) -> list[State]:
    """The states with moments in a state, at any depth."""
    states = ((x, [getattr(x, name) for name in described(x).slots]) for x in states_in(state))
    return [x for x, slots in states if jax.tree.leaves(slots)]


def read(state: State, params: Params) -> tuple[dict[Key, Stored], dict[str, int]]:
    """The moments in a state of this package or of Optax.

    Returns:
      The stored moments, in their formats; and optimizer steps by parameter path.

    Raises:
      ValueError: there are no moments, or a count is not a scalar.
    """
    slots: dict[Key, Stored] = {}
    counts: dict[str, int] = {}
    for member in members(state):
        fields = described(member)
        if not fields.counts:
            raise ValueError(
                f"state must count its optimizer steps, got {type(member).__name__}"
                f"({', '.join(member._fields)}), which has no count."
            )
        count = getattr(member, fields.counts[0])
        if np.ndim(count):
            raise ValueError(
                f"state must be that of one run, got counts of shape {np.shape(count)}: select one"
                f" of a population, jax.tree.map(lambda x: x[i], state)."
            )
        stored = _stored(member, params)
        slots |= stored
        counts |= {path: int(count) for path, _ in stored}
    if not slots:
        raise ValueError(
            f"state must have the moments of a member of Adam's family in it, got"
            f" {jax.tree.structure(state)}: pass what init or update returned."
        )
    return slots, counts


def left_behind(state: State) -> list[str]:
    """The paths of arrays in a state that are neither moments nor counts of steps, but matter."""

    def strip(x: State) -> State:
        fields = described(x)
        kept = {*fields.inner, *(fields.own if fields.matters(x) else ())}
        return x._replace(**dict.fromkeys(set(x._fields) - kept))

    return leaf_paths(map_states(strip, state), none_is_leaf=False)


def map_states(f: Function, state: State) -> State:
    """Applies f to every known state and to states around one, at any depth, inner ones first.

    Raises:
      ValueError: such a state has an unknown type.
    """

    def is_wanted(x: Leaf) -> bool:
        # Excludes the user's NamedTuples, such as parameters beside the state.
        return is_state(x) and bool(found(x, is_known))

    def walk(x: Leaf) -> Leaf:
        if not is_wanted(x):
            return x
        return f(x._replace(**{n: map_states(f, getattr(x, n)) for n in described(x).inner}))

    return jax.tree.map(walk, state, is_leaf=is_wanted)


def _stored(member: State, params: Params) -> dict[Key, Stored]:
    """The stored moments of each parameter of a state, slot by slot in the order of the leaves.

    An `optax.MaskedNode` may replace a whole subtree of parameters without moments, as the labels
    of `optax.partition` do.
    """
    whole, paths = jax.tree.structure(params, is_leaf=lambda x: x is None), leaf_paths(params)
    stored = {}
    for slot in described(member).slots:
        tree = getattr(member, slot)
        kept, prefix = jax.tree.flatten(tree, is_leaf=lambda x: is_stored(x) or _is_masked(x))
        own = leaf_paths(prefix.unflatten(range(len(kept))), none_is_leaf=False)
        try:
            below = list(leaves_below(prefix, whole, absent=range(whole.num_leaves)))
            for x, path, indices in zip(kept, own, below, strict=True):
                if _is_masked(x):
                    continue
                if [paths[i] for i in indices] != [path]:
                    raise ValueError
                stored[path, slot] = unboxed(x)
        except ValueError:
            given, kept = sorted(paths), sorted(leaf_paths(tree, none_is_leaf=False))
            raise ValueError(
                f"params must be those that the state was made for, got {listed(given)}: the state"
                f" has {listed(kept)}."
            ) from None
    return stored


def _is_masked(x: Leaf) -> bool:
    return isinstance(x, optax.MaskedNode)


def _encoded(x: Leaf, like: PyTree) -> Leaf:
    """Encodes x in the format of `like`; unchanged if it has that format already."""
    fmt = format_of(like)
    if format_of(x) != fmt:
        x = _encode(fmt, dense(x))
    return jax.tree.map(placed_like, fetched(x), like)


def dense(stored: Stored) -> jax.Array:
    """Decodes a stored array to one number per element, at least float32."""
    is_array = isinstance(format_of(stored), Dense)
    dtype = arithmetic_dtype(stored) if is_array else jnp.result_type(float)
    return _decode(fetched(stored), dtype)


# Under jit there is one program per shape, not one per operation.
_decode = jax.jit(decoded, static_argnums=1)


@functools.partial(jax.jit, static_argnums=0)
def _encode(fmt: Format, x: jax.Array) -> Stored:
    return fmt.encode(x)
