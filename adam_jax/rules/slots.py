"""The accumulators of a rule: what they hold for one leaf."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adam_jax.slots import Slot as Slot


class Averaged(NamedTuple):
    """An accumulator's step: `result` is the `average` of what it was and the `term`."""

    average: Callable[[Any, Any], Any]
    term: jax.Array
    result: jax.Array


class Slots(dict[str, jax.Array]):
    """The accumulators of one leaf, as the last step left them.

    Attributes:
      ok: boolean scalar; where it is false they stay as they are. None for true.
      watch: an accumulator that becomes NaN where the gradient is infinite, and where it is not.
      averaged: how those that became an `average` did, for formats that can do without it.
    """

    def __init__(
        self,
        old: Mapping[str, jax.Array],
        ok: jax.Array | None = None,
        watch: tuple[str, jax.Array] | None = None,
    ) -> None:
        super().__init__(old)
        self.ok, self.watch = ok, watch
        self.averaged: dict[str, Averaged] = {}

    def renew(self, name: str, x: jax.Array) -> jax.Array:
        """What an accumulator is from now on: what rules store, and go on with.

        The update must be made of this and not of x: XLA:CPU would compute the parameter from the
        old accumulator a second time, and keep a copy of it for that.
        """
        if self.watch is not None and self.watch[0] == name:
            x = jnp.where(self.watch[1], x, jnp.nan)
        return x if self.ok is None else jnp.where(self.ok, x, self[name])

    def average(self, name: str, rate: Any, term: jax.Array) -> jax.Array:
        """`renew`, by an average of what it is and another term; `rate` is a `DecayRate`."""
        x = self.renew(name, rate.average(self[name], term))
        self.averaged[name] = Averaged(rate.average, term, x)
        return x
