"""Parameter groups: hyperparameters per group, in one pass, or an optimizer per group."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import optax

from adam_jax._types import AnyTransformation, Function, Leaf, Named, Params, PyTree, State
from adam_jax.core.member import Choice, Member, Stage
from adam_jax.core.states import found
from adam_jax.core.step import PASS_ON, Body, Step, check_state
from adam_jax.core.transformation import Transformation, body_of
from adam_jax.core.trees import leaf_paths, unflatten_stored
from adam_jax.formats.dense import is_inexact
from adam_jax.pytrees import frozen_pytree, static
from adam_jax.validation import bound, check_expression, check_factory, is_factory, preset, printed
from adam_jax.wrap.chain import inner_body

Entry: TypeAlias = AnyTransformation | Callable[..., AnyTransformation] | None
"""The value of an expression in `groups`: a transformation, a function that makes one, or None."""


@dataclasses.dataclass(frozen=True)
class ByExpression(Choice):
    """The group of each leaf: the first expression that matches its whole path, or its role.

    Attributes:
      expressions: in order of precedence.
      chosen: of each expression, and then of unmatched leaves, the first variant and how the group
        chooses among its own; None freezes its leaves, or if leaves must match.
      instead: what to write if leaves must match and one does not.
      roles: of each path, if expressions match these.
    """

    expressions: tuple[str, ...]
    chosen: tuple[tuple[int, Choice | None] | None, ...]
    instead: str
    roles: tuple[tuple[str, str], ...] | None = None

    @functools.cached_property
    def role_of(self) -> dict[str, str]:
        """The role of each path."""
        return dict(self.roles or ())

    def matching(self, path: str) -> list[str]:
        """All expressions that match a leaf."""
        if self.roles is not None and path not in self.role_of:
            raise ValueError(
                f"roles must be of these parameters, got none for {path!r}: write"
                f" roles=adam_jax.roles(params)."
            )
        text = path if self.roles is None else self.role_of[path]
        return [e for e in self.expressions if re.fullmatch(e, text)]

    def variants(
        self, paths: Sequence[str], moving: Sequence[bool], check: bool
    ) -> list[int | None]:
        matches = [self.matching(path) for path in paths]
        rows = list(zip(paths, moving, matches, strict=True))
        unmatched = [path for path, moved, its in rows if moved and not its]
        if unmatched and self.chosen[-1] is None:
            raise ValueError(
                f"every leaf must match an expression, got none for {unmatched}: {self.instead}."
            )
        for expression in self.expressions if check else ():
            if not any(its[:1] == [expression] for its in matches):
                taken = any(expression in its for its in matches)
                why = "only leaves that expressions before it took" if taken else "nothing"
                what, of = "path", paths
                if self.roles is not None:
                    what, of = "role", sorted(set(self.role_of.values()))
                raise ValueError(
                    f"the expression {expression!r} matches {why}: it must match the whole {what}"
                    f" of a leaf, such as one of {of}."
                )
        found: list[int | None] = []
        for path, moved, its in rows:
            i = self.expressions.index(its[0]) if its else -1
            group, own = self.chosen[i], None
            if group is not None:
                first, choice = group
                own = 0 if choice is None else choice.variants([path], [moved], False)[0]
                own = None if own is None else first + own
            found.append(own)
        return found


def matching(tx: AnyTransformation, path: str) -> list[str]:
    """The expressions of `groups` in a transformation that match a leaf; frozen ones too."""
    choices = [body.choice for body in found(tx, lambda x: hasattr(x, "choice"))]
    return [e for x in choices if isinstance(x, ByExpression) for e in x.matching(path)]


def groups(
    factory: Callable[..., Transformation] | Mapping[str, Entry],
    expressions: Mapping[str, Mapping[str, Any] | None] | None = None,
    *,
    roles: PyTree = None,
    **defaults: Leaf,
) -> Transformation:
    r"""Selects leaves by path and gives each group its own hyperparameters or its own optimizer.

    `groups(adamw, {".*bias": dict(weight_decay=0.0)}, learning_rate=1e-3)` is one member, which
    steps all leaves in one pass. `groups({".*/kernel": optax.contrib.muon(0.02), ".*":
    adamw(1e-3)})` is one optimizer per group, of this package or any other.

    A path joins the dict keys, attributes and indices of a leaf with slashes: `layers/0/kernel`. A
    leaf belongs to the first expression that matches its whole path.

    Args:
      factory: `adamw`, any other alias or scale_by_* of this package, or a modifier of one. For
        several optimizers, a dict from regular expressions to the optimizer of the matching leaves.
        None freezes them. A function that makes an optimizer is called with `defaults`; a
        `functools.partial` keeps its own arguments.
      expressions: for one member, a dict from regular expressions to arguments of `factory` for the
        matching leaves, which override `defaults`. None freezes the leaves: no state, an update of
        zero. Omitted if the first argument is a dict.
      roles: `adam_jax.roles(params)`, to match roles, not paths: {"matrix": muon, ".*": adamw}.
      **defaults: arguments of `factory` for all leaves; with several optimizers, arguments of each
        one that is a function.

    Returns:
      A transformation. For one member it has the member's own state, and the schedules of all
      groups read its one count. For several optimizers it has the `optax.PartitionState` that
      `optax.partition` keeps with the expressions as labels, and each optimizer keeps its own
      counts; `with_hyperparams(functools.partial(groups, {...}))(learning_rate=schedule)` keeps one
      count and one schedule for all.

    Raises:
      TypeError: an argument that `factory`, or one of several, does not take.
      ValueError: in this call, an invalid expression, or groups of one member that keep different
        states; in `init`, an expression that matches nothing or only leaves that earlier ones
        match, or leaves without a match, unless `defaults` suffice to make the member. The message
        lists the paths.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> bias, head = dict(weight_decay=0.0), dict(b2=0.9)
      >>> tx = adam_jax.groups(
      ...     adam_jax.adamw,
      ...     {"frozen": None, "head/bias": bias | head, "head/.*": head, "norm/.*": bias},
      ...     learning_rate=1e-3,
      ... )
      >>> head = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(1)}
      >>> params = {"head": head, "norm": {"scale": 1.0}, "frozen": jnp.ones(3)}
      >>> print(tx.init(params)[0].mu["frozen"])
      MaskedNode()

    Differs from Optax (`partition`) in: labels are expressions; `step` is supported; one member
    keeps one count, where `partition` has a masked transformation and a count per group; frozen
    leaves stay untouched, where `optax.set_to_zero` adds zeros.
    Differs from PyTorch (parameter groups) in: leaves are selected by path.
    """
    if isinstance(factory, Mapping):
        if expressions is not None:
            raise ValueError(
                f"expressions must be left out where the first argument is a dict, got"
                f" {type(expressions).__name__}: write functools.partial(adamw, ...) in that dict."
            )
        return _partitioned(factory, defaults, _by_path(roles))
    check_factory(factory, 'groups(adamw, {".*bias": {"weight_decay": 0.0}}, learning_rate=1e-3)')
    bound(factory, (), defaults, partial=True)
    if not isinstance(expressions, Mapping):
        raise ValueError(
            f"expressions must be a dict from regular expressions to arguments, got"
            f' {printed(expressions)}: write {{".*bias": {{"weight_decay": 0.0}}}}.'
        )
    default = None
    try:
        bound(factory, (), defaults)
    except TypeError:
        pass  # Arguments are missing: every leaf must match.
    else:
        default = _member(factory, {}, defaults)
    made = _of_each(expressions, lambda given: _member(factory, given, defaults), default)
    last = [member for member in made if member is not None][-1]
    chosen, variants = [], []
    for expression, member in zip([*expressions, None], made, strict=True):
        if member is None:
            chosen.append(None)
            continue
        if _kept(member) != _kept(last):
            raise ValueError(
                f"groups must keep the same state, got {_kept(member)} for {expression!r} and"
                f" {_kept(last)} elsewhere: give every group the same flags, and leave the same"
                f" arguments None in each."
            )
        chosen.append((len(variants), member.choice))
        variants += member.variants
    instead = (
        "add one, or pass the arguments for all other leaves as keywords, groups(adamw, ...,"
        " learning_rate=1e-3)"
    )
    choice = ByExpression(tuple(expressions), tuple(chosen), instead, _by_path(roles))
    return Transformation.around(
        dataclasses.replace(last, variants=_with_one_count(variants), choice=choice)
    )


def _of_each(entries: Mapping[str, Any], make: Function, *others: Any) -> list[Any]:
    """What is made of each entry, None of None, and then `others`; errors name the expression."""
    made = []
    for expression, entry in entries.items():
        check_expression("each key of the groups", expression)
        try:
            made.append(None if entry is None else make(entry))
        except (ValueError, TypeError) as error:
            # JAX raises subclasses of these.
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"the expression {expression!r}: {error}") from error
    made += others
    if all(x is None for x in made):
        raise ValueError("expressions must leave a leaf that moves: write optax.set_to_zero().")
    return made


def _member(factory: Callable[..., Transformation], overrides: Any, defaults: Named) -> Member:
    if not isinstance(overrides, Mapping):
        raise ValueError(
            f"must have a dict of arguments, or None to freeze its leaves, got"
            f" {printed(overrides)}: write dict(learning_rate=3e-4), say."
        )
    body = body_of("factory's result", factory(**{**defaults, **overrides}))
    if not isinstance(body, Member):
        name = type(body).__name__
        raise ValueError(
            f"factory must make a member of adam_jax, got {name}: pass other optimizers in a dict,"
            f" groups({{expression: optimizer, ...}}), and put with_hyperparams outermost,"
            f" with_hyperparams(functools.partial(groups, adamw, {{...}}))(learning_rate=1e-3)."
        )
    return body


def _with_one_count(variants: list[tuple[Stage, ...]]) -> tuple[tuple[Stage, ...], ...]:
    """Lets stages without slots keep a count only in members where no stage has slots."""
    alone = not any(stage.rule.slots for stage in variants[0])
    columns = []
    for alike in zip(*variants, strict=True):
        counting = [stage.state_type for stage in alike if stage.counts]
        kind = counting[0] if alone and counting else optax.EmptyState
        columns.append(
            [x if x.rule.slots else dataclasses.replace(x, state_type=kind) for x in alike]
        )
    return tuple(zip(*columns, strict=True))


def _kept(member: Member) -> list[str]:
    """A description of each stage's state, to compare groups; counts of schedules are left out."""
    return [
        f"{stage.state_type.__name__}({', '.join(slot.name for slot in stage.rule.slots)})"
        if stage.rule.slots
        else "nothing"
        for stage in member.stages
    ]


@frozen_pytree
class Partition(Body):
    """The body of `groups` with several optimizers: `optax.partition` with expressions as labels.

    Attributes:
      bodies: one for each expression.
      choice: the index of each leaf's body.
    """

    bodies: tuple[Body, ...]
    choice: ByExpression = static()

    def init(self, params: Params) -> optax.PartitionState:
        leaves, paths = jax.tree.leaves(params), leaf_paths(params, none_is_leaf=False)
        # optax.tree.map_params calls init with a tree without leaves.
        chosen = self.choice.variants(paths, list(map(is_inexact, leaves)), bool(leaves))
        states = []
        for k, body in enumerate(self.bodies):
            pairs = zip(leaves, chosen, strict=True)
            its = [p if own == k else optax.MaskedNode() for p, own in pairs]
            states.append(body.init(unflatten_stored(params, its)))
        return self.joined(states)

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        check_state(state, optax.PartitionState, "an optax.PartitionState")
        expressions = self.choice.expressions
        if state.inner_states.keys() != set(expressions):
            raise ValueError(
                f"the state must have an entry for each of {list(expressions)}, got"
                f" {list(state.inner_states)}: {PASS_ON}"
            )
        moving = set(step.here)
        paths = [step.every_path[i] for i in step.own]
        chosen = self.choice.variants(paths, [i in moving for i in step.own], False)
        found, states = {}, []
        for k, (body, expression) in enumerate(zip(self.bodies, expressions, strict=True)):
            entry = state.inner_states[expression]
            check_state(entry, optax.MaskedState, "one with an optax.MaskedState in each entry")
            part = {i for i, own in zip(step.own, chosen, strict=True) if own == k}
            # Where gradient and parameter are both None, each part has a None, as its state does.
            its = step.part(sorted(part.union(step.nones())))
            if not its.here:  # Nothing to step: it does not count either.
                states.append(entry.inner_state)
                continue
            out, inner_state = body.run(its, entry.inner_state)
            states.append(inner_state)
            for i, *result in zip(its.here, out.finished(), out.dtypes, strict=True):
                found[i] = result
        g, dtypes = ([found[i][k] for i in step.here] for k in (0, 1))
        return step.with_results(g, dtypes, done=step.last).widened(), self.joined(states)

    def joined(self, states: Sequence[State]) -> optax.PartitionState:
        """The state that `optax.partition` keeps with the expressions as labels."""
        pairs = zip(self.choice.expressions, states, strict=True)
        return optax.PartitionState({e: optax.MaskedState(inner_state=s) for e, s in pairs})


@frozen_pytree
class Frozen(Body):
    """Frozen leaves: no state, zeros as updates."""

    def init(self, params: Params) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        results = [step.unmoved(n) for n in range(len(step.here))]
        return step.with_results(results, step.dtypes, done=step.last), state


def _by_path(roles: PyTree) -> tuple[tuple[str, str], ...] | None:
    if roles is None:
        return None
    pairs = zip(leaf_paths(roles, none_is_leaf=False), jax.tree.leaves(roles), strict=True)
    return tuple((path, str(role)) for path, role in pairs)


def _partitioned(entries: Mapping[str, Entry], arguments: Named, roles: Any) -> Transformation:
    made = _of_each(entries, lambda entry: _body(entry, arguments))
    if arguments and not any(map(is_factory, entries.values())):
        raise ValueError(
            f"{sorted(arguments)} must be arguments of functions that make an optimizer, got only"
            f" optimizers: write adamw where adamw(1e-3) is."
        )
    bodies = tuple(Frozen() if body is None else body for body in made)
    choice = ByExpression(
        tuple(entries),
        (*((k, None) for k in range(len(bodies))), None),
        'add a last one for all others, ".*": adamw(1e-3), or ".*": None',
        roles,
    )
    return Transformation.around(Partition(bodies, choice))


def _body(entry: Entry, arguments: Named) -> Body:
    if isinstance(entry, Mapping):
        raise ValueError(
            f"must have an optimizer, a function that makes one, or None to freeze its leaves, got"
            f" {printed(entry)}: write functools.partial(adamw, ...); for one optimizer with"
            f" different arguments per group, groups(adamw, {{...}}, learning_rate=1e-3)."
        )
    if not is_factory(entry):
        return inner_body("the optimizer", entry)
    own = preset(entry)
    arguments = {name: x for name, x in arguments.items() if name not in own}
    bound(entry, (), arguments)
    return inner_body("the function's result", entry(**arguments))
