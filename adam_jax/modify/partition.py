"""Parameter groups with an optimizer each: `optax.partition` with expressions as labels."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import jax
import optax

from adam_jax._types import (
    AnyTransformation,
    Function,
    Leaf,
    Named,
    Params,
    PyTree,
    Result,
    State,
    Updates,
)
from adam_jax.engine.call import PASS_ON, Body, Call, check_state
from adam_jax.engine.chain import inner_body
from adam_jax.engine.pipeline import Pipeline, run_pipelines
from adam_jax.engine.split import SplitParams, SplitResult, run_split, stored_params
from adam_jax.engine.transformation import Transformation
from adam_jax.engine.trees import align_params, leaf_paths, unflatten_stored
from adam_jax.engine.unrounded import Unrounded, as_wide_as, dtypes_of, made, raw
from adam_jax.formats.dense import is_floating
from adam_jax.modify.expressions import first_matches
from adam_jax.modify.factory import name_of
from adam_jax.rules.pytrees import frozen_pytree, static
from adam_jax.validation import bind_arguments, check_expression

Entry: TypeAlias = AnyTransformation | Callable[..., AnyTransformation] | None
"""The value of an expression in `groups`: a transformation, a function that makes one, or None."""


class Part(NamedTuple):
    """The leaves of one expression.

    Attributes:
      expression: matches their paths.
      body: steps them.
      indices: their indices among the tree's leaves.
    """

    expression: str
    body: Body
    indices: list[int]

    def only(self, leaves: list[Leaf]) -> list[Leaf]:
        """Replaces each leaf of another part by a `MaskedNode`."""
        own = set(self.indices)
        return [x if i in own else optax.MaskedNode() for i, x in enumerate(leaves)]


@frozen_pytree
class Partition(Body):
    """The body of `groups` with several optimizers.

    Attributes:
      bodies: one for each expression.
      expressions: in order of precedence.
    """

    joins = True

    bodies: tuple[Body, ...]
    expressions: tuple[str, ...] = static()

    def init(self, params: Params) -> optax.PartitionState:
        """The initial state of each optimizer, on its own leaves."""
        # optax.tree.map_params calls init with a tree without leaves.
        parts = self.of_params(params, check=bool(jax.tree.leaves(params)))
        return _joined((part, part.body.init(theirs)) for part, theirs in parts)

    def run(self, updates: Updates, state: State, params: Params, call: Call) -> Result:
        """One step of each optimizer on its own leaves."""
        self.check(state)
        tree = raw(updates)
        leaves, treedef = jax.tree.flatten(tree, is_leaf=lambda x: x is None)
        needed = call.apply or params is not None
        stored = align_params(treedef, stored_params(params), needed, call.apply)
        results, dtypes = list(stored if call.apply else leaves), list(dtypes_of(updates))
        rests, states, later = {}, [], isinstance(updates, Unrounded)
        # Where update and parameter are both None, each part has a None, as its state does.
        nones = [i for i, g in enumerate(leaves) if g is None and stored[i] is None]
        for part in self.parts(leaf_paths(tree), [g is not None for g in leaves]):
            part = part._replace(indices=sorted({*part.indices, *nones}))
            grads = _updates_of(part, updates, unflatten_stored(tree, part.only(leaves), True))
            theirs = None
            if params is not None:
                its_treedef = jax.tree.structure(raw(grads), is_leaf=lambda x: x is None)
                theirs = unflatten_stored(tree, part.only(stored), True)
                theirs = _params_of(part, params, theirs, its_treedef)
            inner_state = state.inner_states[part.expression].inner_state
            result, inner_state = run_split(part.body, grads, inner_state, theirs, call)
            states.append((part, inner_state))
            if isinstance(result, SplitResult):
                rests |= {part.indices[k]: rest for k, rest in result.rests.items()}
                result = result.result
            later = later or isinstance(result, Unrounded)
            result = made(result)
            stepped = jax.tree.leaves(raw(result), is_leaf=lambda x: x is None)
            for i, x, dtype in zip(part.indices, stepped, dtypes_of(result), strict=True):
                results[i], dtypes[i] = x, dtype
        result = treedef.unflatten(results)
        if later and not call.apply:
            result = as_wide_as(Unrounded(result, tuple(dtypes)), stored_params(params))
        result = SplitResult(result, rests) if isinstance(params, SplitParams) else result
        return result, _joined(states)

    def parts(self, paths: list[str], moving: list[bool], check: bool = False) -> list[Part]:
        """The leaves of each expression, given their paths; see `first_matches`."""
        instead = 'add a last one for all others, ".*": adamw(1e-3), or ".*": None'
        found = first_matches(self.expressions, paths, moving, check=check, instead=instead)
        return [
            Part(expression, body, [i for i, own in enumerate(found) if own == k])
            for k, (expression, body) in enumerate(zip(self.expressions, self.bodies, strict=True))
        ]

    def of_params(self, params: Params, check: bool = False) -> list[tuple[Part, Params]]:
        """Each part with the parameters, where a `MaskedNode` replaces leaves of other parts."""
        leaves, paths = jax.tree.leaves(params), leaf_paths(params, none_is_leaf=False)
        parts = self.parts(paths, list(map(is_floating, leaves)), check)
        return [(part, unflatten_stored(params, part.only(leaves))) for part in parts]

    def check(self, state: State) -> None:
        """Checks that a state is what `init` returns.

        Raises:
          ValueError: it is not.
        """
        check_state(state, optax.PartitionState, "an optax.PartitionState")
        if state.inner_states.keys() != set(self.expressions):
            raise ValueError(
                f"the state must have an entry for each of {list(self.expressions)}, got"
                f" {list(state.inner_states)}: {PASS_ON}"
            )
        for entry in state.inner_states.values():
            check_state(entry, optax.MaskedState, "one with an optax.MaskedState in each entry")


@frozen_pytree
class Frozen(Body):
    """Frozen leaves: no state, zeros as updates."""

    joins = True

    def init(self, params: Params) -> optax.EmptyState:
        """The empty state."""
        del params
        return optax.EmptyState()

    def run(self, updates: Updates, state: State, params: Params, call: Call) -> Result:
        """The unchanged parameters, or zeros."""
        frozen = [None] * len(jax.tree.leaves(raw(updates), is_leaf=lambda x: x is None))
        result, _ = run_pipelines((Pipeline((), True),), frozen, updates, (), params, call)
        return result, state


def _updates_of(part: Part, updates: Updates, own: PyTree) -> Updates:
    """The updates of a part, unrounded if they are; `own` is the tree of its leaves alone."""
    if not isinstance(updates, Unrounded):
        return own
    dtypes = tuple(updates.dtypes[i] for i in part.indices)
    return dataclasses.replace(updates, raw=own, dtypes=dtypes)


def _params_of(part: Part, params: Params, own: PyTree, treedef: PyTree) -> Params:
    """The parameters of a part, split if they are; `own` as in `_updates_of`."""
    if not isinstance(params, SplitParams):
        return own
    weights = ((k, params.weights.get(i)) for k, i in enumerate(part.indices))
    return SplitParams(own, treedef, {k: split for k, split in weights if split is not None})


def _joined(states: Any) -> optax.PartitionState:
    return optax.PartitionState(
        {part.expression: optax.MaskedState(inner_state=state) for part, state in states}
    )


def partitioned(entries: Mapping[str, Entry], arguments: Named) -> Transformation:
    """The transformation of `groups` with several optimizers.

    Args:
      entries: by expression.
      arguments: passed to the entries that are functions.
    """
    bodies = []
    for expression, entry in entries.items():
        check_expression("each key of the groups", expression)
        try:
            bodies.append(_body(entry, arguments))
        except (ValueError, TypeError) as error:
            # JAX raises subclasses of these.
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"the expression {expression!r}: {error}") from error
    if all(isinstance(body, Frozen) for body in bodies):
        raise ValueError("expressions must leave a leaf that moves: write optax.set_to_zero().")
    if arguments and not factories_in(entries):
        raise ValueError(
            f"{sorted(arguments)} must be arguments of functions that make an optimizer, got only"
            f" optimizers: write adamw where adamw(1e-3) is."
        )
    return Transformation.around(Partition(tuple(bodies), tuple(entries)))


def factories_in(entries: Mapping[str, Entry]) -> list[Function]:
    """The entries that are functions."""
    return [entry for entry in entries.values() if _is_factory(entry)]


def open_parameters(factory: Function) -> dict[str, inspect.Parameter]:
    """The parameters of a function, without those that a `functools.partial` sets."""
    parameters = inspect.signature(factory, eval_str=True).parameters
    given = factory.keywords if isinstance(factory, functools.partial) else {}
    return {name: p for name, p in parameters.items() if name not in given}


def _is_factory(entry: Entry) -> TypeGuard[Function]:
    return callable(entry) and not (hasattr(entry, "init") and hasattr(entry, "update"))


def _body(entry: Entry, arguments: Named) -> Body:
    if entry is None:
        return Frozen()
    if isinstance(entry, Mapping):
        raise ValueError(
            f"must have an optimizer, a function that makes one, or None to freeze its leaves, got"
            f" the arguments {entry!r}: write functools.partial(adamw, ...); for one optimizer with"
            f" different arguments per group, groups(adamw, {{...}}, learning_rate=1e-3)."
        )
    if not _is_factory(entry):
        return inner_body("the optimizer", entry)
    given = _given(entry, arguments)
    bind_arguments(name_of(entry), inspect.signature(entry), (), given)
    return inner_body("the function's result", entry(**given))


def _given(factory: Function, arguments: Named) -> Named:
    """The arguments without those that a `functools.partial` sets."""
    if not isinstance(factory, functools.partial):
        return arguments
    bound = inspect.signature(factory.func).bind_partial(*factory.args, **factory.keywords)
    return {name: x for name, x in arguments.items() if name not in bound.arguments}
