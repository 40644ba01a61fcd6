"""The contents of each state type, for conversions, byte counts, sharding and readers of states.

A state is a NamedTuple. Its type is described once, next to its definition. The state of a stage is
described when a transformation is built from it, because the rule knows its slots.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from optax import contrib

from adam_jax._types import Leaf, Params, PyTree, State, Stored
from adam_jax.core.boxes import unboxed
from adam_jax.core.trees import Keys, is_stored
from adam_jax.formats.dense import format_of
from adam_jax.pytrees import exported


@dataclasses.dataclass(frozen=True)
class StateFields:
    """The contents of a state's fields. All others belong to its transformation alone.

    Attributes:
      slots: accumulators, trees like the parameters, and whether each is a magnitude, whose storage
        follows `nu_dtype`.
      counts: numbers of optimizer steps.
      inner: states of other transformations, in any container.
      others_matter: a conversion resets all other fields. Whether it then loses information and is
        refused: True, False, or the name of a field that is nonzero while it does.
    """

    slots: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    counts: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    others_matter: bool | str = True

    def lost(self, state: State) -> list[str]:
        """The fields that a conversion must not reset."""
        when = self.others_matter
        if not (np.any(getattr(state, when)) if isinstance(when, str) else when):
            return []
        return [n for n in state._fields if n not in (*self.slots, *self.counts, *self.inner)]


_KNOWN: dict[type, StateFields] = {}


def register(
    state_type: Any,
    *,
    slots: Mapping[str, bool] | None = None,
    counts: Sequence[str] = (),
    inner: Sequence[str] = (),
    others_matter: bool | str = True,
) -> None:
    """Describes a NamedTuple, as `StateFields` does. Repeating a description changes nothing.

    Raises:
      ValueError: the type has no such field, or another description.
    """
    slots, names = slots or {}, state_type._fields
    if unknown := sorted({*slots, *counts, *inner} - set(names)):
        raise ValueError(f"the fields of {state_type.__name__} are {list(names)}, got {unknown}.")
    in_order = {name: slots[name] for name in names if name in slots}
    new = StateFields(in_order, tuple(counts), tuple(inner), others_matter)
    if names and _KNOWN.setdefault(state_type, new) != new:
        raise ValueError(
            f"{state_type.__name__} is described as {_KNOWN[state_type]} already, got {new}: give"
            f" the state a NamedTuple of its own."
        )
    if state_type.__module__.startswith("adam_jax."):
        exported(state_type)


def register_optax_states() -> None:
    """Lets `jax.export` write and read steps whose states have NamedTuples of Optax.

    Call it before `serialize` and `deserialize`. Those of this package are registered already.
    """
    for kind in (*vars(optax).values(), *vars(contrib).values(), *_KNOWN):
        if hasattr(kind, "_fields"):
            exported(kind)


def is_state(x: Leaf) -> bool:
    """Whether this is a NamedTuple, like the state of every transformation."""
    return isinstance(x, tuple) and hasattr(x, "_fields")


def is_known(x: Leaf) -> bool:
    """Whether this is a state whose type is described."""
    return type(x) in _KNOWN


def described(state: State) -> StateFields:
    """The contents of a state's fields.

    Optax has some hundred state types, and few are described here. In the others, fields that
    contain a described state are `inner`, and the others matter.

    Raises:
      ValueError: its type is unknown, and it contains arrays.
    """
    kind = type(state)
    if kind in _KNOWN:
        return _KNOWN[kind]
    if kind.__module__.partition(".")[0] == "optax":
        inner = (name for name in state._fields if found(getattr(state, name), is_known))
        return StateFields(inner=tuple(inner))
    if not jax.tree.leaves(state):
        return StateFields()
    raise ValueError(
        f"the state must be made of types that are described, got {kind.__name__}"
        f"({', '.join(state._fields)}): build the transformation that keeps it first, pass the part"
        f" that is of an optimizer alone, or describe the type where it is defined,"
        f" adam_jax.core.states.register({kind.__name__}, counts=..., inner=...)."
    )


def states_by_path(state: State, above: Keys = ()) -> Iterator[tuple[Keys, State]]:
    """Every state in this one, at any depth, with its path, outer states before inner ones.

    `above` is the path of `state`.

    Raises:
      ValueError: the type of a state is unknown.
    """
    for keys, x in jax.tree_util.tree_flatten_with_path(state, is_leaf=is_state)[0]:
        if is_state(x):
            yield (path := (*above, *keys)), x
            for name in described(x).inner:
                inner_path = (*path, jax.tree_util.GetAttrKey(name))
                yield from states_by_path(getattr(x, name), inner_path)


def found(tree: PyTree, wanted: Callable[[Any], bool]) -> list[Leaf]:
    """Everything in a tree that matches, at any depth, without looking inside matches."""
    return [x for x in jax.tree.leaves(tree, is_leaf=wanted) if wanted(x)]


def only(state: State, wanted: Callable[[Any], bool], what: str, instead: str) -> State:
    """The one state in this one, at any depth, that matches.

    Raises:
      ValueError: there is none, or several: names `what` and, for none, what to do `instead`.
    """
    states = found(state, wanted)
    if len(states) != 1:
        if states:
            instead = "pass the part of the state that you mean, such as state[1]"
        raise ValueError(f"the state must have one {what} in it, got {len(states)}: {instead}.")
    return states[0]


def owners(state: State, params: Params) -> list[tuple[Leaf, int | None]]:
    """Each leaf of a state, with the index of the parameter that it belongs to; None if shared.

    A leaf is one stored form, which may have several arrays. It belongs to the parameter whose path
    ends its own, to the one of its shape if there are several. Counts and scalar statistics of
    larger parameters are shared.

    Args:
      state: of any transformation.
      params: the parameters, or a tree with their shapes.
    """
    shapes: dict[Keys, tuple[int, ...]] = {}
    indices: dict[Keys, int] = {}
    for i, (keys, p) in enumerate(jax.tree_util.tree_flatten_with_path(params)[0]):
        # A stored form of several arrays replaces a box, which holds its array in `value`.
        boxed = keys[-1:] == (jax.tree_util.GetAttrKey("value"),)
        for own in {keys, keys[:-1] if boxed else keys}:
            shapes[own], indices[own] = np.shape(p), i

    def owner(keys: Keys, stored: Stored) -> int | None:
        fmt = format_of(stored)
        shape = np.shape(stored) if fmt is None else fmt.shape(stored)
        ends = [own for n in range(len(keys) + 1) if (own := keys[n:]) in shapes]
        ends = [own for own in ends if shape or not shapes[own]]
        return indices[max(ends, key=lambda own: shapes[own] == shape)] if ends else None

    def walk(tree: PyTree, above: Keys) -> Iterator[tuple[Leaf, int | None]]:
        flat, _ = jax.tree_util.tree_flatten_with_path(
            tree, is_leaf=lambda x: is_stored(x) or is_known(x)
        )
        for below, x in flat:
            if not is_known(x):
                stored = unboxed(x)
                yield stored, owner((*above, *below), stored)
                continue
            fields = _KNOWN[type(x)]
            for name in x._fields:
                inside, key = getattr(x, name), jax.tree_util.GetAttrKey(name)
                if name in fields.counts:
                    yield from ((leaf, None) for leaf in jax.tree.leaves(inside))
                else:
                    # Keys above, such as the index of a stage, are not part of a parameter's path.
                    yield from walk(inside, (key,))

    return list(walk(state, ()))


# Optax's own types, also used by our members: a state may come from Optax before any member is
# built.
_ADAM = {"mu": False, "nu": True}
register(optax.ScaleByAdamState, slots=_ADAM, counts=["count"])
register(optax.ScaleByBeliefState, slots=_ADAM, counts=["count"])
register(optax.ScaleByAmsgradState, slots=_ADAM | {"nu_max": True}, counts=["count"])
register(optax.ScaleByLionState, slots={"mu": False}, counts=["count"])
register(
    optax.ScaleByAdanState, slots={"m": False, "v": False, "n": True, "g": False}, counts=["t"]
)
# Optax exports functions that make these two, but not their types.
WeightDecaySchedule: Any = type(
    jax.eval_shape(optax.add_decayed_weights(lambda count: 0.0).init, ())
)
register(WeightDecaySchedule, counts=["count"])
WrappedScheduleState: Any = type(
    jax.eval_shape(optax.schedules.WrappedSchedule(lambda count: 0.0).init)
)
register(WrappedScheduleState, counts=["count"])
register(optax.ScaleByScheduleState, counts=["count"])
register(optax.MaskedState, inner=["inner_state"])
register(optax.PartitionState, inner=["inner_states"])
register(
    optax.MultiStepsState,
    counts=["gradient_step"],
    inner=["inner_opt_state"],
    others_matter="mini_step",
)
register(optax.InjectHyperparamsState, counts=["count"], inner=["inner_state"], others_matter=False)
register(
    optax.InjectStatefulHyperparamsState,
    counts=["count"],
    inner=["hyperparams_states", "inner_state"],
    others_matter=False,
)
register(optax.ApplyIfFiniteState, inner=["inner_state"], others_matter=False)
