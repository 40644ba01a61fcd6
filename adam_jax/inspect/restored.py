"""Whether a restored state continues the run of its parameters."""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax._types import AnyTransformation, Params, State, Updates
from adam_jax.convert.moments import dense
from adam_jax.convert.names import by_path, listed
from adam_jax.core.boxes import unboxed
from adam_jax.core.states import described, states_by_path
from adam_jax.core.transformation import body_of
from adam_jax.core.trees import Keys, fetched, is_stored
from adam_jax.formats.blockwise import Blocks
from adam_jax.formats.dense import format_of, is_inexact

KINDS = ("structure", "devices", "nonfinite", "range", "counts", "step", "moments", "size")


class Fault(NamedTuple):
    """What does not fit: its kind, its path in the state, and the end of a sentence."""

    kind: str
    where: str
    text: str


def check_state(
    state: State,
    params: Params,
    tx: AnyTransformation,
    step: int | None = None,
    grads: Updates = None,
    *,
    raise_on: Collection[str] = (),
) -> tuple[Fault, ...]:
    """Finds out whether a restored state belongs to these parameters and this transformation.

        structure  types of states, shapes, dtypes or storage that `tx.init(params)` does not make
        devices    arrays on other devices than the parameters
        nonfinite  NaN or infinity
        range      negative second moments, a code that no step makes
        counts     counts of optimizer steps that disagree, outside of late optimizers in `groups`
        step       counts that disagree with `step`
        moments    zero in all leaves after 2 steps or more; not those of `init` after none
        size       second moments that are zero, or 1e5 times larger or smaller than `grads` make

    Args:
      state: of `tx`, as it was restored. Each moment is decoded once.
      params: the parameters, or `jax.ShapeDtypeStruct`s of them.
      tx: the transformation that continues.
      step: optimizer steps completed, where the run counts them, with or without skipped ones.
      grads: of any step, like `params`. None leaves out `size`, and so does `accumulate`.
      raise_on: the kinds of faults that raise an error; "any" for all.

    Returns:
      The faults; none of the last four kinds beside `structure`. Optax has no such check.

    Raises:
      ValueError: a fault in `raise_on`, or an unknown kind; a state of unknown types.
    """
    wanted = {*(KINDS if raise_on == "any" else raise_on)}
    if not wanted <= {*KINDS}:
        raise ValueError(f"raise_on must be 'any' or a list of kinds of {KINDS}, got {raise_on!r}.")
    body, own = body_of("tx", tx), _forms(state)
    made = _forms(jax.eval_shape(body.init, params))
    faults = [
        Fault("structure", path, f"is {own.get(path)}, and tx makes {made.get(path)}")
        for path in own | made
        if own.get(path) != made.get(path)
    ]
    if not faults:
        after_one = jax.jit(lambda g, p: _measured(body.update(g, body.init(p), p)[1]))
        faults += _of_counts(state, step)
        faults += _of_moments(state, {} if grads is None else after_one(grads, params))
    faults += _of_arrays(state, params)
    if wrong := [f"{kind}: {where} {text}" for kind, where, text in faults if kind in wanted]:
        raise ValueError(f"the state must continue the run of params and tx, got {listed(wrong)}.")
    return tuple(faults)


def _path(keys: Keys, *more: str) -> str:
    return "/".join([jax.tree_util.keystr((key,), simple=True) for key in keys] + [*more])


def _forms(state: State) -> dict[str, str]:
    """What each state and each stored form is, by path."""
    forms = {_path(keys): type(x).__name__ for keys, x in states_by_path(state)}
    for path, x in by_path(state, is_stored).items():
        arrays = [f"{jnp.result_type(a)}{[*np.shape(a)]}" for a in jax.tree.leaves(x)]
        forms[path] = f"{' and '.join(arrays)} ({format_of(unboxed(x))})"
    return forms


def _of_arrays(state: State, params: Params) -> Iterator[Fault]:
    devices = [p.sharding.device_set for p in jax.tree.leaves(params) if isinstance(p, jax.Array)]
    # Between optimizer steps, and in what was measured, anything may be.
    free = {*map(jax.tree_util.GetAttrKey, ("acc_grads", "groups"))}
    for keys, stored in jax.tree_util.tree_flatten_with_path(state, is_leaf=is_stored)[0]:
        path, stored = _path(keys), unboxed(stored)
        for x in jax.tree.leaves(stored):
            if devices and isinstance(x, jax.Array) and x.sharding.device_set not in devices:
                yield Fault("devices", path, "is not on the devices of the parameters")
            if is_inexact(x) and free.isdisjoint(keys) and not jnp.isfinite(fetched(x)).all():
                yield Fault("nonfinite", path, "has NaN or infinity")
        if isinstance(stored, Blocks) and (codec := stored.format.codec).signed:
            if jnp.any(fetched(stored.codes) < -codec.steps):
                yield Fault("range", path, "has codes that no step makes")


def _of_counts(state: State, step: int | None) -> Iterator[Fault]:
    """Counts may lag by the steps that wrappers skipped; in `groups` by more."""
    places = list(states_by_path(state))
    groups = [path for path, x in places if isinstance(x, optax.PartitionState)]
    skipped = sum(int(np.max(getattr(x, "total_notfinite", 0))) for _, x in places)
    names = [(path, x, name) for path, x in places for name in described(x).counts]
    counts = [(path, name, int(np.max(getattr(x, name)))) for path, x, name in names]
    top = max((n for *_, n in counts), default=0)
    for path, name, n in counts:
        if n < top and any(path[: len(above)] == above for above in groups):
            continue
        if n + skipped < top:
            yield Fault("counts", _path(path, name), f"is {n}, and another count is {top}")
        if step is not None and abs(n - step) > skipped:
            yield Fault("step", _path(path, name), f"is {n}, and step is {step}")


def _of_moments(state: State, after_one: dict[str, Any]) -> Iterator[Fault]:
    measured = _measured(state)
    for path, x in states_by_path(state):
        count = max((int(np.max(getattr(x, name))) for name in described(x).counts), default=1)
        for slot, magnitude in described(x).slots.items():
            own = measured[where := _path(path, slot)]
            for leaf, (low, spread, size) in own.items():
                one = after_one[where][leaf][2] if magnitude and after_one else 0
                if magnitude and low < 0:
                    yield Fault("range", f"{where}/{leaf}", "has negative numbers")
                if count == 0 and spread and not magnitude:
                    yield Fault("moments", f"{where}/{leaf}", "is not as init made it")
                if count > 1 and one and not 1e-5 <= size / one / min(count, 1000) <= 1e5:
                    text = f"has the mean {size:.1e}, and one step with grads makes {one:.1e}"
                    yield Fault("size", f"{where}/{leaf}", text)
            if count > 1 and own and not any(size for _, _, size in own.values()):
                yield Fault("moments", where, f"is zero after {count} steps")


def _measured(state: State) -> dict[str, dict[str, Any]]:
    """The lowest number, the range and the mean size of each moment, by slot and leaf."""
    return {
        _path(path, slot): {
            leaf: (jnp.min(jnp.real(y)), jnp.ptp(jnp.real(y)), jnp.mean(jnp.abs(y)))
            for leaf, stored in by_path(getattr(x, slot), is_stored).items()
            if (y := dense(unboxed(stored), magnitude)).size
        }
        for path, x in states_by_path(state)
        for slot, magnitude in described(x).slots.items()
    }
