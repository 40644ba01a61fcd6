"""The state of `with_hyperparams`: how hyperparameters are stored, read and changed."""

import math
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from adam_jax._types import Leaf, Number, PyTree, State
from adam_jax.engine.states import found, register
from adam_jax.rules.arithmetic import DecayRate
from adam_jax.validation import as_scalar, check_number


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


class HyperparamsState(NamedTuple):
    """State of `with_hyperparams`.

    Attributes:
      count: optimizer steps completed, int32; the argument of schedules.
      hyperparams: the numbers by argument name, float32; for a schedule, its last value.
      exact: the decay rates among them at full precision, b2 under `exact_b2`, so that
        `optax.tree.get(state, "b2")` finds one number.
      inner_state: the member's own.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    hyperparams: dict[str, jax.Array]
    exact: dict[str, ExactRate]
    inner_state: State


register(
    HyperparamsState,
    counts=["count"],
    inner=["inner_state"],
    own=["hyperparams", "exact"],
    own_matters=False,
)


def as_float(x: Leaf) -> jax.Array:
    """Converts to float32, or float64 where that is JAX's default, never to a parameter's dtype.

    It copies: otherwise the caller's array would be donated with the state.
    """
    return jnp.array(x, jnp.result_type(float))


def exact_rate(name: str, b: Number) -> ExactRate:
    """Splits a rate, or each rate of an array, from its Python number if there is one."""
    if isinstance(b, jax.core.Tracer):
        rate = DecayRate.of_array(b)
        return ExactRate(as_float(b), as_float(rate.complement), as_float(rate.log))
    b = np.asarray(b)
    rates = [DecayRate.of(name, x, closed=True) for x in b.ravel()]
    complement, log = ([getattr(rate, part) for rate in rates] for part in ("complement", "log"))
    return ExactRate(*(as_float(np.reshape(x, b.shape)) for x in (b, complement, log)))


def exact_key(name: str) -> str:
    """The key of this rate's exact parts; the rate's own name is taken."""
    return f"exact_{name}"


def hyperparams(state: State) -> dict[str, jax.Array]:
    """The hyperparameters in a state, by name; for a schedule, the value of the last step.

    Args:
      state: contains the state of `with_hyperparams`, nested at any depth (in `optax.chain`,
        `MultiSteps`, a `TrainState`, an `nnx.Optimizer`'s state).

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

    Raises:
      ValueError: a name that is not in the state, a decay rate outside [0, 1), another number that
        is infinite, NaN or negative (a learning rate, a weight decay and l2 may be negative), an
        array whose shape does not fit.
    """
    node = _only(state)
    values, exact = dict(node.hyperparams), dict(node.exact)
    unknown = sorted(set(numbers) - set(values))
    if unknown:
        raise ValueError(f"{unknown} must be among the state's hyperparameters, {sorted(values)}.")
    for name, x in numbers.items():
        shape = np.shape(jax.tree.leaves(values[name])[0])
        is_rate = exact_key(name) in exact
        values[name] = _fitted(name, _checked(name, x, 1.0 if is_rate else math.inf), shape)
        if is_rate:
            rate = exact_rate(name, x)
            exact[exact_key(name)] = ExactRate(*(_fitted(name, part, shape) for part in rate))
    leaves = jax.tree.leaves(node._replace(hyperparams=values, exact=exact))
    # The leaves of an nnx optimizer's state are variables; these are their values.
    new = jax.tree.unflatten(jax.tree.structure(node), leaves)
    return jax.tree.map(
        lambda x: new if _is_hyperparams_state(x) else x, state, is_leaf=_is_hyperparams_state
    )


SIGNED = ("learning_rate", "weight_decay", "l2")
"""Arguments of the aliases that may be negative."""


def _checked(name: str, x: Leaf, high: float) -> Any:
    low = -math.inf if name in SIGNED else 0.0
    kind = "finite" if name in SIGNED else "finite and not negative"
    for number in [] if isinstance(x, jax.core.Tracer) else np.ravel(x):
        check_number(name, number, low, high, instead=f"numbers of an optimizer are {kind}")
    return as_float(x)


def _fitted(name: str, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    try:
        return jnp.broadcast_to(as_scalar(x), shape)
    except ValueError:
        raise ValueError(
            f"{name} must be one number, or have the shape {shape} as in the state, got"
            f" shape {x.shape}."
        ) from None


def _is_hyperparams_state(node: PyTree) -> bool:
    return isinstance(node, HyperparamsState)


def _only(state: State) -> HyperparamsState:
    nodes = found(state, _is_hyperparams_state)
    if len(nodes) != 1:
        what = "build the transformation as adam_jax.with_hyperparams(adamw)(learning_rate=...)"
        what = "pass the part of the state that you mean, such as state[1]" if nodes else what
        raise ValueError(
            f"the state must have one set of hyperparameters, got {len(nodes)}: {what}."
        )
    return nodes[0]
