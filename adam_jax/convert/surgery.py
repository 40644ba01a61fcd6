"""States of models that change in the middle of a run."""

import collections
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from adam_jax._types import AnyTransformation, Params, State, Stored
from adam_jax.convert.moments import dense, encoded, map_states
from adam_jax.convert.names import by_path, listed
from adam_jax.core.boxes import unboxed
from adam_jax.core.states import described
from adam_jax.core.transformation import Transformation, body_of
from adam_jax.core.trees import is_stored, unflatten_slot
from adam_jax.hyperparams import expanded
from adam_jax.rules.base import rules_in
from adam_jax.validation import check_expression


def carry(
    state: State,
    old_params: Params,
    new_params: Params,
    tx: AnyTransformation,
    rename: Mapping[str, Any] | None = None,
) -> tuple[State, dict[str, list[str]]]:
    """A state for changed parameters: what both models have is kept, what is new starts fresh.

    Averages, residuals and hyperparameters are kept too. Leaves that `tx` freezes are dropped.

    Args:
      state: of the run so far.
      old_params: its parameters, or their shapes.
      new_params: the parameters from now on.
      tx: the transformation from now on.
      rename: for the path of a new leaf, that of an old one, by default the same; None for none.
        With an index, `("embed", rows)`, that part of the old leaf comes first in the new one, of
        another shape, and `...` is all of it. Without one, a leaf of another shape starts fresh.

    Returns:
      The state, and the paths of leaves whose moments are "kept", "started" and "dropped". A leaf
      that starts beside others has their count, so no bias correction; an optimizer in `groups`
      all of whose leaves start counts from 0.

    Raises:
      ValueError: an unknown path, an index that does not fit, nothing to keep, leaves of one member
        with different counts.
    """
    old, new = ({k: np.shape(p) for k, p in by_path(x).items()} for x in (old_params, new_params))
    told = {path: x if isinstance(x, tuple) else (x, None) for path, x in (rename or {}).items()}
    if unknown := sorted((told.keys() - new) | ({x for x, _ in told.values()} - {None, *old})):
        raise ValueError(
            f"rename must map paths of new_params to paths of old_params, got {listed(unknown)}:"
            f" they are {listed(new)} and {listed(old)}."
        )
    before: dict[Any, list[Stored]] = collections.defaultdict(list)
    seen, steps, kept, fresh = collections.Counter(), {}, {}, {}

    def collect(x: State) -> State:
        for field in {*x._fields} - {*described(x).inner}:
            for path, stored in by_path(getattr(x, field), is_stored).items():
                before[type(x), field, path].append(unboxed(stored))
                if field in described(x).slots:
                    steps[path] = int(getattr(x, described(x).counts[0]))
        return x

    def fill(x: State) -> State:
        slots, counts, renewed, taken = described(x).slots, described(x).counts, {}, set()
        for field in {*x._fields} - {*described(x).inner}:
            entries = by_path(getattr(x, field), is_stored)
            for path, like in entries.items():
                source, index = (path, None) if field in counts else told.get(path, (path, None))
                # States of one type are taken in their order.
                found = before[type(x), field, source][seen[type(x), field, path] :]
                seen[type(x), field, path] += 1
                shape = dense(found[0]).shape if found and index is not None else new.get(path)
                if fits := found and (field in counts or old.get(source) == shape):
                    entries[path] = _part(found[0], index, unboxed(like))
                if field in slots:
                    (kept if fits else fresh)[path] = source
                    taken |= {steps[source]} if fits else set()
            renewed[field] = unflatten_slot(getattr(x, field), [*entries.values()])
        if len(taken) > 1:
            raise ValueError(
                f"the leaves of one {type(x).__name__} must have taken the same number of steps,"
                f" got {sorted(taken)}: give those that start later their own optimizer in groups."
            )
        for name in counts if slots else ():
            renewed[name] = jnp.full_like(getattr(x, name), max(taken, default=0))
        return x._replace(**renewed)

    map_states(collect, state)
    made = map_states(fill, Transformation.around(body_of("tx", tx)).init(new_params))
    if not kept:
        raise ValueError(
            f"state must have moments that tx keeps too, got those of {listed(steps)}: pass a state"
            f" of the same member, and rename={{new path: old path}}."
        )
    started = [path for path in fresh if path not in kept]
    dropped = [path for path in steps if path not in kept.values()]
    return made, {"kept": [*kept], "started": started, "dropped": dropped}


def _part(x: Stored, index: Any, like: Stored) -> Stored:
    """The part of an old array at `index`, in the first elements of a new one."""
    if index is None:
        return encoded(x, like)
    part, whole = dense(x)[index], dense(like)
    if part.ndim != whole.ndim or any(n > m for n, m in zip(part.shape, whole.shape, strict=True)):
        raise ValueError(
            f"an index in rename must select at most the new shape, {whole.shape}, got"
            f" {part.shape}."
        )
    whole = whole.at[tuple(map(slice, part.shape))].set(part.astype(whole.dtype))
    return encoded(whole, like)


def reset(state: State, tx: AnyTransformation, pattern: str) -> State:
    """Starts the moments of some leaves anew, as for a head that is initialized again.

    Args:
      state: of `tx`.
      tx: the transformation.
      pattern: a regular expression for the whole path of these leaves, `"head/.*"`.

    Returns:
      The state. Averages of parameters stay, and so do counts: see `carry`. A member all of whose
      leaves are reset counts from 0; its schedules go on.

    Raises:
      ValueError: an expression that is invalid or matches no moments.
    """
    check_expression("pattern", pattern)
    starts = {slot.name: slot.start for rule in rules_in(expanded(tx)) for slot in rule.slots}
    matches: dict[str, bool] = {}

    def restart(x: State) -> State:
        renewed, own = {}, {}
        for slot in described(x).slots:
            entries, start = by_path(getattr(x, slot), is_stored), starts.get(slot, 0.0)
            own |= {path: bool(re.fullmatch(pattern, path)) for path in entries}
            if not callable(start):  # Others start with a function of the parameter.
                for path in filter(own.get, entries):
                    like = unboxed(entries[path])
                    entries[path] = encoded(jnp.full_like(dense(like), start), like)
            renewed[slot] = unflatten_slot(getattr(x, slot), [*entries.values()])
        if own and all(own.values()):
            renewed |= {name: jnp.zeros_like(getattr(x, name)) for name in described(x).counts}
        matches.update(own)
        return x._replace(**renewed)

    made = map_states(restart, state)
    if not any(matches.values()):
        raise ValueError(
            f"pattern must match the whole path of a leaf with moments, got {pattern!r}: they are"
            f" {listed(sorted(matches))}."
        )
    return made
