"""The accumulators of a rule: what rules and formats both know of them."""

import dataclasses

from adam_jax._types import Number


@dataclasses.dataclass(frozen=True)
class Slot:
    """One named accumulator with the parameter's shape.

    Attributes:
      name: its field in the state, and so its key in a checkpoint: public, never renamed.
      magnitude: it holds |·|² or |·|, real and never negative, also where the parameter is complex.
      start: the value that every element has before the first step; a number or a tracer.
      rate: of an average, the weight of a new term in each step, 1 - b: a format chooses by it how
        to round. A tracer or an array is a rate that may change, as None is.
      maximum: a maximum over the steps is taken of it, which coarse codes make too large.
    """

    name: str
    magnitude: bool = False
    start: Number = 0.0
    rate: Number = None
    maximum: bool = False
