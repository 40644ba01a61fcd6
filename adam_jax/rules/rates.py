"""Decay rates of averages, and the arithmetic of averages."""

import math
from typing import Annotated, TypeAlias

import jax
import jax.core
import jax.numpy as jnp
from jax import Array

from adam_jax._types import Count, Number, PyTree
from adam_jax.rules.pytrees import frozen_pytree, static
from adam_jax.validation import check_number, same_kind


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

    complement: Number
    log: Number
    mostly_old: bool | None = static(default=None)

    @classmethod
    def of(cls, argument: str, b: Number, closed: bool = False) -> "DecayRate":
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
    def of_array(cls, b: Array, mostly_old: bool | None = None) -> "DecayRate":
        """Splits a rate that is rounded already."""
        return cls(1 - b, safe_log(b), mostly_old)

    def average(self, old: Array, new: Array) -> Array:
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

    def _from_old(self, old: Array, new: Array) -> Array:
        return old + self.complement * (new - old)

    def _from_new(self, old: Array, new: Array) -> Array:
        return new + (1 - self.complement) * (old - new)

    def correction(self, count: Count, ahead: int = 0, log_factor: Number = 0.0) -> Array:
        """1 - c·b^t with t = count + 1 + ahead; log_factor is log c, for the momenta of NAdam.

        With c = 1 it is what an average of t terms sums to that started at zero. As
        -expm1(t log b): 1 - b**t loses five digits to cancellation in the first steps.
        """
        # t as a floating-point number: the count saturates at the largest int32, and may not wrap.
        t = jnp.asarray(count, jnp.result_type(float)) + (1 + ahead)
        return _one_minus_power(t, self.complement, self.log, log_factor)

    def debiasing(self, count: Count) -> Array:
        """1 / (1 - b^t), the factor that corrects such an average.

        A factor, and not a divisor: XLA makes one of the other as it likes, so that a leaf alone in
        its tree would get other bits than the same leaf beside another.
        """
        return 1 / self.correction(count)


@jax.custom_jvp
def _one_minus_power(t: Array, complement: Number, log: Number, log_factor: Number) -> Array:
    """1 - c·b^t, differentiable in b through the complement alone, also where b = 0.

    There log b is minus infinity, and by way of it the derivative, which is -c at t = 1, is NaN.
    """
    del complement
    return -jnp.expm1(t * log + log_factor)


@_one_minus_power.defjvp
def _one_minus_power_jvp(primals: PyTree, tangents: PyTree) -> tuple[Array, Array]:
    t, complement, log, log_factor = primals
    _, d_complement, _, d_log_factor = tangents
    result = _one_minus_power(t, complement, log, log_factor)
    # b^(t-1), which is 1 at t = 1 for b = 0 too: no 0·∞.
    power = jnp.exp((t - 1) * jnp.maximum(log, jnp.finfo(t.dtype).min) + log_factor)
    return result, t * power * d_complement - (1 - result) * d_log_factor


@jax.custom_jvp
def safe_log(x: Array) -> Array:
    """log x, with the derivative 0 instead of infinity at 0."""
    return jnp.log(x)


@safe_log.defjvp
def _safe_log_jvp(primals: PyTree, tangents: PyTree) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return safe_log(x), jnp.where(x > 0, dx / jnp.where(x > 0, x, 1), 0)


DecayRateLike: TypeAlias = Annotated[jax.typing.ArrayLike, DecayRate]
"""The type of an argument that becomes a `DecayRate`; `with_hyperparams` finds them by it."""


FixedNumber: TypeAlias = Annotated[float, "fixed"]
"""The type of a number that may not change during a run; `with_hyperparams` leaves it alone."""


def after_first(count: Count) -> Array:
    """0 in the first optimizer step and 1 in all others, as the arithmetic's number."""
    return jnp.minimum(jnp.asarray(count, jnp.result_type(float)), 1)
