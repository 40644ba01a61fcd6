"""One array in one optimizer step: what a rule keeps, its numbers of the step, its update.

A rule reads like the paper. It is written once, in float32 (float64 for float64 leaves), and knows
nothing of pytrees, storage, masks, skipped steps or kernels: `View` hides them.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax
from jax import Array

from adam_jax._types import Count, Leaf, PyTree
from adam_jax.pytrees import frozen_pytree
from adam_jax.rates import DecayRate
from adam_jax.slots import Slot

T = TypeVar("T")


class View(Protocol):
    """What a rule sees of one leaf in one step. It keeps the slots that the rule renews.

    Attributes:
      g: the gradient, or the update of the rule before; `bounded` for a rule with slots.
      g_is_product: whether g may be a product, which XLA contracts with a sum; see `exact`.
      param: the parameter; None unless the rule `needs_params`.
      old: the slots before the step, in the dtype of arithmetic.
      new: the slots renewed so far, not yet rounded for storage.
    """

    g: Array
    g_is_product: bool
    param: Leaf
    old: dict[str, Array]
    new: dict[str, Array]

    def average(self, slot: str, rate: DecayRate, term: Array) -> Array:
        """Averages a slot with a new term; returns it, not yet rounded for storage."""
        ...

    def renew(self, slot: str, x: Array) -> Array:
        """Replaces a slot; returns it, not yet rounded for storage."""
        ...

    def sum(self, x: Array) -> Array:
        """The sum of x over the leaf, or over one layer of a stacked leaf; True counts as 1.

        Only for a rule that `reads_sums`. A kernel, which sees only a tile of the leaf, gets sums
        and means from XLA, in the order in which the rule asks for them.
        """
        ...

    def mean(self, x: Array) -> Array:
        """The mean of x; see `sum`."""
        ...

    def with_gradient(self, g: Array) -> "View":
        """The same leaf with another gradient, for a rule around another rule."""
        ...


class Rule(abc.ABC):
    """How the gradient of one leaf, or the result of the rule before it, becomes an update.

    A rule is a `frozen_pytree`: its numbers are leaves, so changing one does not retrace.
    Everything that shapes the program (a flag, the side of 0.5 that a decay rate is on) is static.
    Its numbers of a step, such as bias corrections, are fields that its method `at` sets; see `at`.

    Attributes:
      slots: the accumulators that it keeps, in the order of the state's fields.
      elementwise: each element is updated by itself, given the sums of the leaf. A rule must
        declare it; otherwise no kernel steps the leaf.
      squares: it computes |g|², so that its gradient is `bounded` more tightly.
      reads_sums: it calls `View.sum`.
      needs_params: it reads `View.param`.
      ends_in_product: its update may be a product; only for speed may a rule deny it.
    """

    slots: PyTree = ()
    elementwise: bool = False
    squares: bool = True
    reads_sums: bool = False
    needs_params: bool = False
    ends_in_product: bool = True

    @abc.abstractmethod
    def update(self, leaf: View) -> Array:
        """The update. `leaf.average` and `leaf.renew` renew each slot once."""


class MemberRule(Rule):
    """The rule of a member of the family, around which modifiers can be put."""

    @abc.abstractmethod
    def normalised(self, leaf: View, u: Array) -> Array:
        """After `update` has returned u: the gradient, divided as the average is in u."""


class IrregularRule(MemberRule):
    """The rule of a member without a second moment of the gradient itself."""

    def normalised(self, leaf: View, u: Array) -> Array:
        """u itself."""
        return u


@frozen_pytree
class Modifier(MemberRule):
    """A member's rule with a different update."""

    inner: MemberRule

    @property
    def slots(self) -> tuple[Slot, ...]:
        return self.inner.slots

    @property
    def elementwise(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.elementwise

    @property
    def squares(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.squares

    @property
    def needs_params(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.needs_params

    def normalised(self, leaf: View, u: Array) -> Array:
        return self.inner.normalised(leaf, u)


def with_parts(x: T, change: Callable[[Any], Any]) -> T:
    """A rule, or a moment, direction or hyperparameter in it, changed from the inside out."""
    if not dataclasses.is_dataclass(x):
        return x
    names = [f.name for f in dataclasses.fields(x) if not f.metadata.get("static")]
    parts = {name: getattr(x, name) for name in names}
    changed = {name: with_parts(part, change) for name, part in parts.items()}
    if any(changed[name] is not part for name, part in parts.items()):
        x = dataclasses.replace(x, **changed)  # pyright: ignore[reportArgumentType]
    return change(x)


def at(x: Any, count: Count) -> Any:
    """A rule with the numbers of one step, which its parts set in their method `at(count)`.

    The numbers are computed once for all leaves. XLA folds an expression of constants when it
    compiles, with other bits than for traced numbers: make it depend on the count.

    Args:
      x: a rule or a part of one.
      count: int32 scalar, the number of completed optimizer steps (t - 1 in papers); None if the
        state has no count.
    """
    return with_parts(x, lambda part: part.at(count) if hasattr(part, "at") else part)


def rules_in(tree: PyTree) -> list[Rule]:
    """All rules in a pytree, such as a transformation."""
    found = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Rule))
    return [x for x in found if isinstance(x, Rule)]
