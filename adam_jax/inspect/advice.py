"""A table of what a transformation does with each leaf, and warnings about likely mistakes."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from adam_jax._types import Function, Leaf, Params, Updates
from adam_jax.core.leaf import Plan
from adam_jax.core.member import Member
from adam_jax.core.stacked import looks_stacked
from adam_jax.core.states import described, found, owners, states_by_path
from adam_jax.core.step import Body, arguments, call_of
from adam_jax.core.trees import leaf_paths, without_numbers
from adam_jax.formats.base import Format
from adam_jax.formats.dense import format_of
from adam_jax.groups import matching
from adam_jax.hyperparams import expanded
from adam_jax.inspect.memory import Report, bytes_of, planned, plans_of, report
from adam_jax.inspect.tables import aligned
from adam_jax.modifiers import layers_of
from adam_jax.rules.base import Rule
from adam_jax.rules.hyperparameters import Unit, numbers_of
from adam_jax.wrap.accumulate import Accumulate
from adam_jax.wrap.chain import Chain, inner_body


class LeafAdvice(NamedTuple):
    """What a transformation does with one leaf.

    Attributes:
      path: as in `groups` and `by_path`.
      shape: of the parameter.
      dtype: of the parameter.
      state: bytes of the state per element of the parameter.
      storage: of each accumulator, by its name.
      kernel: how it is stepped on TPUs: "one kernel", or "XLA: ..." with the reason; "" if it is
        not stepped by this package.
      decay: λ; "scheduled" if it is not a plain number; "" for none.
      group: the expression of `groups` that it matches; "" without groups, or if none matches.
      numbers: its hyperparameters, where not all leaves have the same.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    state: float
    storage: dict[str, str]
    kernel: str
    decay: str
    group: str
    numbers: str

    @property
    def stored(self) -> str:
        """The storage of all accumulators in a few words."""
        if len(set(self.storage.values())) == 1:
            return next(iter(self.storage.values()))
        return ", ".join(f"{name} {how}" for name, how in self.storage.items())


@dataclasses.dataclass(frozen=True, repr=False)
class Advice:
    """The result of `advise`; it prints as a table and a sentence for each warning.

    Attributes:
      leaves: of the parameters.
      report: see `inspect.report`.
      warnings: each says what to write instead.
    """

    leaves: tuple[LeafAdvice, ...]
    report: Report
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        alike = collections.Counter(
            (without_numbers(x.path), x.shape, x.dtype, f"{x.state:.2f}", x.stored, *x[5:])
            for x in self.leaves
        )
        columns = ["leaf", "leaves", "shape", "dtype", "state B/p", "stored as", "on TPUs", "decay"]
        rows = [[*columns, "group", "numbers"]]
        for (path, shape, *cells), count in alike.items():
            rows.append([path, str(count), "x".join(map(str, shape)) or "scalar", *cells])
        used = [i for i, column in enumerate(zip(*rows[1:], strict=True)) if any(column)]
        left = [i for i, k in enumerate(used) if k not in (1, 4)]
        table = aligned([[row[i] for i in used] for row in rows], left)
        found = "".join(f"\n\nWarning: {warning}" for warning in self.warnings)
        return f"{table}\n\n{self.report}{found}"

    __repr__ = __str__


def advise(
    params: Params,
    tx: optax.GradientTransformation,
    *,
    grads: Updates = None,
    step: Function | None = None,
    args: Sequence[Any] | None = None,
) -> Advice:
    """Shows what happens to each leaf of a model, what it costs, and likely mistakes.

    Nothing is allocated or run. Leaves whose paths differ only in numbers share a row.

    Args:
      params: the parameters, or `jax.ShapeDtypeStruct`s of them.
      tx: any Optax transformation; storage, kernels and decay are shown for those of this package.
      grads: the gradients, as in `report`. With them, weights without a gradient cause a warning.
      step: the run's step, `step(params, state, *args)`, as in `report`. With it, results that do
        not reuse the memory of donated arrays cause a warning.
      args: the other arguments of `step`; by default the gradients.

    Returns:
      An `Advice` to print; a notebook shows it as text.

    Raises:
      ValueError: as in `report`.
    """
    its_report = report(params, tx, grads=grads, step=step, args=args)
    params, grads, state = planned(params, tx, grads)
    plans, tx = plans_of(params, tx, grads, state), expanded(tx)
    paths = leaf_paths(params, none_is_leaf=False)
    kept: list[dict[str, Format]] = [{} for _ in paths]
    members = collections.Counter[str]()  # That have moments of a leaf.
    for _, x in states_by_path(state):
        its = set()
        for name in described(x).slots:
            for stored, i in owners(getattr(x, name), params):
                if i is not None and (fmt := format_of(stored)) is not None:
                    kept[i][name] = fmt
                    its.add(paths[i])
        members.update(sorted(its))
    arguments_of = {path: arguments(plan.rules) for path, plan in plans.items()}
    common = set.intersection(*map(set, arguments_of.values())) if plans else set()
    groups_of = {path: matching(tx, path) for path in paths}
    of_state = collections.Counter[int | None]()
    for stored, i in owners(state, params):
        of_state[i] += sum(map(bytes_of, jax.tree.leaves(stored)))
    leaves = tuple(
        LeafAdvice(
            path=path,
            shape=p.shape,
            dtype=str(p.dtype),
            state=of_state[i] / max(p.size, 1),
            storage={name: str(fmt) for name, fmt in kept[i].items()},
            kernel=plans[path].way if path in plans else "",
            decay=_decay(plans[path].rules) if path in plans else "",
            group="".join(groups_of[path][:1]),
            numbers=", ".join(x for x in arguments_of.get(path, ()) if x not in common),
        )
        for i, (path, p) in enumerate(zip(paths, jax.tree.leaves(params), strict=True))
    )
    warned = [
        *_of_layers({} if layers_of(tx) else looks_stacked(params)),
        *_of_rules(plans),
        *_of_order(inner_body("tx", tx), [path for path, n in members.items() if n > 1]),
        *_of_groups(groups_of),
        *_of_leaves(leaves, jax.tree.leaves(params), grads, kept),
    ]
    if step is not None and its_report.results > max(64 * 1024, its_report.arguments // 100):
        warned.append(
            f"{its_report.results:,} bytes of the step's results are new memory: donate parameters"
            f" and state (donate_argnums), and return them first and in this order."
        )
    return Advice(leaves, its_report, tuple(warned))


def _decay(rules: Sequence[Rule]) -> str:
    decays = [x for rule in rules for x in _numbers(rule, Unit.WEIGHT_DECAY)]
    return ", ".join("scheduled" if x is None else f"{x:g}" for x in decays if x != 0)


def _numbers(rule: Rule, unit: Unit) -> list[float | None]:
    """Those of this unit; None for one that depends on the step, or is an array under jit."""
    found = [x for its, x in numbers_of(rule) if its is unit]
    return [float(x) if isinstance(x, int | float) else None for x in found]


def _of_rules(plans: dict[str, Plan]) -> Iterator[str]:
    """Warnings about averages that stop changing, a large eps, and a large learning rate."""
    still: dict[tuple[str, str, float], int] = collections.Counter()
    large, fast = set(), set()
    for own in plans.values():
        for rule, formats in zip(own.rules, own.formats, strict=True):
            large |= {eps for eps in _numbers(rule, Unit.GRADIENT) if eps and eps >= 1e-4}
            rates = _numbers(rule, Unit.LEARNING_RATE) + _numbers(rule, Unit.ANGLE)
            fast |= {rate for rate in rates if rate and abs(rate) > 1}
            pairs: Any = zip(rule.slots, formats, strict=True)
            for slot, fmt in pairs:
                to_nearest = fmt.unit == 1 and fmt.rounds and not fmt.stochastic
                if slot.magnitude and to_nearest and type(slot.rate) is float:
                    if slot.rate < float(jnp.finfo(fmt.dtype).eps) / 4:
                        still[slot.name, str(fmt.dtype), slot.rate] += 1
    for (name, dtype, rate), count in still.items():
        yield (
            f"{name} of {count} leaves is {dtype}, rounded to nearest, and stops changing: a step"
            f" renews {rate:.1g} of it, less than half a unit in the last place,"
            f" {float(jnp.finfo(dtype).eps) / 4:.1g}. Write"
            f" nu_dtype=adam_jax.stochastic(jnp.bfloat16) or jnp.int8."
        )
    for eps in sorted(large):
        yield (
            f"eps is {eps:g}: updates of gradients with a root mean square below it shrink."
            f" Write 1e-8."
        )

    for rate in sorted(fast):
        yield (
            f"the learning rate is {rate:g}: an update of Adam is about 1, so each step moves each"
            f" weight by about {rate:g}. Write 1e-3."
        )


def _of_layers(found: Mapping[str, int]) -> Iterator[str]:
    """Warnings about subtrees whose leaves look like stacked layers."""
    for prefix, count in found.items():
        expression = f"{prefix}/.*" if prefix else ".*"
        yield (
            f"all leaves below {prefix!r} have a first axis of size {count}: if these are stacked"
            f" layers, write with_layers(tx, {expression!r})"
        )


def _of_order(body: Body, twice: Sequence[str]) -> Iterator[str]:
    """Warnings about what stands in the wrong place in a chain."""
    if twice:
        yield (
            f"leaves such as {twice[0]!r} have moments of two members: the second averages the"
            f" updates of the first. Write one of them."
        )
    for chain in found(body, lambda x: isinstance(x, Chain)):
        for i, part in enumerate(chain.bodies):
            yield from _of_order(part, ())
            clip = call_of(part).partition("(")[0]
            if clip in ("clip_by_global_norm", "clip", "adaptive_grad_clip"):
                members = found(chain.bodies[:i], lambda x: isinstance(x, Member))
                if any(member.main is not None for member in members):
                    yield (
                        f"{clip} stands behind {members[0].name}, so it clips updates, not"
                        f" gradients. Write chain({clip}(...), {members[0].name}(...))."
                    )
                if found(chain.bodies[i + 1 :], lambda x: isinstance(x, Accumulate)):
                    yield (
                        f"{clip} stands before accumulate, so it clips each micro-batch, not their"
                        f" average. Write accumulate(chain({clip}(...), ...), every)."
                    )


def _of_groups(matching: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A warning for each expression that takes leaves of another one without being part of it."""
    pairs: dict[tuple[str, str], list[str]] = {}
    for path, its in matching.items():
        for other in its[1:]:
            pairs.setdefault((its[0], other), []).append(path)
    for (first, other), paths in pairs.items():
        if any(other not in its for its in matching.values() if first in its):
            yield (
                f"{paths[0]!r} matches {first!r} and {other!r}, and has the arguments of the first"
                f" alone. Write before them a group {paths[0]!r} with all its arguments."
            )


def _of_leaves(
    leaves: Sequence[LeafAdvice],
    params: Sequence[Leaf],
    grads: Updates,
    kept: Sequence[dict[str, Format]],
) -> Iterator[str]:
    """Warnings about missing gradients, blocks that span devices, and decayed vectors."""
    across, given = [], jax.tree.leaves(grads, is_leaf=lambda g: g is None)
    if still := [x.path for x, g in zip(leaves, given, strict=True) if g is None and x.storage]:
        yield (
            f"leaves such as {still[0]!r} have a state, but no gradient, and never move."
            f" Differentiate with respect to them, or freeze them without a state: write"
            f" groups(adamw, {{{still[0]!r}: None}}, learning_rate=1e-3)."
        )
    for x, p, formats in zip(leaves, params, kept, strict=True):
        blocks = [fmt.unit for fmt in formats.values() if fmt.measures and fmt.unit]
        if blocks and isinstance(p.sharding, NamedSharding):
            part = p.sharding.shard_shape(p.shape)[-1]
            if any(part % block for block in blocks):
                across.append((x.path, part))
    if across:
        path, part = across[0]
        yield (
            f"blocks of codes of {len(across)} leaves, such as {path!r}, span devices, with {part}"
            f" elements of the last axis on each: a step sends the blocks. Use explicit axes of the"
            f" mesh, adam_jax.sharding.shard_state(tx, mesh, specs=...), or Quantized(block=...)."
        )
    vectors = [x.path for x in leaves if x.decay and len(x.shape) < 2]
    if 0 < len(vectors) < len(leaves):
        which = f"the vector {vectors[0]!r} has"
        if len(vectors) > 1:
            which = f"{len(vectors)} vectors, such as {vectors[0]!r}, have"
        yield (
            f"{which} weight decay: biases and scales of norms usually have none. Write"
            f" mask=adam_jax.decay_mask."
        )
