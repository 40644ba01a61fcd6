"""The accumulators of a rule, as both rules and formats see them."""

import dataclasses
from typing import Any

from adam_jax._types import Number


@dataclasses.dataclass(frozen=True)
class Slot:
    """One named accumulator with the parameter's shape.

    Attributes:
      name: its field in the state, and therefore its key in a checkpoint: public, never renamed.
      magnitude: it holds |·|² or |·|: real and never negative, even for a complex parameter.
      start: the value before the first step: a number or a tracer; or a function of the parameter,
        or one layer of it, whose result has as many axes and broadcasts to it.
      rate: for an average, the weight of a new term in each step, 1 - b; formats choose their
        rounding by it. None, a tracer or an array means that the rate may change.
      maximum: the algorithm takes its maximum over the steps; coarse codes would bias that upward.
    """

    name: str
    magnitude: bool = False
    start: Any = 0.0
    rate: Number = None
    maximum: bool = False
