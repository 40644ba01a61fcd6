"""The step of one leaf as data: its arrays, and the static description of its program."""

from typing import NamedTuple

import jax
from jax.sharding import NamedSharding

from adam_jax._types import DType, Leaf, PyTree, Scalars
from adam_jax.engine.plan import Plan
from adam_jax.engine.unrounded import Pending
from adam_jax.formats.base import Format
from adam_jax.formats.rounding import Split, SteppedWeights
from adam_jax.rules.base import Average, Rule


class LeafArrays(NamedTuple):
    """The arrays of one leaf.

    Attributes:
      g: the gradient.
      pending: the operations to apply to it first.
      stored: per rule, the stored forms of its slots.
      param: the parameter, or a `Split`; None if no rule reads it and it is not updated here.
      salt: of the leaf and the step, for formats that round stochastically; None otherwise.
    """

    g: Leaf
    pending: Pending
    stored: tuple[tuple[Leaf, ...], ...]
    param: Leaf
    salt: PyTree

    def of_layer(self, number: jax.Array) -> "LeafArrays":
        """The same with the random bits of the leaf that comes `number` (uint32) leaves later."""
        split = isinstance(self.param, Split)
        return self._replace(
            param=self.param.of_layer(number) if split else self.param,
            salt=None if self.salt is None else self.salt.of_layer(number),
        )


class Program(NamedTuple):
    """The static part of the program of a leaf, besides its arrays and rules.

    Attributes:
      formats: per rule, one format per slot.
      dtype: of the result, where the update is rounded for the only time; a `Split` has its own.
      apply: return the new parameter, θ + u, instead of the update u.
      plan: how a kernel traverses the leaf, or as a string the reason why none does.
      parts: how a kernel traverses each device's part of the leaf, and the sharding; None if none
        does, or if the sharding is unknown.
      layers: the number of layer axes; each layer counts as a tensor.
      stride: the distance in leaves to the next layer, for its random bits.
    """

    formats: tuple[tuple[Format, ...], ...]
    dtype: DType
    apply: bool
    plan: Plan | str
    parts: tuple[Plan, NamedSharding] | None = None
    layers: int = 0
    stride: int = 0


Steps = tuple[tuple[Rule, Scalars], ...]
"""The rules that a leaf runs, in order, each with its scalars of this optimizer step."""

Reduced = dict[int, Scalars]
"""The result of `Rule.of_leaf` of each rule that `reduces`, by its index."""


class Ruled(NamedTuple):
    """The rules' results for one leaf, before anything is stored.

    Attributes:
      result: the update or the new parameter.
      slots: per rule, the new accumulators.
      averages: of these, the declared averages, uncomputed; None for others.
      reduced: the scalars that rules made of the leaf.
    """

    result: jax.Array
    slots: tuple[tuple[jax.Array, ...], ...]
    averages: tuple[tuple[Average | None, ...], ...]
    reduced: Reduced


Stepped = tuple[jax.Array | SteppedWeights, tuple[tuple[Leaf, ...], ...]]
"""The update or the new parameter, and the new stored slots."""


class LeafGroup(NamedTuple):
    """Leaves that share a program.

    Attributes:
      program: the static description of the step.
      steps: the pipeline of rules that it runs, and which of its rules.
      leaves: their arrays.
    """

    program: Program
    steps: tuple[int, tuple[int, ...]]
    leaves: list[LeafArrays]
