"""Hyperparameters in the state: readable, changeable and scheduled without another compilation."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax.rules.base import DecayRate, DecayRateLike, frozen_pytree, static
from adam_jax.transform import Transformation
from adam_jax.validation import check_number


class ExactRate(NamedTuple):
    """A decay rate b, and beside it 1 - b and log b, rounded from the Python number each.

    Attributes:
      value: b as it was set; where the state has another one, the other two are stale.
      complement: 1 - b.
      log: log b.
    """

    value: jax.Array
    complement: jax.Array
    log: jax.Array


class HyperparamsState(NamedTuple):
    """State of `with_hyperparams`.

    Attributes:
      count: optimizer steps completed, int32, which schedules are functions of.
      hyperparams: the numbers by their argument's name, float32; of a schedule its last value.
      rates: what a float32 cannot hold of the decay rates among them.
      inner_state: the member's own.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    hyperparams: dict[str, jax.Array]
    rates: dict[str, ExactRate]
    inner_state: Any


def _float(x: Any) -> jax.Array:
    """float32, or float64 where that is JAX's default: never the dtype of a parameter."""
    return jax.lax.convert_element_type(x, jnp.result_type(float))


def _exact(b: Any) -> ExactRate:
    rate = DecayRate.of("decay rate", b)
    return ExactRate(_float(b), _float(rate.complement), _float(rate.log))


@frozen_pytree
class WithHyperparams:
    """The body of `with_hyperparams`.

    Attributes:
      numbers: the hyperparameters before the first step.
      factory: what makes the transformation from them.
      schedules: those that are functions of the step.
      fixed: the other arguments: dtypes, flags, masks.
      sides: of each decay rate the side of 0.5 it is on, which picks the form of its average.
    """

    numbers: dict[str, Any]
    factory: Callable[..., optax.GradientTransformation] = static()
    schedules: tuple[tuple[str, Any], ...] = static()
    fixed: tuple[tuple[str, Any], ...] = static()
    sides: tuple[tuple[str, bool | None], ...] = static()

    def __hash__(self) -> int:
        return hash((*self.numbers.items(), self.factory, self.schedules, self.fixed, self.sides))

    def init(self, params: Any) -> HyperparamsState:
        """The numbers, and the member's state before the first step."""
        count = jnp.zeros([], jnp.int32)
        hyperparams = {name: _float(x) for name, x in self.numbers.items()}
        hyperparams |= {name: _float(schedule(count)) for name, schedule in self.schedules}
        rates = {name: _exact(self.numbers[name]) for name, _ in self.sides if name in self.numbers}
        inner = self.inner(hyperparams, rates).init(params)
        return HyperparamsState(count, hyperparams, rates, inner)

    def run(
        self, updates: Any, state: Any, params: Any, apply: bool, extra_args: dict[str, Any]
    ) -> tuple[Any, HyperparamsState]:
        """One step of the member that the state's numbers make."""
        if not isinstance(state, HyperparamsState):
            raise ValueError(
                f"the state must be a HyperparamsState, got {type(state).__name__}: call init of"
                f" this transformation and pass its result on."
            )
        hyperparams = {name: _float(x) for name, x in state.hyperparams.items()}
        hyperparams |= {name: _float(schedule(state.count)) for name, schedule in self.schedules}
        tx = self.inner(hyperparams, state.rates)
        if apply and isinstance(tx, Transformation):
            result, inner = tx.step(updates, state.inner_state, params, **extra_args)
        else:
            tx = optax.with_extra_args_support(tx)
            result, inner = tx.update(updates, state.inner_state, params, **extra_args)
            result = optax.apply_updates(params, result) if apply else result
        count: Any = optax.safe_increment(state.count)
        return result, HyperparamsState(count, hyperparams, state.rates, inner)

    def inner(self, hyperparams: dict[str, Any], rates: dict[str, ExactRate]) -> Any:
        """The member with these numbers."""
        arguments = dict(hyperparams)
        for name, side in self.sides:
            b = hyperparams[name]
            if name not in rates:  # A schedule's value: all there is of it is the float32.
                arguments[name] = DecayRate(1 - b, jnp.log(b), side)
                continue
            value, complement, log = rates[name]
            same = b == value
            complement = jnp.where(same, complement, 1 - b)
            arguments[name] = DecayRate(complement, jnp.where(same, log, jnp.log(b)), side)
        return self.factory(**arguments, **dict(self.fixed))


def with_hyperparams(
    factory: Callable[..., optax.GradientTransformation],
) -> Callable[..., Transformation]:
    """Keeps the numbers of a member in its state, where they can be read, changed and scheduled.

    `with_hyperparams(adamw)(learning_rate=1e-3, b2=0.99)` steps as `adamw(...)` with the same
    arguments does, bit for bit. Every numeric argument, given or by default, is in
    `state.hyperparams`, in float32 (float64 under x64). Another number there needs no other
    compilation: `set_hyperparams(state, learning_rate=3e-4)`. An argument that Optax documents as a
    number may be a schedule here, a function of the optimizer steps completed.

    Args:
      factory: `adamw`, any other alias or scale_by_* of this package, a modifier of one
        (`cautious(adamw)`), or any function from numbers to an Optax transformation.

    Returns:
      A function with the arguments of `factory`. What it makes has a `HyperparamsState`, and the
      state of the member inside it.

    Raises:
      ValueError: numbers that the factory would refuse, when the transformation is made.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> tx = adam_jax.with_hyperparams(adam_jax.adamw)(learning_rate=1e-3, b2=0.99)
      >>> state = tx.init(params := jnp.ones(3, jnp.bfloat16))
      >>> state = adam_jax.set_hyperparams(state, learning_rate=0.5)
      >>> params, state = adam_jax.step(tx, params, state, params)
      >>> print(adam_jax.hyperparams(state)["learning_rate"], params)
      0.5 [0.5 0.5 0.5]

    Differs from Optax (`inject_hyperparams`) in: decay rates keep 1 - b and log b beside b, so that
    nothing is lost (there a float32 0.999 puts 1.3e-5 into every increment of nu, and a bfloat16
    one, with bfloat16 parameters, is 1 and makes NaN); numbers never take the parameters' dtype;
    a callable is a schedule only where a number could stand.
    """
    signature = inspect.signature(factory)
    known = signature.parameters

    @functools.wraps(factory)
    def build(*args: Any, **kwargs: Any) -> Transformation:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = _flat_arguments(signature, bound.arguments)
        numbers: dict[str, Any] = {
            name: x if _is_traced(x) else float(x) for name, x in arguments.items() if _is_number(x)
        }
        schedules = {
            name: x
            for name, x in arguments.items()
            if callable(x) and name in known and _is_scheduled(known[name].default)
        }
        fixed = {k: x for k, x in arguments.items() if k not in numbers and k not in schedules}
        factory(**numbers, **dict.fromkeys(schedules, 0.0), **fixed)  # Says what is out of range.
        rates = [name for name, p in known.items() if _is_decay_rate(p.annotation)]
        sides = {
            name: None if name in schedules or _is_traced(numbers[name]) else numbers[name] >= 0.5
            for name in rates
            if name in numbers or name in schedules
        }
        tables = (tuple(table.items()) for table in (schedules, fixed, sides))
        return Transformation.around(WithHyperparams(numbers, factory, *tables))

    return build


def _flat_arguments(signature: inspect.Signature, arguments: dict[str, Any]) -> dict[str, Any]:
    """By name, those of a `**kwargs` among the others."""
    flat = {}
    for name, value in arguments.items():
        variadic = signature.parameters[name].kind == inspect.Parameter.VAR_KEYWORD
        flat |= value if variadic else {name: value}
    return flat


def _is_number(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return False
    is_array = isinstance(value, (np.ndarray, np.number, jax.Array))
    return isinstance(value, (int, float)) or (is_array and np.ndim(value) == 0)


def _is_scheduled(default: Any) -> bool:
    """An argument with this default is a number, and so may be one for each step."""
    return default is inspect.Parameter.empty or _is_number(default)


def _is_traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)


def _is_decay_rate(annotation: Any) -> bool:
    options = getattr(annotation, "__args__", ())
    return annotation == DecayRateLike or DecayRateLike in options


def hyperparams(state: Any) -> dict[str, jax.Array]:
    """The hyperparameters that a state has, by name: of a schedule the value of the last step.

    Args:
      state: of a transformation made by `with_hyperparams`, however deep inside others it is
        (`optax.chain`, `MultiSteps`, a `TrainState`, an `nnx.Optimizer`'s state).

    Raises:
      ValueError: there are none, or there are several sets of them.
    """
    return dict(_only(state).hyperparams)


def set_hyperparams(state: Any, **numbers: Any) -> Any:
    """The same state with other hyperparameters; nothing is compiled again.

    `set_hyperparams(state, b2=0.95)` keeps 1 - 0.95 and log 0.95 to full precision;
    `state.hyperparams["b2"] = jnp.float32(0.95)`, Optax's way, works too and is what it says.

    Args:
      state: as in `hyperparams`.
      **numbers: the new values. A number that a schedule sets is overwritten in the next step.

    Raises:
      ValueError: a name that is not in the state, a decay rate outside [0, 1), a number that is
        infinite or NaN.
    """
    known = _only(state).hyperparams
    unknown = sorted(set(numbers) - set(known))
    if unknown:
        raise ValueError(f"{unknown} must be among the state's hyperparameters, {sorted(known)}.")
    for name, x in numbers.items():
        check_number(name, x, -math.inf, instead="a schedule goes to with_hyperparams")

    def renew(node: Any) -> Any:
        if not isinstance(node, HyperparamsState):
            return node
        rates = {
            name: _exact_of(name, numbers[name]) if name in numbers else rate
            for name, rate in node.rates.items()
        }
        values = {name: _float(numbers.get(name, x)) for name, x in node.hyperparams.items()}
        return node._replace(hyperparams=values, rates=rates)

    return jax.tree.map(renew, state, is_leaf=_is_hyperparams_state)


def _exact_of(name: str, b: Any) -> ExactRate:
    DecayRate.of(name, b)
    return _exact(b)


def _is_hyperparams_state(node: Any) -> bool:
    return isinstance(node, HyperparamsState)


def _only(state: Any) -> HyperparamsState:
    nodes = jax.tree.leaves(state, is_leaf=_is_hyperparams_state)
    found = [node for node in nodes if isinstance(node, HyperparamsState)]
    if len(found) != 1:
        raise ValueError(
            f"the state must have one set of hyperparameters, got {len(found)}: build the"
            f" transformation as adam_jax.with_hyperparams(adamw)(learning_rate=...)."
        )
    return found[0]
