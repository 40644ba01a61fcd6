"""Whether a restored state continues the run of its parameters."""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax._types import AnyTransformation, Params, State, Stored, Updates
from adam_jax.convert.moments import dense
from adam_jax.convert.names import by_path, listed
from adam_jax.core.boxes import unboxed
from adam_jax.core.states import described, states_by_path, states_in
from adam_jax.core.transformation import body_of
from adam_jax.core.trees import fetched, is_stored
from adam_jax.formats.blockwise import Blocks
from adam_jax.formats.dense import format_of, is_inexact
from adam_jax.rules.hyperparameters import Scheduled
from adam_jax.sharding import without_sharding
from adam_jax.wrap.accumulate import Accumulate

KINDS = ("structure", "format", "counts", "step", "schedule", "moments", "time", "size")
KINDS += ("nonfinite", "range", "devices")


class Fault(NamedTuple):
    """What does not fit: its kind, its path in the state or in `tx`, and the end of a sentence."""

    kind: str
    where: str
    text: str


class StateReport(NamedTuple):
    """The result of `check_state`: counts of steps by path, and faults. It prints one per kind."""

    counts: dict[str, int]
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        lines = []
        for kind in KINDS:
            its = [f"{kind}: {f.where!r} {f.text}" for f in self.faults if f.kind == kind]
            lines += [x + f" (and {len(its) - 1} more)" * (len(its) > 1) for x in its[:1]]
        steps = f" after {max(self.counts.values())} steps" if self.counts else ""
        return "\n".join(lines) or f"no faults{steps}"

    __repr__ = __str__


def check_state(
    state: State,
    params: Params,
    tx: AnyTransformation,
    step: int | None = None,
    grads: Updates = None,
    *,
    raise_on: str | Collection[str] = (),
) -> StateReport:
    """Finds out whether a restored state belongs to these parameters and this transformation.

        structure  the state of another member, of other wrappers or other parameters
        format     a leaf whose shape, dtype or storage `tx.init(params)` does not make
        counts     counts of optimizer steps that disagree, outside of late optimizers in `groups`
        step       counts that disagree with `step`
        schedule   a learning rate of this package that ended before the last steps
        moments    zero in all leaves after 2 steps or more; not those of `init` after none
        time       a leaf without moments that has a gradient in `grads`
        size       second moments 1e5 times larger or smaller than those of `grads`
        nonfinite  NaN or infinity
        range      negative second moments, a code that no step makes
        devices    arrays on other devices than the parameters

    Args:
      state: of `tx`, as it was restored. Each moment is decoded once.
      params: the parameters, arrays.
      tx: the transformation that continues.
      step: optimizer steps completed, where the run counts them, with or without skipped ones.
      grads: of any step, like `params`; None leaves out `time` and `size`.
      raise_on: the kinds of faults that raise an error; "any" for all. A state in another format
        continues too, and so does a learning rate that stays at its end.

    Returns:
      A `StateReport` to print. Optax and PyTorch have no such check.

    Raises:
      ValueError: a fault in `raise_on`, or an unknown kind; a state of unknown types.
    """
    wanted = KINDS if raise_on == "any" else (raise_on,) if isinstance(raise_on, str) else raise_on
    if unknown := sorted({*wanted} - {*KINDS}):
        raise ValueError(f"raise_on must be 'any' or kinds of {KINDS}, got {unknown}.")
    like = jax.eval_shape(body_of("tx", tx).init, params)
    faults, counts = [*_of_forms(state, like), *_of_arrays(state, params)], {}
    if not any(f.kind in ("structure", "format") for f in faults):
        faults += _of_counts(state, step, counts)
        faults += _of_schedules(tx, max(counts.values(), default=0))
        faults += _of_moments(state, {} if grads is None else _after_one_step(tx, grads, params))
    report = StateReport(counts, tuple(faults))
    if any(f.kind in wanted for f in faults):
        text = "; ".join(str(report).splitlines())
        raise ValueError(f"the state must continue the run of params and tx, got {text}.")
    return report


def _path(keys: Any, *more: str) -> str:
    first = jax.tree_util.keystr(keys, simple=True, separator="/")
    return "/".join(x for x in (first, *more) if x)


def _of_forms(state: State, like: State) -> Iterator[Fault]:
    made, expected = by_path(state, is_stored), by_path(like, is_stored)
    types, others = ([type(x).__name__ for x in states_in(s)] for s in (state, like))
    if made.keys() != expected.keys() or types != others:
        differ = listed(sorted(made.keys() ^ expected.keys()))
        text = f"is made of {types}, and that of tx of {others}; only one of them has {differ}"
        yield Fault("structure", "", text)
        return
    for path, x in made.items():
        if (own := _form(x)) != (form := _form(expected[path])):
            yield Fault("format", path, f"is {own}, and tx makes {form}")


def _form(stored: Stored) -> str:
    arrays = [f"{jnp.result_type(x)}{list(np.shape(x))}" for x in jax.tree.leaves(stored)]
    return f"{' and '.join(arrays)} ({format_of(unboxed(stored))})"


def _of_arrays(state: State, params: Params) -> Iterator[Fault]:
    arrays = [p for p in jax.tree.leaves(params) if isinstance(p, jax.Array)]
    devices = {frozenset(p.sharding.device_set) for p in arrays}
    # Between optimizer steps, and in what was measured, anything may be.
    free = [getattr(x, "groups", getattr(x, "acc_grads", ())) for x in states_in(state)]
    passed = set(map(id, jax.tree.leaves(free)))
    for path, x in by_path(state).items():
        if isinstance(x, jax.Array) and devices - {frozenset(x.sharding.device_set)}:
            yield Fault("devices", path, "is not on the devices of the parameters")
        if is_inexact(x) and id(x) not in passed and not jnp.all(jnp.isfinite(fetched(x))):
            yield Fault("nonfinite", path, "has NaN or infinity")


def _of_counts(state: State, step: int | None, counts: dict[str, int]) -> Iterator[Fault]:
    """A count may lag by the steps that wrappers around it skipped; in `groups` by more."""
    places, lags = list(states_by_path(state)), {}
    for path, x in places:
        around = [y for above, y in places if above == path[: len(above)] != path]
        late = any(isinstance(y, optax.PartitionState) for y in around)
        skipped = sum(int(np.max(getattr(y, "total_notfinite", 0))) for y in around)
        for name in described(x).counts:
            counts[where := _path(path, name)] = int(np.max(getattr(x, name)))
            lags[where] = skipped, late
    first = max(counts, key=counts.__getitem__, default="")
    top, fewest = counts.get(first, 0), min((skipped for skipped, _ in lags.values()), default=0)
    for where, (skipped, late) in lags.items():
        if not late and counts[where] + skipped - fewest < top:
            yield Fault("counts", where, f"is {counts[where]}, and {first!r} is {top}")
    if counts and step is not None and not top <= step <= top + fewest:
        yield Fault("step", first, f"is {top}, and step is {step}")


def _of_schedules(tx: AnyTransformation, count: int) -> Iterator[Fault]:
    def is_scheduled(x: Any) -> bool:
        return isinstance(x, Scheduled)

    for keys, x in jax.tree_util.tree_flatten_with_path(tx, is_leaf=is_scheduled)[0]:
        if is_scheduled(x) and "learning_rate" in _path(keys).split("/") and count > 1:
            # The distant future, the last two steps, then earlier ones.
            times = [2**30, count - 2, count - 1, *range(0, count, -(-count // 64))]
            with jax.numpy_dtype_promotion("standard"):
                last, *rates = (float(x.at(jnp.asarray(t, jnp.int32))) for t in times)
            if rates[:2] == [last] * 2 and max(map(abs, rates)) > abs(last):
                text = f"ended at {last:g} before step {count - 1}, and the count is {count}"
                yield Fault("schedule", _path(keys), text)


def _of_moments(state: State, after_one: dict[tuple[str, str], Any]) -> Iterator[Fault]:
    for path, x in states_by_path(state):
        counts = [int(np.max(getattr(x, name))) for name in described(x).counts]
        count = max(counts, default=1)
        for slot, magnitude in described(x).slots.items():
            sizes = {}
            for leaf, stored in _moments(x, slot):
                low, spread, size = map(float, _measured(dense(stored, magnitude)))
                where, sizes[leaf], one = _path(path, slot, leaf), size, after_one.get((slot, leaf))
                unused = isinstance(stored, Blocks) and jnp.any(
                    fetched(stored.codes).astype(jnp.int32) < -stored.format.codec.steps
                )
                if unused or (magnitude and low < 0):
                    yield Fault("range", where, "has numbers that no step makes")
                if count == 0 and spread and not magnitude:
                    yield Fault("moments", where, "is not as init made it, after 0 steps")
                if count and size and one and not 1e-5 <= size / one / min(count, 1000) <= 1e5:
                    text = f"has the mean {size:.1e}, and one step with grads makes {one:.1e}"
                    yield Fault("size", where, text)
                if count > 1 and one and not size:
                    yield Fault("time", where, "is zero, and grads are not")
            if count > 1 and sizes and not any(sizes.values()):
                yield Fault("moments", _path(path, slot), f"is zero after {count} steps")


def _moments(x: State, slot: str) -> list[tuple[str, Stored]]:
    stored = by_path(getattr(x, slot), is_stored)
    return [(k, unboxed(s)) for k, s in stored.items() if all(map(np.size, jax.tree.leaves(s)))]


@jax.jit
def _measured(x: jax.Array) -> tuple[jax.Array, ...]:
    """The lowest number, the range, the mean size."""
    return jnp.min(jnp.real(x)), jnp.ptp(jnp.real(x)), jnp.mean(jnp.abs(x))


def _after_one_step(tx: AnyTransformation, grads: Updates, params: Params) -> dict[Any, Any]:
    """The mean of each second moment after one step from `init`, by slot and leaf."""

    def is_between(x: Any) -> bool:
        return isinstance(x, Accumulate)

    @jax.jit
    def second_moments(grads: Updates, params: Params) -> dict[Any, jax.Array]:
        body = without_sharding(body_of("tx", tx))
        body = jax.tree.map(lambda x: x.inner if is_between(x) else x, body, is_leaf=is_between)
        return {
            (slot, leaf): _measured(dense(stored, True))[2]
            for x in states_in(body.update(grads, body.init(params), params)[1])
            for slot, magnitude in described(x).slots.items()
            for leaf, stored in _moments(x, slot)
            if magnitude
        }

    return jax.device_get(second_moments(grads, params))
