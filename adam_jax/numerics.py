"""The arithmetic of one array, with the same bits in every program: averages, roots, quotients.

No digits, range or derivatives are lost: complements of decay rates come from float64, bias
corrections from expm1, and derivatives at 0 are 0 instead of infinite.

XLA:CPU, in jax 0.10.2, contracts a product and a sum into a fused multiply-add. In a sum of two
products it picks one of them, depending on the surrounding loop: twelve layers together get other
bits than each layer alone. It may also compute an average twice, with other bits for its codes than
for the update. So a product that is added to something passes through `exact`. Delete `exact` when
tests/numerics/test_exact.py finds the same bits without it.
"""

import functools
import math
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, TypeAlias

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from adam_jax._types import Count, Function, Number, PyTree, Result
from adam_jax.pytrees import Label, frozen_pytree, static
from adam_jax.validation import IN_FLOAT32, check_number, same_kind
from adam_jax.xla.mosaic import in_kernel_or_not, quotient, square_root


def _elementwise(name: str, on_cpu: Function, elsewhere: Function, jvp: Function) -> Function:
    """A function of one array that XLA:CPU gets in one form, and other platforms in another."""
    primitive = Primitive(name)
    primitive.def_impl(elsewhere)  # Single operations are not contracted.
    primitive.def_abstract_eval(lambda x: x)
    ad.defjvp(primitive, jvp)
    batching.defvectorized(primitive)
    for f, platform in ((on_cpu, "cpu"), (elsewhere, None)):
        rule = mlir.lower_fun(f, multiple_results=False)
        mlir.register_lowering(primitive, rule, platform=platform)
    return lambda x: in_kernel_or_not(primitive.bind, elsewhere, x)


# A select between two numbers is not contracted. Not a constant 0: see `own_zero`. Tried without
# effect: barriers, `reduce_precision`, bitcasts; LLVM simplifies a select of |x|.
def _selected(x: Array) -> Array:
    return jax.lax.select(jax.lax.eq(x, jax.lax.full_like(x, 0)), jax.lax.mul(x, x), x)


exact = _elementwise("exact", _selected, lambda x: x, lambda t, x: t)
"""A product that is rounded before it is added: the same numbers, never contracted with a sum."""

# LLVM multiplies a select's constant arm by a constant learning rate. Without AVX-512, it then does
# not contract the sum of that select and the parameter; with a rate as an argument it does.
own_zero = _elementwise(
    "own_zero", lambda x: x, lambda x: jax.lax.full_like(x, 0), lambda t, x: jnp.zeros_like(t)
)
"""0 for the places where x is 0: there x itself on CPUs, and a constant elsewhere."""


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
    """

    complement: Number
    log: Number
    mostly_old: bool | None = static(default=None)
    name: Label = static(default=Label())

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
        """1 - c·bᵗ with t = count + 1 + ahead; log_factor is log c, for the momenta of NAdam.

        With c = 1 it is the sum of the weights in an average of t terms that started at zero. It is
        computed as -expm1(t log b): 1 - b**t loses five digits to cancellation in the first steps.
        """
        # As the state's next count: XLA:GPU copies a donated count that others read too.
        t = jnp.asarray(next_count(count), jnp.result_type(float)) + ahead
        return _one_minus_power(t, self.complement, self.log, log_factor)

    def debiasing(self, count: Count) -> Array:
        """1 / (1 - bᵗ), the factor that corrects such an average.

        A factor, not a divisor: XLA converts division to multiplication in some programs, so the
        same leaf would get different bits alone and beside another leaf.
        """
        return 1 / self.correction(count)


def next_count(count: Count) -> Array:
    """The count plus one; it saturates at the largest integer, as `optax.safe_increment`."""
    largest = np.iinfo(np.int32).max
    return jnp.where(count < largest, count + 1, largest)


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


def after_first(count: Count) -> Array:
    """0 in the first optimizer step and 1 in all others, as a floating-point number."""
    return jnp.minimum(jnp.asarray(count, jnp.result_type(float)), 1)


def squared(g: Array) -> Array:
    """|g|², real even for complex g; g·g for real g, so that its gradient at zero is zero."""
    if jnp.iscomplexobj(g):
        return jnp.real(g) * jnp.real(g) + jnp.imag(g) * jnp.imag(g)
    return g * g


def sign(x: Array) -> Array:
    """`jnp.sign`: returns zeros and NaNs unchanged.

    In jax 0.10.2 Mosaic's sign queries the TPU that JAX runs on. On a CPU it raises an error, which
    breaks `jax.export` and ahead-of-time compilation.
    """
    if jnp.iscomplexobj(x):
        return jnp.sign(x)
    one = jnp.ones_like(x)
    return jnp.where(x > 0, one, jnp.where(x < 0, -one, 0 * x))


def bounded(g: Array, times: float = 1.0, is_squared: bool = True) -> Array:
    """g, clipped so that nothing computed from it overflows. NaN stays NaN.

    If it is squared, float32 is clipped to ±2.3e18·times, else to a 64th of the largest number.
    Averages of clipped gradients, of their squares and of their differences are finite, and forget
    a large gradient at the rates of the averages. Adam's updates depend on ratios of gradients, so
    they are unchanged while all clipped gradients are equally large. (`View.renew` makes an
    infinite gradient visible.)

    Args:
      g: a real or complex gradient, or a difference of gradients, up to `times` as large.
      times: up to 4, whose square is a quarter of the largest number.
      is_squared: |g|² is computed from it.
    """
    if jnp.iscomplexobj(g):
        parts = (bounded(x, times * 0.5**0.5, is_squared) for x in (jnp.real(g), jnp.imag(g)))
        return jax.lax.complex(*parts)
    # A 64th, because averages are divided by 1 - bᵗ and formats multiply by reciprocals.
    limit = times * (float(jnp.finfo(g.dtype).max) / 64) ** (0.5 if is_squared else 1.0)
    return jnp.clip(g, -limit, limit)


@jax.custom_jvp
def safe_log(x: Array) -> Array:
    """log x, of the smallest number at 0, with the derivative 0 there instead of infinity."""
    return jnp.log(jnp.maximum(x, jnp.finfo(x.dtype).tiny))


@safe_log.defjvp
def _safe_log_jvp(primals: PyTree, tangents: PyTree) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return safe_log(x), jnp.where(x > 0, dx / jnp.where(x > 0, x, 1), 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def divide(x: Array, y: Array, above_zero: bool = False) -> Array:
    """x / y for y ≥ 0; 0, with derivative 0, where y is 0.

    y is 0 where every ε is zero and all gradients were zero, or so small (under 1e-19) that their
    squares underflow in float32. If y is known to be `above_zero` nothing is selected, which would
    take a twentieth of the time to compile a step.
    """
    # Not "not y > 0", so that NaN stays visible. The quotient at y = 0 is NaN or infinite and is
    # dropped. No derivative flows through it, because this function defines its own.
    result = quotient(x, y)
    if above_zero and x.shape == y.shape:  # XLA multiplies by 1 / y if it sees that y is broadcast.
        return result
    return jnp.where(y == 0, jax.lax.convert_element_type(own_zero(y), result.dtype), result)


@divide.defjvp
def _divide_jvp(above_zero: bool, primals: PyTree, tangents: PyTree) -> Result:
    # Not through 1/y², which is infinite for y ≤ 1e-20 and makes NaN times an x of 0.
    (x, y), (dx, dy) = primals, tangents
    result, zero = divide(x, y, above_zero), y == 0
    return result, jnp.where(zero, 0, (dx - result * dy) / jnp.where(zero, 1, y))


@jax.custom_jvp
def root(x: Array) -> Array:
    """√x, with the derivative 0 instead of infinity at 0.

    A zero gradient makes nu zero. Differentiating through the step (for example to learn a learning
    rate) would then multiply infinity by zero. It is a custom derivative, because a select around
    the argument would run in every step, and takes a quarter more compile time.
    """
    return square_root(x)


@root.defjvp
def _root_jvp(primals: PyTree, tangents: PyTree) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    result = root(x)
    zero = result == 0
    return result, jnp.where(zero, 0, dx / jnp.where(zero, 1, 2 * result))


def root_mean_square(x: Array, axis: tuple[int, ...] | None = None) -> Array:
    """√mean(|x|²), without over- and underflow of squares; 0 without elements. Keeps the axes."""
    sizes = jnp.abs(x)
    unit = jnp.max(sizes, axis, keepdims=True, initial=0)
    unit = jnp.where(unit > 0, unit, 1)
    squares = jnp.sum(squared(sizes / unit), axis, keepdims=True)
    return unit * root(squares * (squares.size / max(x.size, 1)))


LAYERS = "layers"
"""The axis along which a step is mapped over the layers of a leaf."""


def summed(x: Array, axis: int | None = None) -> Array:
    """`jnp.sum`; in a step mapped over `LAYERS`, bitwise equal to the sum of each layer alone.

    On CPUs, in jax 0.10.2, sums over twelve layers of 33 x 17 numbers differ in their bits from the
    sum over each layer alone, because XLA:CPU adds in another order. Sums of slices, taken one by
    one, have the same bits. On accelerators all sums are one reduction.
    """
    try:
        jax.lax.axis_size(LAYERS)
    except NameError:
        return jnp.sum(exact(x), axis)
    return _sum_by_layer(axis)(x)


def _sum_by_layer(axis: int | None) -> Callable[[Array], Array]:
    one = functools.partial(jnp.sum, axis=axis)

    def rule(size: int, batched: list[bool], x: Array) -> tuple[Array, bool]:
        del size, batched

        def one_by_one(x: Array) -> Array:
            return jnp.stack([one(exact(layer)) for layer in x])

        # No layers, or on several devices of an explicit axis, where none sees all of them.
        if x.shape[0] == 0 or any(jax.typeof(x).sharding.spec[:1]):
            return jax.vmap(one)(x), True
        return jax.lax.platform_dependent(x, cpu=one_by_one, default=jax.vmap(one)), True

    mapped = jax.custom_batching.custom_vmap(one)
    mapped.def_vmap(rule)
    return mapped
