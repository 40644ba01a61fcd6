"""Hyperparameters in the state: read, changed and scheduled without recompilation."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax._types import (
    AnyTransformation,
    Count,
    Function,
    Leaf,
    Named,
    Params,
    PyTree,
    Result,
    State,
    Updates,
)
from adam_jax.engine.call import Body, Call, check_state, chosen
from adam_jax.engine.layers import Layers
from adam_jax.engine.masks import FrozenTree
from adam_jax.engine.transformation import Transformation, body_of
from adam_jax.modify.factory import Factory, check_factory, name_of
from adam_jax.modify.groups import groups
from adam_jax.modify.hyperparams_state import (
    HyperparamsState,
    as_float,
    exact_key,
    exact_rate,
)
from adam_jax.modify.layers import layers_of, with_layers
from adam_jax.modify.partition import factories_in, open_parameters
from adam_jax.rules.arithmetic import DecayRate, DecayRateLike
from adam_jax.rules.hyperparameters import FixedNumber
from adam_jax.rules.pytrees import frozen_pytree, static
from adam_jax.validation import as_scalar, bind_arguments, check_scalar


@frozen_pytree
class WithHyperparams(Body):
    """The body of `with_hyperparams`.

    Attributes:
      numbers: the hyperparameters before the first step.
      factory: makes the transformation from them.
      schedules: the hyperparameters that are functions of the step.
      fixed: the other arguments: dtypes, flags, masks, counts of steps.
      sides: for each decay rate, its side of 0.5, which selects the form of its average.
    """

    numbers: Named
    factory: Callable[..., optax.GradientTransformation] = static()
    schedules: tuple[tuple[str, Any], ...] = static()
    fixed: tuple[tuple[str, Any], ...] = static()
    sides: tuple[tuple[str, bool | None], ...] = static()

    def init(self, params: Params) -> HyperparamsState:
        """The hyperparameters and the member's initial state."""
        count = jnp.zeros([], jnp.int32)
        numbers = {name: as_float(x) for name, x in self.numbers.items()}
        exact = {
            exact_key(name): exact_rate(name, self.numbers[name])
            for name, _ in self.sides
            if name in self.numbers
        }
        state = HyperparamsState(count, numbers | self.scheduled(count), exact, ())
        return state._replace(inner_state=self.inner(state).init(params))

    def run(self, updates: Updates, state: State, params: Params, call: Call) -> Result:
        """One step of the member made from the state's numbers."""
        check_state(state, HyperparamsState, "a HyperparamsState")
        known = {*self.numbers, *dict(self.schedules)}
        if state.hyperparams.keys() != known:
            raise ValueError(
                f"the state must have the hyperparameters of {name_of(self.factory)},"
                f" {sorted(known)}, got {sorted(state.hyperparams)}: it was made by another"
                f" function. To move its moments, write"
                f" adam_jax.convert.from_optax(state, params, tx)."
            )
        numbers = {name: as_float(x) for name, x in state.hyperparams.items()}
        numbers |= self.scheduled(state.count)
        state = state._replace(hyperparams=numbers)
        body = body_of(name_of(self.factory), self.inner(state))
        result, inner = body.run(updates, state.inner_state, params, call)
        return result, state._replace(count=call.counted(state.count), inner_state=inner)

    @property
    def layers(self) -> Layers:
        """The layers declared to the factory."""
        return layers_of(self.factory)

    def told_of(self, layers: Layers) -> "WithHyperparams":
        """A copy whose factory makes members with these layers."""
        return dataclasses.replace(self, factory=with_layers(self.factory, layers))

    def scheduled(self, count: Count) -> dict[str, jax.Array]:
        """The schedules' values for this step."""
        instead = "return one number, the same for all leaves"
        return {
            name: as_float(
                check_scalar(f"the schedule of {name}", schedule(count), instead=instead)
            )
            for name, schedule in self.schedules
        }

    def inner(self, state: HyperparamsState) -> Any:
        """The member made from the state's numbers."""
        arguments: Named = dict(state.hyperparams)
        for name, side in self.sides:
            b = state.hyperparams[name]
            # A schedule's value, or a number assigned directly, is known only in float32.
            rate = DecayRate.of_array(b, side)
            if exact_key(name) in state.exact:
                known = state.exact[exact_key(name)]
                exact = DecayRate(known.complement, known.log, side)
                rate = chosen(b == known.rate, jax.tree.map(_with_tangent, exact, rate), rate)
            arguments[name] = rate
        fixed = {k: x.tree if isinstance(x, FrozenTree) else x for k, x in self.fixed}
        return self.factory(**arguments, **fixed)


def expanded(tx: AnyTransformation) -> PyTree:
    """Replaces each `with_hyperparams` in a transformation by the member that its numbers make."""

    def expand(x: Leaf) -> Leaf:
        return expanded(x.inner(x.init(()))) if isinstance(x, WithHyperparams) else x

    return jax.tree.map(expand, tx, is_leaf=lambda x: isinstance(x, WithHyperparams))


@jax.custom_jvp
def _with_tangent(value: jax.Array, source: jax.Array) -> jax.Array:
    """A more exact value of `source`, with the derivative of `source`."""
    del source
    return value


@_with_tangent.defjvp
def _with_tangent_jvp(primals: PyTree, tangents: PyTree) -> tuple[jax.Array, jax.Array]:
    return _with_tangent(*primals), tangents[1]


@dataclasses.dataclass(frozen=True)
class HyperparamsFactory(Factory):
    """The function that `with_hyperparams` returns."""

    def __call__(self, *args: Leaf, **kwargs: Leaf) -> Transformation:
        """The transformation with its numbers in the state."""
        signature = inspect.signature(self.factory)
        bound = bind_arguments(name_of(self.factory), signature, args, kwargs)
        bound.apply_defaults()
        known = _parameters(self.factory)
        arguments = bound.arguments
        for name, p in signature.parameters.items():
            if p.kind == p.VAR_KEYWORD:
                arguments |= arguments.pop(name)
        numbers: Named = {}
        schedules: Named = {}
        fixed: Named = {}
        for name, x in arguments.items():
            if _is_number(x) and not _is_fixed(x, known.get(name)):
                numbers[name] = float(x) if isinstance(x, int) else as_scalar(x)
            elif callable(x) and name in known and _is_scheduled(known[name]):
                schedules[name] = x
            else:
                fixed[name] = x if _is_hashable(x) else FrozenTree.of(x)
        self.factory(**{**arguments, **numbers, **dict.fromkeys(schedules, 0.0)})  # Checks them.
        sides = {
            name: None
            if name in schedules or isinstance(numbers[name], jax.core.Tracer)
            else bool(numbers[name] >= 0.5)
            for name, p in known.items()
            if _is_decay_rate(p.annotation) and (name in numbers or name in schedules)
        }
        tables = (tuple(table.items()) for table in (schedules, fixed, sides))
        return Transformation.around(WithHyperparams(numbers, self.factory, *tables))


def with_hyperparams(
    factory: Callable[..., optax.GradientTransformation],
) -> Callable[..., Transformation]:
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
      A function with the arguments of `factory`. The transformation it makes has a
      `HyperparamsState` with the member's state inside.

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
        bound = inspect.signature(groups).bind_partial(*factory.args, **factory.keywords)
        factory = bound.arguments.get("factory", groups)
        if isinstance(factory, Mapping):
            known: dict[str, inspect.Parameter] = {}
            for parameters in map(open_parameters, factories_in(factory)):
                known |= {
                    name: p
                    for name, p in parameters.items()
                    if name not in known or _is_decay_rate(known[name].annotation)
                }
            return known
    return inspect.signature(factory, eval_str=True).parameters


def _is_number(value: Leaf) -> bool:
    kinds = (int, float, np.number, np.ndarray, jax.Array)
    return isinstance(value, kinds) and not isinstance(value, bool) and np.size(value) == 1


def _is_scheduled(parameter: inspect.Parameter) -> bool:
    """Whether the argument is a number, so that a schedule may replace it.

    The default decides. If it is None, the annotation decides: if that allows functions, the member
    takes them itself.
    """
    default, annotation = parameter.default, parameter.annotation
    if default is None:
        return annotation == jax.typing.ArrayLike | None
    return default is inspect.Parameter.empty or _is_number(default)


def _is_decay_rate(annotation: Any) -> bool:
    options = getattr(annotation, "__args__", ())
    return annotation == DecayRateLike or DecayRateLike in options


def _is_fixed(value: Leaf, parameter: inspect.Parameter | None) -> bool:
    """Whether it is a count, such as warm-up steps, or may not change during a run."""
    if parameter is None:
        return False
    options = {parameter.annotation, *getattr(parameter.annotation, "__args__", ())}
    integer = int in options and not {float, complex} & options
    return FixedNumber in options or (integer and isinstance(value, int))


def _is_hashable(x: Leaf) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True
