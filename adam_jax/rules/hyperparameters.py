"""The numbers of a member as a user writes them: for the whole run, or for each step."""

import abc
from collections.abc import Callable
from typing import Annotated, TypeAlias, cast

import jax
from jax import Array

from adam_jax._types import Count, Leaf, Number
from adam_jax.rules.pytrees import frozen_pytree, static
from adam_jax.validation import check_number, check_scalar

Schedule = Callable[[Array], jax.typing.ArrayLike]

FixedNumber: TypeAlias = Annotated[float, "fixed"]
"""The type of a number that may not change during a run; `with_hyperparams` leaves it alone."""


class Hyperparameter(abc.ABC):
    """A number, for the whole run or for each step."""

    @abc.abstractmethod
    def at(self, count: Count) -> Number:
        """The number after so many completed optimizer steps (0, 1, 2, …)."""


@frozen_pytree
class Constant(Hyperparameter):
    """A hyperparameter that is one number for the whole run."""

    value: Leaf

    def at(self, count: Count) -> Number:
        del count
        return self.value


@frozen_pytree
class Scheduled(Hyperparameter):
    """A hyperparameter that is a function of the optimizer steps completed so far."""

    schedule: Schedule = static()

    def at(self, count: Count) -> Number:
        name = getattr(self.schedule, "__qualname__", repr(self.schedule))
        return check_scalar(
            f"the result of the schedule {name}",
            self.schedule(count),
            instead="return one number, the same for all leaves",
        )


@frozen_pytree
class Scaled(Hyperparameter):
    """A hyperparameter times a factor."""

    inner: Hyperparameter
    factor: float = static()

    def at(self, count: Count) -> Number:
        return self.inner.at(count) * self.factor


def hyperparameter(argument: str, x: Leaf, low: float = 0.0, *, instead: str) -> Hyperparameter:
    """From what a user writes, a number ≥ low or a schedule."""
    if isinstance(x, Hyperparameter):
        return x
    if callable(x):
        return Scheduled(cast(Schedule, x))
    return Constant(check_number(argument, x, low, instead=instead))
