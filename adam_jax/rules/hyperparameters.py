"""A member's numbers as users write them: constant for the run, or a schedule."""

import abc
import functools
from collections.abc import Callable
from typing import Annotated, TypeAlias, cast

import jax
import jax.numpy as jnp
from jax import Array

from adam_jax._types import Count, Leaf, Number
from adam_jax.pytrees import frozen_pytree, static
from adam_jax.validation import check_number, check_scalar
from adam_jax.xla.barrier import kept_apart

Schedule = Callable[[Array], jax.typing.ArrayLike]

FixedNumber: TypeAlias = Annotated[float, "fixed"]
"""The type of a number that must not change during a run; `with_hyperparams` skips it."""


class Hyperparameter(abc.ABC):
    """A number that depends on the step; a constant one is the number itself."""

    @abc.abstractmethod
    def at(self, count: Count) -> Number:
        """The number after `count` completed optimizer steps (0, 1, 2, …)."""


@frozen_pytree
class Scheduled(Hyperparameter):
    """A function of the completed optimizer steps."""

    schedule: Schedule = static()

    def at(self, count: Count) -> Number:
        kind = type(self.schedule)
        name = getattr(self.schedule, "__qualname__", f"{kind.__module__}.{kind.__qualname__}")
        return check_scalar(
            f"the result of the schedule {name}",
            self.schedule(count),
            instead="return one number, the same for all leaves",
        )


@frozen_pytree
class Scaled(Hyperparameter):
    """A hyperparameter times a factor."""

    inner: Number
    factor: float = static()

    def at(self, count: Count) -> Number:
        return self.inner * self.factor


@frozen_pytree
class Relative(Hyperparameter):
    """A hyperparameter times another one, relative to the peak of that one.

    Attributes:
      inner: the hyperparameter.
      other: the other one.
      peak: its largest value.
    """

    inner: Number
    other: Number
    peak: Number

    def at(self, count: Count) -> Number:
        return _relative(self.inner, self.other, self.peak)


# One program when called outside of a program: arrays may have other dtypes than schedules.
@functools.partial(jax.jit, inline=True)
def _relative(number: Leaf, other: Leaf, peak: Leaf) -> Array:
    dtype = jnp.result_type(float)
    number, other, peak = (jax.lax.convert_element_type(x, dtype) for x in (number, other, peak))
    # XLA replaces division by a constant with multiplication by 1 / peak, which has other bits.
    return number * (other / kept_apart(peak))


def hyperparameter(argument: str, x: Leaf, low: float = 0.0, *, instead: str) -> Number:
    """A number ≥ low, checked, or a schedule, as the user writes it."""
    if isinstance(x, Hyperparameter):
        return x
    if callable(x):
        return Scheduled(cast(Schedule, x))
    return check_number(argument, x, low, instead=instead)
