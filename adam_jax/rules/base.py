"""What happens to one float32 array in one optimizer step: the rule, and the slots it keeps.

The arithmetic of every member of the family is written here once, in float32 (float64 for float64
leaves), and knows nothing about pytrees, storage, masks or where the step count lives. Three known
algorithms come out of it like this:

* Adam is `MomentRule(Ema(b1), EmaOfSquares(b2), Root(eps))`: two running statistics, read with
  their bias corrected, and a direction made of the two (Kingma & Ba 2015, algorithm 1).
* AMSGrad is the same with `RunningMax(EmaOfSquares(b2))` as the second statistic.
* Decoupled weight decay and the learning rate are rules without slots: they turn one array into
  another. AdamW is therefore the three in a row, on one leaf, in one pass.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.core
import jax.numpy as jnp

from adam_jax.rules.pytrees import frozen_pytree, static
from adam_jax.slots import Slot
from adam_jax.validation import check_number, same_kind


class Average(NamedTuple):
    """What a slot becomes: the average of what it holds and a new term.

    Said, and not computed, by `Rule.renewed`: a format that stores averages of arrays as averages
    of something smaller never forms the array.

    Attributes:
      rate: of the average.
      term: the new term, an array like the leaf.
    """

    rate: "DecayRate"
    term: jax.Array


Slots: TypeAlias = Mapping[str, jax.Array]
"""The accumulators of one leaf by name, in the dtype of arithmetic."""


class Rule(abc.ABC):
    """How one float32 array of updates becomes another, and what is remembered for the next step.

    A rule is a `frozen_pytree`: its numbers are leaves, so that changing one does not retrace; what
    shapes the program (a flag, a schedule, the side of 0.5 that a decay rate is on) is static. Its
    methods are pure functions of arrays.

    Attributes:
      slots: a tuple of `Slot`: the accumulators, in the order of the state's fields.
      elementwise: each element is treated by itself, so that leaves may share a buffer; else the
        whole leaf is looked at.
      needs_params: `update` reads the parameter.
      decays: it makes weights decay, and nothing else.
    """

    slots: Any = ()
    elementwise: bool = True
    needs_params: bool = False
    decays: bool = False

    @abc.abstractmethod
    def scalars(self, count: Any) -> Any:
        """The scalars of this optimizer step, computed once and shared by all leaves.

        Args:
          count: int32 scalar, the optimizer steps completed before this one (t - 1 in papers);
            None where the state has no count.
        """

    @abc.abstractmethod
    def renewed(
        self, slot: str, g: jax.Array, old: Slots, new: Slots, scalars: Any
    ) -> jax.Array | Average:
        """One accumulator after this step.

        Args:
          slot: its name.
          g: the gradient, or what the rule before this one made of it; `bounded`.
          old: all accumulators as the last step left them.
          new: those before this one, in the order of `slots`, as they will be stored.
          scalars: what `scalars` returned, in the leaf's dtype.
        """

    @abc.abstractmethod
    def update(
        self, g: jax.Array, old: Slots, new: Slots, scalars: Any, param: jax.Array | None
    ) -> jax.Array:
        """The update of one leaf, from all accumulators as they will be stored.

        Args:
          g: as for `renewed`; as it is if there are no slots.
          old: likewise.
          new: all accumulators.
          scalars: likewise.
          param: the parameter; None unless `needs_params`.
        """


class StatelessRule(Rule):
    """A rule that remembers nothing."""

    def renewed(
        self, slot: str, g: jax.Array, old: Slots, new: Slots, scalars: Any
    ) -> jax.Array | Average:
        """Never called: there are no slots."""
        raise KeyError(slot)


class MemberRule(Rule):
    """The rule of a member of the family, which modifiers may ask for another one.

    One that has no answer refuses: the error says which member it is.
    """

    @abc.abstractmethod
    def normalised(self, g: jax.Array, old: Slots, new: Slots, scalars: Any) -> jax.Array:
        """The gradient divided as the update divides its average.

        Of a rule that has no second moment of the gradient itself, the update.
        """

    @abc.abstractmethod
    def eps_dominates(self, new: Slots, scalars: Any) -> jax.Array | None:
        """Where √nû ≤ ε; None for a rule that does not divide an average by √nû + ε."""

    def with_direction(self, make: "Callable[[bool], Direction]") -> "MemberRule":
        """The same accumulators, divided in another way, and without any ε.

        Args:
          make: from whether the second moment is a square to the direction.
        """
        raise ValueError(f"tx must divide by a root, and {type(self).__name__} does not.")

    def looking_ahead(self) -> "MemberRule":
        """The same accumulators, the average of the gradient read one step ahead."""
        raise ValueError(_reads_otherwise(self))


def rules_in(tree: Any) -> "list[Rule]":
    """All rules in a pytree, such as a transformation."""
    found = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Rule))
    return [x for x in found if isinstance(x, Rule)]


def member_rules_in(tree: Any) -> "list[MemberRule]":
    """Those of members, with what modifiers put around them."""
    return [rule for rule in rules_in(tree) if isinstance(rule, MemberRule)]


def _reads_otherwise(x: Any) -> str:
    return (
        f"tx must read a plain average of the gradient, got {type(x).__name__}: this member looks"
        f" ahead already, or in its own way."
    )


@frozen_pytree
class DecayRate:
    """The decay rate b of an exponential moving average, as the two numbers that arithmetic needs.

    float32(0.999) and 1 - float32(0.999) are off by 1e-8 and 1e-5 of their values: a rate near one
    does not survive a rounding, its complement and its logarithm do. Both are computed here from
    the Python number, in float64, and only then rounded. This also holds when the rate becomes a
    traced argument: the pytree's leaves are these two, not b.

    Attributes:
      complement: 1 - b.
      log: log b; minus infinity for b = 0.
      mostly_old: b ≥ 0.5, which picks the form of `average`; None for a rate that is traced when
        the transformation is built, and that pays for both forms.
    """

    complement: Any
    log: Any
    mostly_old: bool | None = static(default=None)

    @classmethod
    def of(cls, argument: str, b: Any, closed: bool = False) -> "DecayRate":
        """Checks 0 ≤ b < 1 and splits it; `closed` allows 1, for an average read as it is.

        A traced rate is split in its own dtype, in which it is rounded already: float32(0.999) puts
        1.3e-5 into every increment, bfloat16(0.999) is one. Trace the transformation instead, or
        pass a rate that is split already, as `with_hyperparams` does. A concrete array is split
        from the float64 of what it holds, into two arrays.
        """
        if isinstance(b, cls):
            return b
        instead = "usual rates are 0.9 to 0.9999"
        b = check_number(argument, b, 0.0, 1.0, closed=closed, instead=instead)
        if isinstance(b, jax.core.Tracer):
            return cls.of_array(b)
        exact = float(b)
        parts = 1.0 - exact, math.log(exact) if exact > 0.0 else -math.inf
        complement, log = (same_kind(part, b) for part in parts)
        return cls(complement, log, exact >= 0.5)

    @classmethod
    def of_array(cls, b: jax.Array, mostly_old: bool | None = None) -> "DecayRate":
        """Splits a rate that is rounded already."""
        return cls(1 - b, safe_log(b), mostly_old)

    def average(self, old: jax.Array, new: jax.Array) -> jax.Array:
        """One step of the average: old + (1-b)(new - old), or for b < 0.5 new + b(old - new).

        b·old + (1-b)·new is the same on paper. In float32 its two weights do not add to one, which
        puts an average of varying terms 6e-6 off (b = 0.999). Both forms stop moving where an
        increment is under half a place of `old`: 3e-5 short of a constant term, for b = 0.999. The
        second form is `new` for b = 0, which old + (new - old) is not.
        """
        if self.mostly_old is None:
            mostly_old = self.complement <= 0.5
            return jnp.where(mostly_old, self._from_old(old, new), self._from_new(old, new))
        return self._from_old(old, new) if self.mostly_old else self._from_new(old, new)

    def _from_old(self, old: jax.Array, new: jax.Array) -> jax.Array:
        return old + self.complement * (new - old)

    def _from_new(self, old: jax.Array, new: jax.Array) -> jax.Array:
        return new + (1 - self.complement) * (old - new)

    def correction(self, count: Any, ahead: int = 0, log_factor: Any = 0.0) -> jax.Array:
        """1 - c·b^t with t = count + 1 + ahead; log_factor is log c, for the momenta of NAdam.

        With c = 1 it is what an average of t terms sums to that started at zero. As
        -expm1(t log b): 1 - b**t loses five digits to cancellation in the first steps.
        """
        # t as a floating-point number: the count saturates at the largest int32, and may not wrap.
        t = jnp.asarray(count, jnp.result_type(float)) + (1 + ahead)
        return _one_minus_power(t, self.complement, self.log, log_factor)

    def debiasing(self, count: Any) -> jax.Array:
        """1 / (1 - b^t), the factor that corrects such an average.

        A factor, and not a divisor: XLA makes one of the other as it likes, so that a leaf alone in
        its tree would get other bits than the same leaf beside another.
        """
        return 1 / self.correction(count)


@jax.custom_jvp
def _one_minus_power(t: jax.Array, complement: Any, log: Any, log_factor: Any) -> jax.Array:
    """1 - c·b^t, differentiable in b through the complement alone, also where b = 0.

    There log b is minus infinity, and by way of it the derivative, which is -c at t = 1, is NaN.
    """
    del complement
    return -jnp.expm1(t * log + log_factor)


@_one_minus_power.defjvp
def _one_minus_power_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    t, complement, log, log_factor = primals
    _, d_complement, _, d_log_factor = tangents
    result = _one_minus_power(t, complement, log, log_factor)
    # b^(t-1), which is 1 at t = 1 for b = 0 too: no 0·∞.
    power = jnp.exp((t - 1) * jnp.maximum(log, jnp.finfo(t.dtype).min) + log_factor)
    return result, t * power * d_complement - (1 - result) * d_log_factor


@jax.custom_jvp
def safe_log(x: jax.Array) -> jax.Array:
    """log x, with the derivative 0 instead of infinity at 0."""
    return jnp.log(x)


@safe_log.defjvp
def _safe_log_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    return safe_log(x), jnp.where(x > 0, dx / jnp.where(x > 0, x, 1), 0)


DecayRateLike: TypeAlias = Annotated[jax.typing.ArrayLike, DecayRate]
"""The type of an argument that becomes a `DecayRate`; `with_hyperparams` finds them by it."""


FixedNumber: TypeAlias = Annotated[float, "fixed"]
"""The type of a number that may not change during a run; `with_hyperparams` leaves it alone."""


class Moment(abc.ABC):
    """How one running statistic is renewed, and how it is read (usually bias-corrected).

    Attributes:
      slots: a tuple of `Slot`: the accumulators of this statistic.
      averaged: it is read as one average.
      statistic: its name, by which conversions know what other libraries keep as well; None for a
        member's own.
      momentum_decay: ψ of NAdam's schedule of momenta; None without one.
    """

    slots: Any
    averaged: bool = False
    statistic: str | None = None
    momentum_decay: Any = None

    @abc.abstractmethod
    def scalars(self, count: Any) -> Any:
        """The scalars of this optimizer step; see `Rule.scalars`."""

    @abc.abstractmethod
    def renewed(
        self, slot: str, g: jax.Array, old: Slots, new: Slots, scalars: Any
    ) -> jax.Array | Average:
        """One accumulator after this step; see `Rule.renewed`.

        `new` holds the first moment's too, for the second.
        """

    @abc.abstractmethod
    def read(self, g: jax.Array, new: Slots, scalars: Any) -> jax.Array:
        """The statistic as it is read in this step."""

    def looking_ahead(self) -> "Moment":
        """The same average read one step ahead; others refuse."""
        raise ValueError(_reads_otherwise(self))


class Direction(abc.ABC):
    """How the two moments, as read, become an update."""

    @abc.abstractmethod
    def scalars(self, count: Any) -> Any:
        """The scalars of this optimizer step; see `Rule.scalars`."""

    @abc.abstractmethod
    def combine(self, first: jax.Array, second: jax.Array, scalars: Any) -> jax.Array:
        """The update of one leaf."""

    @abc.abstractmethod
    def normalised(self, g: jax.Array, second: jax.Array, scalars: Any) -> jax.Array:
        """The gradient divided by what `combine` divides the first moment by."""

    @abc.abstractmethod
    def eps_dominates(self, second: jax.Array, scalars: Any) -> jax.Array | None:
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

    def scalars(self, count: Any) -> Any:
        return self.first.scalars(count), self.second.scalars(count), self.direction.scalars(count)

    def renewed(
        self, slot: str, g: jax.Array, old: Slots, new: Slots, scalars: Any
    ) -> jax.Array | Average:
        if any(own.name == slot for own in self.first.slots):
            return self.first.renewed(slot, g, old, new, scalars[0])
        return self.second.renewed(slot, g, old, new, scalars[1])

    def update(
        self, g: jax.Array, old: Slots, new: Slots, scalars: Any, param: jax.Array | None
    ) -> jax.Array:
        first, second = self.first.read(g, new, scalars[0]), self.second.read(g, new, scalars[1])
        return self.direction.combine(first, second, scalars[2])

    def normalised(self, g: jax.Array, old: Slots, new: Slots, scalars: Any) -> jax.Array:
        return self.direction.normalised(g, self.second.read(g, new, scalars[1]), scalars[2])

    def eps_dominates(self, new: Slots, scalars: Any) -> jax.Array | None:
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


def after_first(count: Any) -> jax.Array:
    """0 in the first optimizer step and 1 in all others, as the arithmetic's number."""
    return jnp.minimum(jnp.asarray(count, jnp.result_type(float)), 1)
