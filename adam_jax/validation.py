"""Errors that name the argument, its value, the allowed values, and what to write instead.

Each check raises a ValueError, when a transformation is built. A tracer has no value yet and passes
unchecked, so the same constructors work inside `jit`, `vmap` and `grad`.
"""

import functools
import inspect
import math
import re
from typing import Any, TypeGuard, TypeVar, cast

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from adam_jax._types import Function, Leaf, Named, PyTree

F = TypeVar("F", bound=Function)

_ARRAYS = (np.generic, np.ndarray, jax.Array)
_NUMBERS = (int, float, np.number, np.ndarray, jax.Array)

IN_FLOAT32 = (
    "optax.inject_hyperparams gives numbers the dtype of the parameters, write"
    " hyperparam_dtype=jnp.float32 there, or adam_jax.with_hyperparams(adamw)"
)
"""What to write where a number has a dtype of parameters."""


def printed(value: Leaf) -> str:
    """A value in an error: numbers and strings themselves, of any other object only its type."""
    parts = value if isinstance(value, (list, tuple)) and len(value) < 10 else [value]
    if all(isinstance(x, (str, int, float, complex, np.generic, type(None))) for x in parts):
        return repr(value)
    name = getattr(value, "__name__", None) or type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _are_numbers(value: Leaf) -> bool:
    """Whether `value` is a number or an array of numbers; booleans and keys are not."""
    is_array = isinstance(value, _ARRAYS) and jnp.issubdtype(value.dtype, np.number)
    return is_array or (isinstance(value, (int, float)) and not isinstance(value, bool))


def is_number(value: Leaf) -> bool:
    """Whether `value` is one real number, or an array of one."""
    return _are_numbers(value) and np.size(value) == 1 and not np.iscomplexobj(value)


def check_number(
    argument: str,
    value: Leaf,
    low: float = 0.0,
    high: float = math.inf,
    *,
    closed: bool = False,
    instead: str,
) -> Any:
    """Checks that `value` is one number with low ≤ value < high.

    A Python number is returned as a float, so that 0 and 0.0 make equal transformations. An array
    stays an array, as in Optax: `equinox.filter_jit`, for example, then traces it, and a new value
    does not recompile. An array of one number, of any shape, counts as a scalar.

    Args:
      argument: the name of the argument, as the caller wrote it.
      value: the number; only the shape of a tracer is read.
      low: the smallest allowed number, inclusive unless it is infinite.
      high: the upper bound, exclusive unless `closed`.
      closed: high is allowed.
      instead: what to write instead, one clause.
    """
    interval = f"{'(' if math.isinf(low) else '['}{low:g}, {high:g}{']' if closed else ')'}"
    if not _are_numbers(value):
        raise ValueError(
            f"{argument} must be a number in {interval}, got {printed(value)}: {instead}."
        )
    if np.size(value) != 1:
        raise ValueError(
            f"{argument} must be a scalar in {interval}, got shape {np.shape(value)}: for one"
            f" value per model, build the transformation inside jax.vmap."
        )
    value = as_scalar(value)
    if np.iscomplexobj(value):
        raise ValueError(f"{argument} must be real, got {value.dtype.name}: {IN_FLOAT32}.")
    if isinstance(value, jax.core.Tracer):
        inexact = jnp.issubdtype(value.dtype, jnp.inexact)
        return value if inexact else value.astype(jnp.result_type(float))
    number = float(value)
    if not low <= number <= high or number == -math.inf or (number == high and not closed):
        raise ValueError(f"{argument} must be in {interval}, got {number!r}: {instead}.")
    dtype = jnp.result_type(float)
    if (largest := float(jnp.finfo(dtype).max)) < abs(number) < math.inf:
        raise ValueError(
            f"{argument} must be at most {largest:.3g}, the largest number of {dtype.name},"
            f" got {number!r}: {instead}."
        )
    return value if isinstance(value, _ARRAYS) else number


def check_positive(argument: str, value: Leaf) -> float:
    """Checks that `value` is a number above 0, for arguments without a usual value."""
    return float(check_number(argument, value, 1e-30, instead="write a number above zero"))


def as_scalar(value: Leaf) -> Leaf:
    """An array of one number, of any shape, as a scalar; anything else unchanged."""
    if isinstance(value, np.ndarray) and value.size == 1:
        return value.reshape(())[()]  # A NumPy scalar, which is immutable.
    if not isinstance(value, jax.Array) or value.shape == () or value.size != 1:
        return value
    with jax.ensure_compile_time_eval():  # Concrete even while a function is traced.
        return value.reshape(())


def as_number(value: Leaf) -> Leaf:
    """A concrete array of one number as a hashable Python number; anything else unchanged."""
    concrete = isinstance(value, _ARRAYS) and not isinstance(value, jax.core.Tracer)
    return np.asarray(value).item() if concrete else value


def same_kind(number: float, given: PyTree) -> Any:
    """A number computed from a concrete `given` number: an array if `given` is an array."""
    if isinstance(given, jax.Array):
        with jax.ensure_compile_time_eval():
            return jnp.asarray(number, jnp.result_type(float))
    return np.float64(number) if isinstance(given, _ARRAYS) else number


def check_scalar(argument: str, value: Leaf, *, instead: str) -> Any:
    """Checks that `value`, traced or not, is one real number, and returns it as a scalar.

    Booleans are 0 and 1.
    """
    value = as_scalar(value)
    if not isinstance(value, (*_NUMBERS, np.bool_)) or np.iscomplexobj(value):
        raise ValueError(f"{argument} must be a number, got {printed(value)}: {instead}.")
    if np.ndim(value) != 0:
        raise ValueError(f"{argument} must be a scalar, got shape {np.shape(value)}: {instead}.")
    return value


def check_integer(argument: str, value: Leaf, low: int, *, instead: str) -> int:
    """Checks that `value` is an integer ≥ low, and returns it as a Python int."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise ValueError(f"{argument} must be an integer ≥ {low}, got {printed(value)}: {instead}.")
    return int(value)


def check_expression(argument: str, value: Leaf) -> str:
    """Checks that `value` is a regular expression, for matching the whole path of a leaf."""
    try:
        if not isinstance(value, str):
            raise ValueError('write a string, such as r".*/bias"')
        re.compile(value)
    except (ValueError, re.error) as error:
        raise ValueError(
            f"{argument} must be a regular expression, got {printed(value)}: {error}."
        ) from None
    return value


def name_of(factory: Function) -> str:
    """The name for messages: `adamw`, also for a `functools.partial` of it."""
    factory = getattr(factory, "func", factory)
    return getattr(factory, "__name__", type(factory).__name__)


def is_factory(x: Leaf) -> TypeGuard[Function]:
    """Whether it is a function that makes an optimizer, and not an optimizer."""
    is_optimizer = hasattr(x, "init") and hasattr(x, "update") and not isinstance(x, type)
    return callable(x) and not is_optimizer


def check_factory(factory: Function, caller: str) -> None:
    """Rejects an optimizer passed where the function that makes it is expected.

    Raises:
      ValueError: `factory` is not a function.
    """
    if not is_factory(factory):
        raise ValueError(
            f"factory must be a function that makes an optimizer, got {type(factory).__name__}:"
            f" write {caller}, adamw without its arguments."
        )


def bound(
    factory: Function, args: tuple[Any, ...], kwargs: Named, partial: bool = False
) -> inspect.BoundArguments:
    """The arguments of a call by name; with `partial` some may be missing.

    Raises:
      TypeError: the function does not take them; the message lists those that it takes.
    """
    signature = inspect.signature(factory)
    try:
        return (signature.bind_partial if partial else signature.bind)(*args, **kwargs)
    except TypeError as error:
        known = list(signature.parameters)
        names = {x: _OTHER_NAMES.get(x.replace("_", ""), x) for x in kwargs if x not in known}
        right = [f"for {x} write {y}; " for x, y in names.items() if y.split(" ")[0] in known]
        its = ", ".join(known)
        message = f"{name_of(factory)}() {error}: {''.join(right)}its arguments are {its}."
        raise TypeError(message) from None


_OTHER_NAMES = {
    "beta1": "b1",
    "beta2": "b2",
    "betas": "b1 and b2",
    "epsilon": "eps",
    "lr": "learning_rate",
    "momentum": "b1",
    "wd": "weight_decay",
    "weightdecay": "l2 as in PyTorch's Adam, or take a member with weight_decay, such as adamw",
}
"""Names of arguments in other libraries, without underscores, and what to write."""


def named_arguments(function: F) -> F:
    """The function, whose errors about unknown arguments are those of `bound`."""
    known = inspect.signature(function).parameters.keys()

    @functools.wraps(function)
    def call(*args: Leaf, **kwargs: Leaf) -> Any:
        if not kwargs.keys() <= known:
            bound(function, args, kwargs)
        return function(*args, **kwargs)

    return cast(F, call)


def preset(factory: Function) -> Named:
    """The arguments that a `functools.partial` sets, by name."""
    if not isinstance(factory, functools.partial):
        return {}
    return bound(factory.func, factory.args, factory.keywords, partial=True).arguments
