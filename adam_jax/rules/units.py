"""Units of a rule's numbers: their scale factors when the scale of a leaf changes."""

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any

from adam_jax._types import Leaf
from adam_jax.rules.base import T, with_parts
from adam_jax.rules.hyperparameters import Scaled


class Unit(enum.Enum):
    """The unit of a number."""

    GRADIENT = "gradient"
    GRADIENT_SQUARED = "gradient squared"
    LEARNING_RATE = "learning rate"
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
        may_be_schedule = unit in (Unit.LEARNING_RATE, Unit.WEIGHT_DECAY)
        return Scaled(number, factor) if may_be_schedule else number * factor

    return with_numbers(x, times)
