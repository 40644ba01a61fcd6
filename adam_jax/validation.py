"""Errors that say which argument, which value, which values are allowed, and what to write instead.

Python and NumPy numbers and concrete JAX scalars are checked where a transformation is built.
A tracer has no value yet, so it passes: the same constructors serve inside `jit`, `vmap` and
`grad`, where a number is one of many or still unknown.
"""

import inspect
import math
import re
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

_NUMBERS = (int, float, np.number, np.ndarray, jax.Array)


def check_number(
    argument: str,
    value: Any,
    low: float = 0.0,
    high: float = math.inf,
    *,
    instead: str,
) -> Any:
    """Checks that `value` is a scalar with low ≤ value < high.

    A concrete number of any kind is returned as a float, so that 0 and 0.0 make equal
    transformations, and hashable ones; a tracer is returned as it is.

    Args:
      argument: the name of the argument, as the caller wrote it.
      value: the number; a tracer passes unread.
      low: the smallest number allowed, itself included.
      high: where the allowed numbers end, itself excluded.
      instead: what to write instead, one clause.

    Raises:
      ValueError: it is not, in one sentence with all of the above.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    interval = f"[{low:g}, {'inf' if math.isinf(high) else f'{high:g}'})"
    if not isinstance(value, _NUMBERS) or isinstance(value, bool):
        instead = _without_quotes(value) or instead
        raise ValueError(f"{argument} must be a number in {interval}, got {value!r}: {instead}.")
    if np.ndim(value) != 0:
        raise ValueError(
            f"{argument} must be a scalar in {interval}, got shape {np.shape(value)}: for one"
            f" value per model, build the transformation inside jax.vmap."
        )
    number = float(value)
    if not low <= number < high:
        raise ValueError(f"{argument} must be in {interval}, got {number!r}: {instead}.")
    dtype = jnp.result_type(float)
    if (largest := float(jnp.finfo(dtype).max)) < abs(number) < math.inf:
        raise ValueError(
            f"{argument} must be at most {largest:.3g}, the largest number of {dtype.name}, in"
            f" which it is kept, got {number!r}: {instead}."
        )
    return number


def _without_quotes(value: Any) -> str | None:
    """What to write instead of a number in quotes; None for all else."""
    try:
        float(value if isinstance(value, str) else "")
    except ValueError:
        return None
    return f"write float({str(value)!r}); a YAML file needs a point before the exponent, 1.0e-3"


def check_scalar(argument: str, value: Any, *, instead: str) -> Any:
    """Checks that `value`, traced or not, is one real number; booleans are 0 and 1.

    Raises:
      ValueError: it is not.
    """
    number = isinstance(value, (*_NUMBERS, np.bool_)) and not jnp.issubdtype(
        jnp.result_type(value), jnp.complexfloating
    )
    if not number:
        raise ValueError(f"{argument} must be a number, got {value!r}: {instead}.")
    if np.ndim(value) != 0:
        raise ValueError(f"{argument} must be a scalar, got shape {np.shape(value)}: {instead}.")
    return value


def bind_arguments(
    name: str,
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    partial: bool = False,
) -> inspect.BoundArguments:
    """Binds arguments to a signature; with `partial` some may be missing.

    Raises:
      TypeError: they do not fit; the message lists those that there are.
    """
    try:
        return (signature.bind_partial if partial else signature.bind)(*args, **kwargs)
    except TypeError as error:
        known = ", ".join(signature.parameters)
        raise TypeError(f"{name}() {error}: its arguments are {known}.") from None


def check_integer(argument: str, value: Any, low: int, *, instead: str) -> int:
    """Checks that `value` is an integer ≥ low; returns it as Python's.

    Raises:
      ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < low:
        raise ValueError(f"{argument} must be an integer ≥ {low}, got {value!r}: {instead}.")
    return int(value)


def check_expression(argument: str, value: Any) -> str:
    """Checks that `value` is a regular expression: it is to match the whole path of a leaf.

    Raises:
      ValueError: it is not.
    """
    try:
        if not isinstance(value, str):
            raise ValueError('write a string, such as r".*/bias"')
        re.compile(value)
    except (ValueError, re.error) as error:
        raise ValueError(
            f"{argument} must be a regular expression, got {value!r}: {error}."
        ) from None
    return value
