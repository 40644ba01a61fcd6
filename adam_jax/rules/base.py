"""What happens to one float32 array in one optimizer step: the rule, and the slots it keeps.

The arithmetic of every member of the family is written here once, in float32 (float64 for float64
leaves), and knows nothing about pytrees, storage, masks or where the step count lives. Three known
algorithms come out of it like this:

* Adam is `MomentRule(Ema(b1), EmaOfSquares(b2), Root(eps))`: two running statistics, read with
  their bias corrected, and a direction made of the two (Kingma & Ba 2015, algorithm 1).
* AMSGrad is the same with `RunningMax(EmaOfSquares(b2))` as the second statistic.
* Decoupled weight decay and the learning rate are rules without slots: they turn one array into
  another. AdamW is therefore the three one after the other, on one leaf, in one pass.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.core
from jax import Array

from adam_jax._types import Count, Leaf, Number, PyTree, Scalars
from adam_jax.rules.pytrees import frozen_pytree
from adam_jax.rules.rates import DecayRate
from adam_jax.slots import Slot


class Average(NamedTuple):
    """What a slot becomes: the average of what it holds and a new term.

    Said, and not computed, by `Rule.renewed`: a format that stores averages of arrays as averages
    of something smaller never forms the array.

    Attributes:
      rate: of the average.
      term: the new term, an array like the leaf.
    """

    rate: DecayRate
    term: Array


Slots: TypeAlias = Mapping[str, Array]
"""The accumulators of one leaf by name, in the dtype of arithmetic."""


class Rule(abc.ABC):
    """How one float32 array of updates becomes another, and what is remembered for the next step.

    A rule is a `frozen_pytree`: its numbers are leaves, so that changing one does not retrace; what
    shapes the program (a flag, a schedule, the side of 0.5 that a decay rate is on) is static. Its
    methods are pure functions of arrays.

    Attributes:
      slots: a tuple of `Slot`: the accumulators, in the order of the state's fields.
      elementwise: each element is treated by itself, so that leaves may share a buffer. A rule says
        so; else it may look at the whole leaf.
      needs_params: `update` reads the parameter.
    """

    slots: PyTree = ()
    elementwise: bool = False
    needs_params: bool = False

    @abc.abstractmethod
    def scalars(self, count: Count) -> Scalars:
        """The scalars of this optimizer step, computed once and shared by all leaves.

        Args:
          count: int32 scalar, the optimizer steps completed before this one (t - 1 in papers);
            None where the state has no count.
        """

    @abc.abstractmethod
    def renewed(
        self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars
    ) -> Array | Average:
        """One accumulator after this step.

        Args:
          slot: its name.
          g: the gradient, or what the rule before this one made of it; `bounded`.
          old: all accumulators as the last step left them.
          new: those before this one, in the order of `slots`, as they will be stored.
          scalars: what `scalars` returned, in the leaf's dtype.
        """

    @abc.abstractmethod
    def update(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Array:
        """The update of one leaf, from all accumulators as they will be stored.

        Args:
          g: as for `renewed`; as it is if there are no slots.
          old: likewise.
          new: all accumulators.
          scalars: likewise.
          param: the parameter; None unless `needs_params`.
        """

    def with_direction(self, make: "Callable[[bool], Direction]") -> "Rule":
        """The same accumulators, divided in another way, and without any ε.

        Args:
          make: from whether the second moment is a square to the direction.
        """
        raise ValueError(f"tx must divide by a root, and {type(self).__name__} does not.")

    def looking_ahead(self) -> "Rule":
        """The same accumulators, the average of the gradient read one step ahead."""
        raise ValueError(_reads_otherwise(self))

    def cautious_decay(self) -> "Rule":
        """Weight decay where update and parameter point the same way; other rules refuse."""
        raise ValueError(f"{type(self).__name__} does not make weights decay.")


class StatelessRule(Rule):
    """A rule that remembers nothing."""

    def renewed(
        self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars
    ) -> Array | Average:
        """Never called: there are no slots."""
        raise KeyError(slot)


class MemberRule(Rule):
    """The rule of a member of the family: what modifiers and telemetry ask of it."""

    @abc.abstractmethod
    def normalised(self, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Array:
        """The gradient divided as the update divides its average.

        Of a rule that has no second moment of the gradient itself, the update.
        """

    @abc.abstractmethod
    def eps_dominates(self, new: Slots, scalars: Scalars) -> Array | None:
        """Where √nû ≤ ε; None for a rule that does not divide an average by √nû + ε."""


def rules_in(tree: PyTree) -> "list[Rule]":
    """All rules in a pytree, such as a transformation."""
    found = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Rule))
    return [x for x in found if isinstance(x, Rule)]


def member_rules_in(tree: PyTree) -> "list[MemberRule]":
    """Those of members, with what modifiers put around them."""
    return [rule for rule in rules_in(tree) if isinstance(rule, MemberRule)]


def _reads_otherwise(x: Leaf) -> str:
    return (
        f"tx must read a plain average of the gradient, got {type(x).__name__}: this member looks"
        f" ahead already, or in its own way."
    )


class Moment(abc.ABC):
    """How one running statistic is renewed, and how it is read (usually bias-corrected).

    Attributes:
      slots: a tuple of `Slot`: the accumulators of this statistic.
      averaged: it is read as one average.
      statistic: its name, by which conversions know what other libraries keep as well; None for a
        member's own.
      momentum_decay: ψ of NAdam's schedule of momenta; None without one.
    """

    slots: PyTree
    averaged: bool = False
    statistic: str | None = None
    momentum_decay: Number = None

    @abc.abstractmethod
    def scalars(self, count: Count) -> Scalars:
        """The scalars of this optimizer step; see `Rule.scalars`."""

    @abc.abstractmethod
    def renewed(
        self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars
    ) -> Array | Average:
        """One accumulator after this step; see `Rule.renewed`.

        `new` holds the first moment's too, for the second.
        """

    @abc.abstractmethod
    def read(self, g: Array, new: Slots, scalars: Scalars) -> Array:
        """The statistic as it is read in this step."""

    def looking_ahead(self) -> "Moment":
        """The same average read one step ahead; others refuse."""
        raise ValueError(_reads_otherwise(self))


class Direction(abc.ABC):
    """How the two moments, as read, become an update."""

    @abc.abstractmethod
    def scalars(self, count: Count) -> Scalars:
        """The scalars of this optimizer step; see `Rule.scalars`."""

    @abc.abstractmethod
    def combine(self, first: Array, second: Array, scalars: Scalars) -> Array:
        """The update of one leaf."""

    @abc.abstractmethod
    def normalised(self, g: Array, second: Array, scalars: Scalars) -> Array:
        """The gradient divided by what `combine` divides the first moment by."""

    @abc.abstractmethod
    def eps_dominates(self, second: Array, scalars: Scalars) -> Array | None:
        """Where √second ≤ ε; None where no such ε is added to a root."""

    @abc.abstractmethod
    def replaced(self, make: "Callable[[bool], Direction]") -> "Direction":
        """Another direction in the place of this one; see `MemberRule.with_direction`."""


@frozen_pytree
class MomentRule(MemberRule):
    """A member of the regular family, as data: two moments and the direction made of them.

    Attributes:
      first: the running statistic of the gradient.
      second: the running statistic of its magnitude; it may read the first's new slots.
      direction: how the two become an update.
    """

    elementwise = True

    first: Moment
    second: Moment
    direction: Direction

    def __post_init__(self) -> None:
        parts = (self.first, self.second)
        names = [slot.name for part in parts for slot in getattr(part, "slots", ())]
        if len(set(names)) != len(names):
            raise ValueError(
                f"first and second keep slots of one name: {names}; give each its own."
            )

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (*self.first.slots, *self.second.slots)

    def scalars(self, count: Count) -> Scalars:
        return self.first.scalars(count), self.second.scalars(count), self.direction.scalars(count)

    def renewed(
        self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars
    ) -> Array | Average:
        if any(own.name == slot for own in self.first.slots):
            return self.first.renewed(slot, g, old, new, scalars[0])
        return self.second.renewed(slot, g, old, new, scalars[1])

    def update(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Array:
        first, second = self.first.read(g, new, scalars[0]), self.second.read(g, new, scalars[1])
        return self.direction.combine(first, second, scalars[2])

    def normalised(self, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Array:
        return self.direction.normalised(g, self.second.read(g, new, scalars[1]), scalars[2])

    def eps_dominates(self, new: Slots, scalars: Scalars) -> Array | None:
        if not self.second.averaged:
            return None
        (slot,) = self.second.slots
        second = self.second.read(new[slot.name], new, scalars[1])
        return self.direction.eps_dominates(second, scalars[2])

    def with_direction(self, make: Callable[[bool], Direction]) -> "MomentRule":
        second = self.second
        if hasattr(second, "eps"):  # Adamax and AdaBelief have theirs in the accumulator.
            second = dataclasses.replace(second, eps=0.0)  # pyright: ignore[reportArgumentType]
        return MomentRule(self.first, second, self.direction.replaced(make))

    def looking_ahead(self) -> "MomentRule":
        return dataclasses.replace(self, first=self.first.looking_ahead())
