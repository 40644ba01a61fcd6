"""One array in one optimizer step: what a rule keeps, its numbers of the step, its update.

A rule reads like the paper. It is written once, in float32 (float64 for float64 leaves), and knows
nothing of pytrees, storage, masks, skipped steps or kernels: `View` hides them.
"""

import abc
import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from adam_jax._types import Count, Leaf, PyTree
from adam_jax.numerics import bounded, exact, select, summed
from adam_jax.pytrees import frozen_pytree
from adam_jax.rates import DecayRate
from adam_jax.slots import Slot

T = TypeVar("T")


class View:
    """What a rule sees of one leaf in one step. It keeps the slots that the rule renews.

    Attributes:
      g: the gradient, or the update of the rule before; `bounded` for a rule with slots.
      g_is_product: whether g may be a product, which XLA contracts with a sum; see `exact`.
      param: the parameter; None unless the rule `needs_params`.
      old: the slots before the step, in the dtype of arithmetic.
      new: the slots renewed so far, not yet rounded for storage.
      averages: rate and term of each slot that is an average.
      sums: the sums and means that the rule asked for.
    """

    def __init__(
        self,
        rule: "Rule",
        u: Array,
        is_product: bool,
        param: Leaf,
        stored: Sequence[Any],
        formats: Sequence[Any],
        taken: Array | None,
        sums: Iterator[Array] | None,
        bound: bool,
    ) -> None:
        self.g = bounded(u, is_squared=rule.squares) if rule.slots and bound else u
        self.g_is_product, self.param = is_product, param
        self.old: dict[str, Array] = {}
        self.new: dict[str, Array] = {}
        self.averages: dict[str, tuple[DecayRate, Array]] = {}
        self.sums: list[Array] = []
        self._u, self._taken, self._known_sums = u, taken, sums
        self._formats = {slot.name: fmt for slot, fmt in zip(rule.slots, formats, strict=True)}
        real = jnp.finfo(u.dtype).dtype
        for slot, fmt, x in zip(rule.slots, formats, stored, strict=True):
            decode = fmt.means if fmt.keeps_means else fmt.decode
            self.old[slot.name] = decode(x, real if slot.magnitude else u.dtype)
        # An infinite gradient stays visible in one slot, preferably the divisor of the update;
        # elsewhere it is clipped. XLA:CPU would store a select that several loops share.
        magnitudes = [slot.name for slot in rule.slots if slot.magnitude]
        self._shows_infinity = next(iter([*magnitudes, *self.old]), None)

    def average(self, slot: str, rate: DecayRate, term: Array) -> Array:
        """Averages a slot with a new term; returns it, not yet rounded for storage."""
        self.averages[slot] = rate, term
        old, fmt = self.old[slot], self._formats[slot]
        if fmt.keeps_means:  # Reduced first: no elementwise average is made.
            return self._renewed(slot, rate.average(old, fmt.means_of(self._shown(slot, term))))
        x = rate.average(old, term)
        # XLA:CPU computes an average once for its codes and once for the update, in two ways.
        return self._renewed(slot, self._shown(slot, exact(x) if fmt.rounds else x))

    def renew(self, slot: str, x: Array) -> Array:
        """Replaces a slot; returns it, not yet rounded for storage."""
        x, fmt = self._shown(slot, x), self._formats[slot]
        return self._renewed(slot, fmt.means_of(x) if fmt.keeps_means else x)

    def _shown(self, slot: str, x: Array) -> Array:
        # A number per leaf, such as a norm, has become infinite itself.
        shows = slot == self._shows_infinity and x.shape == self._u.shape
        return jnp.where(jnp.isfinite(self._u), x, jnp.nan) if shows else x

    def _renewed(self, slot: str, x: Array) -> Array:
        # The update reads this selected value, not x. Otherwise XLA:CPU would compute the parameter
        # from the old slot again, and keep a copy of it for that.
        self.new[slot] = select(self._taken, x, self.old[slot])
        return self.new[slot]

    def sum(self, x: Array) -> Array:
        """The sum of x over the leaf, or over one layer of a stacked leaf; True counts as 1.

        Only for a rule that `reads_sums`. A kernel, which sees only a tile of the leaf, gets sums
        and means from XLA, in the order in which the rule asks for them.
        """
        return self._of_leaf(lambda: self._sum(x))

    def mean(self, x: Array) -> Array:
        """The mean of x; see `sum`."""
        return self._of_leaf(lambda: self._sum(x) / max(x.size, 1))

    def _sum(self, x: Array) -> Array:
        real = jnp.finfo(self._u.dtype).dtype
        return jnp.sum(x, dtype=real) if x.dtype == jnp.bool_ else summed(x)

    def _of_leaf(self, compute: Callable[[], Array]) -> Array:
        """A number of the whole leaf: one that is known, for a tile, or computed."""
        x = compute() if self._known_sums is None else next(self._known_sums)
        self.sums.append(x)
        return x

    def with_gradient(self, g: Array) -> "View":
        """The same leaf with another gradient, for a rule around another rule."""
        view = copy.copy(self)
        view.g = g
        return view


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
