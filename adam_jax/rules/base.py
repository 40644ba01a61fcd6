"""What happens to one float32 array in one optimizer step: the rule, and the slots it keeps.

The arithmetic of every member is written once, in this folder, in float32 (float64 for float64
leaves), and knows nothing about pytrees, storage, masks or where the step count lives.
"""

import abc
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
from jax import Array

from adam_jax._types import Count, Leaf, Number, PyTree, Scalars
from adam_jax.rules.arithmetic import DecayRate


class Average(NamedTuple):
    """The average of what a slot holds and a new term.

    Said, and not computed, by `Rule.renewed`: a format that stores averages of arrays as averages
    of something smaller never forms the array.

    Attributes:
      rate: of the average.
      term: the new term, an array like the leaf.
    """

    rate: DecayRate
    term: Array


Renewed: TypeAlias = Array | Average
"""What a slot becomes in a step: an array, or said to be an average."""

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

    def renewed(self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Renewed:
        """One accumulator after this step; a rule without slots is not asked.

        Args:
          slot: its name.
          g: the gradient, or what the rule before this one made of it; `bounded`.
          old: all accumulators as the last step left them.
          new: those before this one, in the order of `slots`, as they will be stored.
          scalars: what `scalars` returned, in the leaf's dtype.
        """
        raise KeyError(slot)

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


class MemberRule(Rule):
    """The rule of a member of the family: what modifiers and telemetry ask of it."""

    @abc.abstractmethod
    def normalised(self, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Array:
        """The gradient divided as the update divides its average."""

    @abc.abstractmethod
    def eps_dominates(self, new: Slots, scalars: Scalars) -> Array | None:
        """Where √nû ≤ ε; None for a rule that does not divide an average by √nû + ε."""


class IrregularRule(MemberRule):
    """The rule of a member without a second moment of the gradient itself."""

    def normalised(self, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Array:
        """The update."""
        return self.update(g, old, new, scalars, None)

    def eps_dominates(self, new: Slots, scalars: Scalars) -> None:
        """None: it divides no average by √nû + ε."""
        return None


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
      momentum_decay: ψ of NAdam's schedule of momenta; None without one.
    """

    slots: PyTree
    averaged: bool = False
    momentum_decay: Number = None

    @abc.abstractmethod
    def scalars(self, count: Count) -> Scalars:
        """The scalars of this optimizer step; see `Rule.scalars`."""

    def renewed(self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Renewed:
        """One accumulator after this step; see `Rule.renewed`.

        `new` holds the first moment's too, for the second.
        """
        raise KeyError(slot)

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
