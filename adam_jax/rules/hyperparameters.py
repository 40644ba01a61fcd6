"""The numbers of rules: constant for the run or a schedule, and their units.

A unit tells by what a number is multiplied when the scale of a leaf changes.
"""

import abc
import dataclasses
import enum
import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeAlias, cast

import jax
import jax.numpy as jnp
from jax import Array

from adam_jax._types import Count, Leaf, Number
from adam_jax.pytrees import frozen_pytree, static
from adam_jax.rates import Schedule
from adam_jax.rules.base import T, with_parts
from adam_jax.validation import check_number, check_scalar
from adam_jax.xla.barrier import kept_apart

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


class Unit(enum.Enum):
    """The unit of a number."""

    GRADIENT = "gradient"
    GRADIENT_SQUARED = "gradient squared"
    LEARNING_RATE = "learning rate"
    ANGLE = "angle"
    WEIGHT_DECAY = "weight decay"


def in_units_of(unit: Unit, **kwargs: Leaf) -> Any:
    """A field of a `frozen_pytree` whose number has this unit."""
    return dataclasses.field(metadata={"unit": unit}, **kwargs)


def numbers_of(x: Leaf) -> list[tuple[Unit, Leaf]]:
    """All numbers of a rule that have a unit, including those of its moments and directions."""
    if not dataclasses.is_dataclass(x):
        return []
    found = []
    for f in dataclasses.fields(x):
        value = getattr(x, f.name)
        found += [(f.metadata["unit"], value)] if "unit" in f.metadata else numbers_of(value)
    return found


def units_of(x: Leaf) -> set[Unit]:
    """The units of all numbers of a rule."""
    return {unit for unit, _ in numbers_of(x)}


def with_numbers(x: T, change: Callable[[Unit, Leaf], Leaf]) -> T:
    """A rule in which `change` replaces every number that has a unit."""

    def changed(part: Any) -> Any:
        fields = [f for f in dataclasses.fields(part) if "unit" in f.metadata]
        numbers = {f.name: change(f.metadata["unit"], getattr(part, f.name)) for f in fields}
        return dataclasses.replace(part, **numbers) if numbers else part

    return with_parts(x, changed)


def rescaled(x: T, factors: Mapping[Unit, float]) -> T:
    """A rule in which each number with a unit is multiplied by the factor of that unit."""

    def times(unit: Unit, number: Leaf) -> Leaf:
        factor = factors.get(unit, 1.0)
        if number is None or factor == 1.0:
            return number
        # These may be schedules; and `corrected_weight_decay` divides by the rate without factors.
        may_be_schedule = unit in (Unit.LEARNING_RATE, Unit.ANGLE, Unit.WEIGHT_DECAY)
        return Scaled(number, factor) if may_be_schedule else number * factor

    return with_numbers(x, times)
