"""Hyperparameters in the state: read, changed and scheduled without recompilation."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, ParamSpec

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from optax import InjectStatefulHyperparamsState

from adam_jax._types import (
    AnyTransformation,
    Count,
    Function,
    Leaf,
    Named,
    Number,
    Params,
    PyTree,
    State,
)
from adam_jax.core.masks import FrozenTree
from adam_jax.core.stacked import Layers
from adam_jax.core.states import WrappedScheduleState, only, register
from adam_jax.core.step import Body, Step, check_state
from adam_jax.core.transformation import Transformation, body_of
from adam_jax.groups import groups
from adam_jax.modifiers import Factory, layers_of, with_layers
from adam_jax.numerics import select
from adam_jax.pytrees import Label, frozen_pytree, static
from adam_jax.rates import DecayRate, DecayRateLike, Past, moved, past_key
from adam_jax.rules.hyperparameters import FixedNumber, Scheduled
from adam_jax.validation import (
    as_scalar,
    check_factory,
    check_number,
    check_scalar,
    is_factory,
    is_number,
    name_of,
    preset,
)

P = ParamSpec("P")


class ExactRate(NamedTuple):
    """A decay rate b with 1 - b and log b, each rounded from the Python number.

    Attributes:
      rate: b as it was set; if the state holds a different b, the other two are stale.
      complement: 1 - b.
      log: log b.
    """

    rate: jax.Array
    complement: jax.Array
    log: jax.Array


register(ExactRate, others_matter=False)
register(Past, others_matter=False)


def as_float(x: Leaf) -> jax.Array:
    """Converts to float32, or float64 where that is JAX's default, never to a parameter's dtype.

    It copies: otherwise the caller's array would be donated with the state.
    """
    return jnp.array(x, jnp.result_type(float))


def exact_rate(name: str, b: Number) -> ExactRate:
    """Splits a rate, or each rate of an array, from its Python number if there is one."""
    if isinstance(b, jax.core.Tracer):
        rate = DecayRate.of(name, b, closed=True)
        return ExactRate(as_float(b), as_float(rate.complement), as_float(rate.log))
    b = np.asarray(b)
    rates = [DecayRate.of(name, x, closed=True) for x in b.ravel()]
    complement, log = ([getattr(rate, part) for rate in rates] for part in ("complement", "log"))
    return ExactRate(*(as_float(np.reshape(x, b.shape)) for x in (b, complement, log)))


def exact_key(name: str) -> str:
    """The key of this rate's exact parts; the rate's own name is taken."""
    return f"exact_{name}"


@frozen_pytree
class WithHyperparams(Body):
    """The body of `with_hyperparams`.

    Attributes:
      numbers: the hyperparameters: numbers before the first step, and schedules.
      factory: makes the transformation from them.
      fixed: the other arguments: dtypes, flags, masks, counts of steps.
      sides: for each decay rate, its side of 0.5, which selects the form of its average.
      layers: declared to the member.
    """

    numbers: Named
    factory: Function = static()
    fixed: FrozenTree = static()
    sides: tuple[tuple[str, bool | None], ...] = static()
    layers: Layers = static()

    def init(self, params: Params) -> InjectStatefulHyperparamsState:
        """The hyperparameters and the member's initial state."""
        count = jnp.zeros([], jnp.int32)
        own = self.schedules_at(count)
        for name, _ in self.sides:
            own[past_key(name)] = Past.none()
            if name not in own:  # A schedule's value is known only in float32.
                own[exact_key(name)] = exact_rate(name, self.numbers[name])
        state = InjectStatefulHyperparamsState(count, self.numbers_at(count, self.numbers), own, ())
        return state._replace(inner_state=self.inner(state).init(params))

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        """One step of the member made from the state's numbers."""
        check_state(state, InjectStatefulHyperparamsState)
        pasts = {past_key(name) for name, _ in self.sides}
        if state.hyperparams.keys() != self.numbers.keys() or pasts - {*state.hyperparams_states}:
            raise ValueError(
                f"the state must have the hyperparameters of {name_of(self.factory)},"
                f" {sorted(self.numbers)}, and {sorted(pasts)}, got {sorted(state.hyperparams)} and"
                f" {sorted(state.hyperparams_states)}: it was made by another function, or by"
                f" Optax. To move its moments, write"
                f" adam_jax.convert.from_optax(state, params, tx)."
            )
        state = state._replace(hyperparams=self.numbers_at(state.count, state.hyperparams))
        body, past = moved(body_of(name_of(self.factory), self.inner(state)), state.count)
        out, inner = body.run(step, state.inner_state)
        count = step.counted(state.count)
        new = past | self.schedules_at(count)
        own = {key: new.get(key, x) for key, x in state.hyperparams_states.items()}
        return out, state._replace(count=count, hyperparams_states=own, inner_state=inner)

    def schedules_at(self, count: Count) -> Named:
        """The count of each schedule, as Optax keeps it."""
        scheduled = (name for name, x in self.numbers.items() if isinstance(x, Scheduled))
        return {name: WrappedScheduleState(count) for name in scheduled}

    def numbers_at(self, count: Count, given: Named) -> Named:
        """The numbers of one step: the given ones, and the schedules' values."""
        return {
            name: self.number_at(name, count) if isinstance(x, Scheduled) else as_float(given[name])
            for name, x in self.numbers.items()
        }

    def number_at(self, name: str, count: Count) -> jax.Array:
        """The value of a schedule."""
        instead = "return one number, the same for all leaves"
        value = self.numbers[name].schedule(count)
        return as_float(check_scalar(f"the schedule of {name}", value, instead=instead))

    def inner(self, state: State) -> Any:
        """The member made from the state's numbers."""
        arguments: Named = dict(state.hyperparams)
        for name, side in self.sides:
            b, known = state.hyperparams[name], state.hyperparams_states.get(exact_key(name))
            # A schedule's value, or a number assigned directly, is known only in float32.
            rate, following = DecayRate.of_array(b, side), None
            if isinstance(self.numbers[name], Scheduled):
                b = self.number_at(name, state.count + 1)
                following = DecayRate.of_array(b, side)
            elif known is not None:
                exact = DecayRate(known.complement, known.log, side)
                rate = select(b == known.rate, jax.tree.map(_with_tangent, exact, rate), rate)
            past = state.hyperparams_states[past_key(name)]
            its = {"name": Label(name), "past": past, "following": following}
            arguments[name] = dataclasses.replace(rate, **its)
        made = self.factory(**arguments, **self.fixed.tree)
        return with_layers(made, self.layers) if self.layers else made


def expanded(tx: AnyTransformation) -> PyTree:
    """Replaces each `with_hyperparams` in a transformation by the member that its numbers make."""

    def expand(x: Leaf) -> Leaf:
        if not isinstance(x, WithHyperparams):
            return x
        return expanded(body_of(name_of(x.factory), x.inner(x.init(()))))

    return jax.tree.map(expand, tx, is_leaf=lambda x: isinstance(x, WithHyperparams))


@jax.custom_jvp
def _with_tangent(value: jax.Array, source: jax.Array) -> jax.Array:
    """A more exact value of `source`, with the derivative of `source`."""
    del source
    return value


_with_tangent.defjvps(None, lambda tangent, *_: tangent)


@dataclasses.dataclass(frozen=True)
class HyperparamsFactory(Factory):
    """The function that `with_hyperparams` returns."""

    def __call__(self, *args: Leaf, **kwargs: Leaf) -> Transformation:
        """The transformation with its numbers in the state."""
        arguments, known = self.arguments(args, kwargs), _parameters(self.factory)
        numbers: Named = {}
        fixed: Named = {}
        sides: list[tuple[str, bool | None]] = []
        for name, x in arguments.items():
            types, side = _types(known.get(name)), None
            # A count, such as warm-up steps, stays a Python number.
            is_count = isinstance(x, int) and int in types and float not in types
            if is_number(x) and not is_count and FixedNumber not in types:
                numbers[name] = float(x) if isinstance(x, int) else as_scalar(x)
                side = None if isinstance(x, jax.core.Tracer) else bool(x >= 0.5)
            elif callable(x) and name in known and _is_scheduled(known[name]):
                numbers[name] = Scheduled(arguments[name])
            else:
                fixed[name] = x
                continue
            if DecayRateLike in types:
                sides.append((name, side))
        scheduled = {name: x for name, x in numbers.items() if isinstance(x, Scheduled)}
        its = FrozenTree.of({}), tuple(sides), layers_of(self.factory)
        body = WithHyperparams(scheduled, self.factory, *its)
        with jax.numpy_dtype_promotion("standard"):  # As in a step.
            first = body.numbers_at(jnp.zeros([], jnp.int32), {})
        self.factory(**arguments | numbers | first)  # Checks them.
        body = dataclasses.replace(body, numbers=numbers, fixed=FrozenTree.of(fixed))
        return Transformation.around(body)


def with_hyperparams(
    factory: Callable[P, optax.GradientTransformation],
) -> Callable[P, Transformation]:
    """Keeps the numbers of a member in its state, where they can be read, changed and scheduled.

    `with_hyperparams(adamw)(learning_rate=1e-3, b2=0.99)` matches `adamw(...)` with the same
    arguments bit for bit. `state.hyperparams` holds every numeric argument, passed or default, in
    float32 (float64 under x64). An argument whose default is None, such as `eps_hat`, is there only
    if it is passed. `set_hyperparams(state, learning_rate=3e-4)` changes a number without
    recompiling. An argument that Optax documents as a number may also be a schedule, a function of
    the optimizer steps completed.

    Args:
      factory: `adamw`, any other alias or scale_by_* of this package, a modifier of one
        (`cautious(adamw)`), groups, or any function from numbers to an Optax transformation.
        For `functools.partial(groups, adamw, {...})` the state holds the numbers passed for all
        leaves, not those of single groups. For
        `functools.partial(groups, {".*kernel": optax.contrib.muon, ".*": adamw})` all optimizers
        share one count and one schedule. In another function an argument annotated `int` stays a
        Python number. One annotated `adam_jax.DecayRateLike` reaches a member at full precision;
        without that annotation a decay rate is known only in float32.

    Returns:
      A function with the arguments of `factory`. The state of its transformation is Optax's
      `InjectStatefulHyperparamsState`. For each decay rate, `hyperparams_states` also has 1 - b,
      log b, and the rates of the steps so far. Without decay rates and with float32 parameters it
      is Optax's, also on disk. A number that replaces a schedule in the middle of a run keeps the
      schedule's last value until `set_hyperparams` changes it.

    Raises:
      ValueError: numbers that the factory rejects, when the transformation is made.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> tx = adam_jax.with_hyperparams(adam_jax.adamw)(learning_rate=1e-3, b2=0.99)
      >>> state = tx.init(params := jnp.ones(3, jnp.bfloat16))
      >>> state = adam_jax.set_hyperparams(state, learning_rate=0.5)
      >>> params, state = adam_jax.step(tx, params, state, params)
      >>> print(adam_jax.hyperparams(state)["learning_rate"], params)
      0.5 [0.5 0.5 0.5]

    Differs from Optax (`inject_hyperparams`) in: decay rates keep 1 - b and log b beside b, so no
    precision is lost (in Optax a float32 0.999 puts an error of 1.3e-5 into every increment of nu,
    and a bfloat16 one, with bfloat16 parameters, rounds to 1 and makes NaN); numbers never take the
    parameters' dtype; a callable is a schedule only for an argument that accepts a number.
    """
    check_factory(factory, "with_hyperparams(adamw)(learning_rate=1e-3)")
    return HyperparamsFactory(factory)


def _parameters(factory: Function) -> Mapping[str, inspect.Parameter]:
    """The parameters of the member that the factory makes; for groups, those of the inner factory.

    If one of several factories does not take a `DecayRate`, none of them gets one.
    """
    if isinstance(factory, functools.partial) and factory.func is groups:
        factory = preset(factory).get("factory", groups)
        if isinstance(factory, Mapping):
            known: dict[str, inspect.Parameter] = {}
            for inner in filter(is_factory, factory.values()):
                for name, p in inspect.signature(inner, eval_str=True).parameters.items():
                    free = name not in preset(inner)
                    if free and (name not in known or DecayRateLike in _types(known[name])):
                        known[name] = p
            return known
    return inspect.signature(factory, eval_str=True).parameters


def _types(parameter: inspect.Parameter | None) -> set[Any]:
    """The annotation, and the types of which it is a union; of None, none."""
    annotation = getattr(parameter, "annotation", None)
    return {annotation, *getattr(annotation, "__args__", ())}


def _is_scheduled(parameter: inspect.Parameter) -> bool:
    """Whether the argument is a number, so that a schedule may replace it.

    The default decides. If it is None, the annotation decides: if that allows functions, the member
    takes them itself.
    """
    default, annotation = parameter.default, parameter.annotation
    if default is None:
        return annotation == jax.typing.ArrayLike | None
    return default is inspect.Parameter.empty or is_number(default)


def hyperparams(state: State) -> dict[str, jax.Array]:
    """The hyperparameters in a state, by name; for a schedule, the value of the last step.

    Args:
      state: contains the state of `with_hyperparams`, or of `optax.inject_hyperparams`, nested at
        any depth (in `optax.chain`, `MultiSteps`, a `TrainState`, an `nnx.Optimizer`'s state).

    Raises:
      ValueError: the state holds no hyperparameters, or several sets of them.
    """
    return dict(_only(state).hyperparams)


def set_hyperparams(state: State, **numbers: PyTree) -> State:
    """The same state with new hyperparameters; nothing is recompiled.

    `set_hyperparams(state, b2=0.95)` keeps 1 - 0.95 and log 0.95 at full precision. Optax's
    `state.hyperparams["b2"] = jnp.float32(0.95)` works too, with the precision of float32.

    Args:
      state: as in `hyperparams`.
      **numbers: the new values. For the state of a population (under `vmap`), one for all or one
        for each. A number set by a schedule is overwritten in the next step. A decay rate that
        crosses 0.5 keeps the form of its average, which is as exact and may differ in the last bit.
        In a state of `optax.inject_hyperparams`, decay rates are not checked, and numbers keep
        their dtype.

    Raises:
      ValueError: a name that is not in the state, a decay rate outside [0, 1), another number that
        is infinite, NaN or negative (a learning rate, a weight decay and l2 may be negative), an
        array whose shape does not fit.
    """
    node = _only(state)
    values, states = dict(node.hyperparams), dict(node.hyperparams_states)
    unknown = sorted(set(numbers) - set(values))
    if unknown:
        raise ValueError(f"{unknown} must be among the state's hyperparameters, {sorted(values)}.")
    for name, x in numbers.items():
        [old] = jax.tree.leaves(values[name])
        shape, dtype = np.shape(old), jnp.result_type(old)  # In a state of Optax, any dtype.
        _check(name, x, 1.0 if past_key(name) in states else math.inf)
        values[name] = _fitted(name, as_float(x), shape).astype(dtype)
        if exact_key(name) in states:
            rate = exact_rate(name, x)
            states[exact_key(name)] = ExactRate(*(_fitted(name, part, shape) for part in rate))
    leaves = jax.tree.leaves(node._replace(hyperparams=values, hyperparams_states=states))
    # The leaves of an nnx optimizer's state are variables; these are their values.
    new = jax.tree.unflatten(jax.tree.structure(node), leaves)
    return jax.tree.map(
        lambda x: new if _is_hyperparams_state(x) else x, state, is_leaf=_is_hyperparams_state
    )


SIGNED = ("learning_rate", "weight_decay", "l2")
"""Arguments of the aliases that may be negative."""


def _check(name: str, x: Leaf, high: float) -> None:
    low = -math.inf if name in SIGNED else 0.0
    kind = "finite" if name in SIGNED else "finite and not negative"
    for number in [] if isinstance(x, jax.core.Tracer) else np.ravel(x):
        check_number(name, number, low, high, instead=f"numbers of an optimizer are {kind}")


def _fitted(name: str, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    try:
        return jnp.broadcast_to(as_scalar(x), shape)
    except ValueError:
        raise ValueError(
            f"{name} must be one number, or have the shape {shape} as in the state, got"
            f" shape {x.shape}."
        ) from None


def _is_hyperparams_state(node: PyTree) -> bool:
    return isinstance(node, InjectStatefulHyperparamsState)


def _only(state: State) -> State:
    instead = "build the transformation as adam_jax.with_hyperparams(adamw)(learning_rate=...)"
    return only(state, _is_hyperparams_state, "set of hyperparameters", instead)
