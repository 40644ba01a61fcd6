"""Decay rates of averages, and their products: constant, set during a run, or scheduled.

An average that starts at zero has weights of sum 1 - Π, where Π is the product of the decay rates
of all its steps, bᵗ if b is constant. Kingma & Ba (2015, section 3) divide by that sum.
"""

import dataclasses
import math
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeAlias, cast

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import Array

from adam_jax._types import Count, Number, PyTree, State
from adam_jax.numerics import exact, next_count, safe_log
from adam_jax.pytrees import Label, exported, frozen_pytree, static
from adam_jax.validation import IN_FLOAT32, check_number, check_scalar, same_kind

Schedule = Callable[[Array], jax.typing.ArrayLike]


@exported
class Past(NamedTuple):
    """The decay rates of the steps so far: log Π is (t - since)·log + before + rest.

    A state without a past, as one from Optax, is taken to have had the rate of the next step.

    Attributes:
      log: that of the last rate; 1 if there is no past.
      since: the optimizer steps completed when that rate was set.
      before: the sum of the logarithms of the rates of those steps.
      rest: the rounding error of that sum.
    """

    log: Array
    since: Array
    before: Array
    rest: Array

    @classmethod
    def none(cls) -> "Past":
        """That of a state before its first step."""
        log, before, rest = (jnp.asarray(x, jnp.result_type(float)) for x in (1, 0, 0))
        return cls(log, jnp.zeros([], jnp.int32), before, rest)

    def followed(self, log: Array, count: Count) -> "Past":
        """The past of the step after `count`, whose rate has this logarithm.

        It has the same result for the same count, so a step that is not taken may repeat it.
        """
        return _followed(self, log, count)


@jax.jit
def _followed(past: Past, log: Array, count: Count) -> Past:
    log = jnp.asarray(log, past.log.dtype)
    starts, changes = past.log > 0, past.log != log
    steps = jnp.asarray(count - past.since, log.dtype)
    added = jnp.where(changes & ~starts, exact(steps * past.log), 0)
    # The sum and its rounding error, exactly: Knuth, The Art of Computer Programming, 4.2.2.
    total = past.before + added
    moved = total - past.before
    rest = past.rest + ((past.before - (total - moved)) + (added - moved))
    since = jnp.where(starts, 0, jnp.where(changes, count, past.since))
    return Past(log, since, total, rest)


@frozen_pytree
class DecayRate:
    """The decay rate b of an exponential moving average, as the two numbers that arithmetic needs.

    float32(0.999) and 1 - float32(0.999) have relative errors of 1e-8 and 1e-5. Rounding destroys a
    rate near one, but not its complement and its logarithm. Both are computed here from the Python
    number, in float64, and only then rounded. This also holds when the rate becomes a traced
    argument, because the pytree's leaves are these two numbers, not b.

    Attributes:
      complement: 1 - b.
      log: log b; for b = 0 that of the smallest number, of which the powers are 0 as well.
      mostly_old: b ≥ 0.5, which selects the form of `average`; None for a rate that is traced when
        the transformation is built, which needs both forms.
      name: of the argument, for `repr`.
      past: the rates of the steps before; None for a constant rate.
      following: the rate of the next step, for members that look ahead; None for the same.
    """

    complement: Number
    log: Number
    mostly_old: bool | None = static(default=None)
    name: Label = static(default=Label())
    past: Past | None = None
    following: "DecayRate | None" = None

    @classmethod
    def of(cls, argument: str, b: Number, closed: bool = False) -> "DecayRate":
        """Checks 0 ≤ b < 1 and splits b; `closed` allows 1, for an average read without bias
        correction.

        A traced rate is split after rounding: float32(0.999) adds a relative error of 1.3e-5 to
        every increment. Trace the transformation instead, or pass a rate that is already split, as
        `with_hyperparams` does. A concrete array is split in float64, into two arrays.
        """
        if isinstance(b, cls):
            return b
        instead = "usual rates are 0.9 to 0.9999"
        if getattr(b, "dtype", None) in (jnp.bfloat16, np.float16):
            instead = f"{b.dtype.name} rounds rates near 1 to 1; {IN_FLOAT32}"
            if isinstance(b, jax.core.Tracer):
                message = f"{argument} must be below 1, and is read as such: {instead}."
                warnings.warn(message, stacklevel=3)
                # The middle of what rounds to 1. Optax's own tests trace such rates.
                b = jnp.minimum(b.astype(np.float32), 1 - float(jnp.finfo(b.dtype).epsneg) / 4)
        b = check_number(argument, b, 0.0, 1.0, closed=closed, instead=instead)
        if isinstance(b, jax.core.Tracer):
            return cls.of_array(b)
        exact = float(b)
        parts = 1.0 - exact, math.log(max(exact, sys.float_info.min))
        complement, log = (same_kind(part, b) for part in parts)
        return cls(complement, log, exact >= 0.5, Label(argument))

    @classmethod
    def of_array(cls, b: Array, mostly_old: bool | None = None) -> "DecayRate":
        """Splits a rate that is already rounded."""
        return cls(1 - b, safe_log(b), mostly_old)

    def average(self, old: Array, new: Array) -> Array:
        """One step of the average: old + (1-b)(new - old), or for b < 0.5 new + b(old - new).

        b·old + (1-b)·new is mathematically equal, but its two weights do not add to one in float32.
        An average of varying terms is then off by 6e-6 (b = 0.999). Both forms stop moving when an
        increment is below half an ulp of `old`: 3e-5 short of a constant term, for b = 0.999. The
        second form returns `new` for b = 0; old + (new - old) does not.
        """
        if self.mostly_old is None:
            mostly_old = self.complement <= 0.5
            forms = (DecayRate(self.complement, self.log, form) for form in (True, False))
            return jnp.where(mostly_old, *(rate.average(old, new) for rate in forms))
        if self.mostly_old:
            return old + self.complement * (new - old)
        return new + (1 - self.complement) * (old - new)

    def correction(self, count: Count, ahead: int = 0, log_factor: Number = 0.0) -> Array:
        """1 - c·Π of t = count + 1 + ahead steps; log_factor is log c, for the momenta of NAdam.

        With c = 1 it is the sum of the weights in an average of t terms that started at zero. It is
        computed as -expm1(log Π): 1 - b**t loses five digits to cancellation in the first steps.
        """
        t, before = self._product(count)
        if ahead and self.following is not None:
            ahead, before = 0, before + self.following.log
        return _one_minus_power(t + ahead, self.complement, self.log, before + log_factor)

    def log_product(self, count: Count) -> Array:
        """log Π."""
        t, before = self._product(count)
        return t * self.log + before

    def _product(self, count: Count) -> tuple[Array, Number]:
        """Π as bᵗ·exp(before)."""
        # As the state's next count: XLA:GPU copies a donated count that others read too.
        t = jnp.asarray(next_count(count), jnp.result_type(float))
        if self.past is None:
            return t, 0.0
        return t - jnp.asarray(self.past.since, t.dtype), self.past.before + self.past.rest

    def debiasing(self, count: Count) -> Array:
        """1 / (1 - Π), the factor that corrects such an average.

        A factor, not a divisor: XLA converts division to multiplication in some programs, so the
        same leaf would get different bits alone and beside another leaf.
        """
        return 1 / self.correction(count)

    def moved(self, count: Count) -> "DecayRate":
        """The rate of the step after `count`, with the past that leads to it."""
        past = self.past and self.past.followed(self.log, count)
        return dataclasses.replace(self, past=past)


@jax.custom_jvp
def _one_minus_power(t: Array, complement: Number, log: Number, log_factor: Number) -> Array:
    """1 - c·bᵗ, differentiable in b through the complement alone, also where b = 0.

    There the derivative through log b is infinite; the correct one at t = 1 is -c.
    """
    del complement
    return -jnp.expm1(t * log + log_factor)


@_one_minus_power.defjvp
def _one_minus_power_jvp(primals: PyTree, tangents: PyTree) -> tuple[Array, Array]:
    t, complement, log, log_factor = primals
    _, d_complement, _, d_log_factor = tangents
    result = _one_minus_power(t, complement, log, log_factor)
    # b^(t-1), which is 1 at t = 1 even for b = 0: no 0·∞.
    power = jnp.exp((t - 1) * jnp.maximum(log, jnp.finfo(t.dtype).min) + log_factor)
    return result, t * power * d_complement - (1 - result) * d_log_factor


DecayRateLike: TypeAlias = Annotated[jax.typing.ArrayLike, DecayRate]
"""The type of an argument that becomes a `DecayRate`; `with_hyperparams` identifies them by it."""


@frozen_pytree
class ScheduledRate:
    """A decay rate that is a function of the completed optimizer steps: a `DecayRate` in each step.

    Attributes:
      schedule: the function.
      name: of the argument.
      corrected: an average is read with bias correction by it, so that the state keeps its past.
    """

    complement = None  # Unknown while the transformation is built.

    schedule: Schedule = static()
    name: Label = static()
    corrected: bool = static(default=True)

    def at(self, count: Count, past: Past | None) -> DecayRate:
        """The rate of the step after `count`."""
        name, instead = f"the schedule of {self.name}", "return one number from 0 to 1"
        now, following = (
            check_scalar(name, self.schedule(t), instead=instead) for t in (count, count + 1)
        )
        closed = not self.corrected
        check_number(f"the result of {name}", now, 0.0, 1.0, closed=closed, instead=instead)
        dtype = jnp.result_type(float)
        # A traced number is not checked, and 1 - 1 would divide by zero.
        largest = 1.0 - float(jnp.finfo(dtype).epsneg) * self.corrected
        now, following = (
            DecayRate.of_array(jnp.minimum(jnp.asarray(b, dtype), largest))
            for b in (now, following)
        )
        changed = dataclasses.replace(now, name=self.name, past=past, following=following)
        return changed.moved(count)


def decay_rate(argument: str, b: Number, closed: bool = False) -> Any:
    """A decay rate as the user writes it, checked as by `DecayRate.of`: a number or a schedule."""
    if callable(b):
        return ScheduledRate(cast(Schedule, b), Label(argument), not closed)
    return DecayRate.of(argument, b, closed)


class ScheduledRatesState(NamedTuple):
    """State of a transformation that corrects averages whose decay rates are schedules.

    Attributes:
      past: the rates so far, that of b2 under `past_b2`.
      inner_state: the state of the same transformation with constant rates.
    """

    past: dict[str, Past]
    inner_state: State


def past_key(name: str) -> str:
    """The key of a rate's past; the rate's own name is that of a number."""
    return f"past_{name}"


def scheduled_rates(tree: PyTree) -> dict[ScheduledRate, str]:
    """The different schedules in rules, with the key of each one's past; "" if none is kept."""
    keys: dict[ScheduledRate, str] = {}
    for x in jax.tree.leaves(tree, is_leaf=_is_scheduled):
        if _is_scheduled(x) and x not in keys:
            name, taken = past_key(x.name), set(keys.values())
            others = (f"{name}_{i}" for i in range(1, len(taken) + 1))
            key = next(key for key in (name, *others) if key not in taken)
            keys[x] = key if x.corrected else ""
    return keys


def with_rates(
    tree: PyTree, schedules: dict[ScheduledRate, str], past: dict[str, Past], count: Count
) -> tuple[PyTree, dict[str, Past]]:
    """Rules with the rates of the step after `count`, and the past with that step."""
    if not schedules:
        return tree, past
    rates = {x: x.at(count, past.get(key)) for x, key in schedules.items()}
    made = jax.tree.map(lambda x: rates[x] if _is_scheduled(x) else x, tree, is_leaf=_is_scheduled)
    return made, {key: cast(Past, rates[x].past) for x, key in schedules.items() if key}


def moved(tree: PyTree, count: Count) -> tuple[PyTree, dict[str, Past]]:
    """Rules whose rates have the past of the steps before, with this step; and that past."""
    past: dict[str, Past] = {}

    def of_step(x: Any) -> Any:
        if not isinstance(x, DecayRate) or x.past is None:
            return x
        rate = x.moved(count)
        past[past_key(x.name)] = cast(Past, rate.past)
        return rate

    return jax.tree.map(of_step, tree, is_leaf=lambda x: isinstance(x, DecayRate)), past


def _is_scheduled(x: Any) -> bool:
    return isinstance(x, ScheduledRate)
