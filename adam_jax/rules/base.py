"""One float32 array in one optimizer step: the rule, and the slots it keeps.

The arithmetic of every member is written once, in this folder, in float32 (float64 for float64
leaves). It knows nothing of pytrees, storage, masks or where the step count is kept.
"""

import abc
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
from jax import Array

from adam_jax._types import Count, Leaf, Number, PyTree, Scalars
from adam_jax.rules.arithmetic import DecayRate


class Average(NamedTuple):
    """The average of a slot's value and a new term.

    `Rule.renewed` returns it uncomputed. A format that stores averages of arrays as averages of
    something smaller then never materializes the array.

    Attributes:
      rate: the decay rate of the average.
      term: the new term, an array like the leaf.
    """

    rate: DecayRate
    term: Array


Renewed: TypeAlias = Array | Average
"""The new value of a slot: an array, or a declared average."""

Slots: TypeAlias = Mapping[str, Array]
"""The accumulators of one leaf by name, in the dtype of arithmetic."""


class Rule(abc.ABC):
    """How one float32 array of updates becomes another, and which slots are kept for the next step.

    A rule is a `frozen_pytree`: its numbers are leaves, so changing one does not retrace.
    Everything that shapes the program (a flag, a schedule, the side of 0.5 that a decay rate is on)
    is static. Its methods are pure functions of arrays.

    Attributes:
      slots: a tuple of `Slot`: the accumulators, in the order of the state's fields.
      elementwise: each element is updated independently, given the scalars. A rule must declare it;
        otherwise `update` may read the whole leaf.
      reduces: its scalars are those of `of_leaf`; otherwise all leaves have the same.
      needs_params: `update` reads the parameter.
    """

    slots: PyTree = ()
    elementwise: bool = False
    reduces: bool = False
    needs_params: bool = False

    @abc.abstractmethod
    def scalars(self, count: Count) -> Scalars:
        """The scalars of this optimizer step, computed once and shared by all leaves.

        Args:
          count: int32 scalar, the number of completed optimizer steps (t - 1 in papers); None if
            the state has no count.
        """

    def renewed(self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Renewed:
        """One accumulator after this step; never called for a rule without slots.

        Args:
          slot: its name.
          g: the gradient, or the output of the previous rule; `bounded`.
          old: all accumulators after the previous step.
          new: the accumulators before this one in the order of `slots`, as they will be stored.
          scalars: the result of `scalars`, in the leaf's dtype.
        """
        raise KeyError(slot)

    def of_leaf(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Scalars:
        """The scalars of `update` for one leaf, such as its norm; only for a rule that `reduces`.

        Args:
          g: as for `renewed`, but not bounded if there are no slots.
          old: likewise.
          new: all accumulators.
          scalars: the result of `scalars`, in the leaf's dtype.
          param: the parameter; None unless `needs_params`.
        """
        raise ValueError(f"{type(self).__name__} reads no norm or mean of a leaf.")

    def leaf_scalars(
        self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf
    ) -> Scalars:
        """The scalars of `update`: those of `of_leaf`, or `scalars`."""
        return self.of_leaf(g, old, new, scalars, param) if self.reduces else scalars

    @abc.abstractmethod
    def update(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Array:
        """The update of one leaf, computed from all accumulators as they will be stored.

        Args:
          g: as for `of_leaf`.
          old: likewise.
          new: likewise.
          scalars: the result of `leaf_scalars`.
          param: the parameter; None unless `needs_params`.
        """

    def with_direction(self, make: "Callable[[bool], Direction]") -> "Rule":
        """The same accumulators with another division and no ε.

        Args:
          make: maps "the second moment is a square" to the direction.
        """
        raise ValueError(f"tx must divide by a root, and {type(self).__name__} does not.")

    def looking_ahead(self) -> "Rule":
        """The same accumulators; the average of the gradient is read one step ahead."""
        raise ValueError(_reads_otherwise(self))

    def cautious_decay(self) -> "Rule":
        """Weight decay only where update and parameter have the same sign; other rules refuse."""
        raise ValueError(f"{type(self).__name__} does not decay weights.")


class MemberRule(Rule):
    """The rule of a member of the family, with the method that modifiers use."""

    @abc.abstractmethod
    def normalised(self, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Array:
        """The gradient, divided in the way the update divides its average."""


class IrregularRule(MemberRule):
    """The rule of a member without a second moment of the gradient itself."""

    def normalised(self, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Array:
        """The update."""
        return self.update(g, old, new, scalars, None)


def rules_in(tree: PyTree) -> "list[Rule]":
    """All rules in a pytree, such as a transformation."""
    found = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Rule))
    return [x for x in found if isinstance(x, Rule)]


def _reads_otherwise(x: Leaf) -> str:
    return (
        f"tx must read a plain average of the gradient, got {type(x).__name__}: this member looks"
        f" ahead already, or in its own way."
    )


class Moment(abc.ABC):
    """How one running statistic is updated and read (usually with bias correction).

    Attributes:
      slots: a tuple of `Slot`: the accumulators of this statistic.
      momentum_decay: ψ of NAdam's schedule of momenta; None without one.
    """

    slots: PyTree
    momentum_decay: Number = None

    @abc.abstractmethod
    def scalars(self, count: Count) -> Scalars:
        """The scalars of this optimizer step; see `Rule.scalars`."""

    def renewed(self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Renewed:
        """One accumulator after this step; see `Rule.renewed`.

        For the second moment, `new` also holds the slots of the first.
        """
        raise KeyError(slot)

    @abc.abstractmethod
    def read(self, g: Array, new: Slots, scalars: Scalars) -> Array:
        """The value of the statistic in this step."""

    def looking_ahead(self) -> "Moment":
        """The same average, read one step ahead; other moments refuse."""
        raise ValueError(_reads_otherwise(self))


class Direction(abc.ABC):
    """How an update is computed from the two moments, as read."""

    @abc.abstractmethod
    def scalars(self, count: Count) -> Scalars:
        """The scalars of this optimizer step; see `Rule.scalars`."""

    @abc.abstractmethod
    def combine(self, first: Array, second: Array, scalars: Scalars) -> Array:
        """The update of one leaf."""

    @abc.abstractmethod
    def normalised(self, g: Array, second: Array, scalars: Scalars) -> Array:
        """The gradient divided by the divisor that `combine` applies to the first moment."""

    @abc.abstractmethod
    def replaced(self, make: "Callable[[bool], Direction]") -> "Direction":
        """Another direction instead of this one; see `MemberRule.with_direction`."""
