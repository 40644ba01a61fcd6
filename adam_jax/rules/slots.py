"""The accumulators of a rule: what they are called, and what they hold for one leaf."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Slot:
    """One named accumulator with the parameter's shape.

    Attributes:
      name: its field in the state, and so its key in a checkpoint: public, never renamed.
      magnitude: it holds |·|² or |·|, real and never negative, also where the parameter is complex.
      start: the value that every element has before the first step; a number or a tracer.
    """

    name: str
    magnitude: bool = False
    start: Any = 0.0


class Slots(dict[str, jax.Array]):
    """The accumulators of one leaf, as the last step left them.

    Attributes:
      ok: boolean scalar; where it is false they stay as they are. None for true.
    """

    def __init__(self, old: Mapping[str, jax.Array], ok: jax.Array | None = None) -> None:
        super().__init__(old)
        self.ok = ok

    def renew(self, name: str, x: jax.Array) -> jax.Array:
        """What an accumulator is from now on: what rules store, and go on with.

        The update must be made of this and not of x: XLA:CPU would compute the parameter from the
        old accumulator a second time, and keep a copy of it for that.
        """
        return x if self.ok is None else jnp.where(self.ok, x, self[name])
