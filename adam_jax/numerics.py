"""The arithmetic of one array, with the same bits in every program: roots, quotients, sums.

No range or derivatives are lost: gradients are bounded before they are squared, and derivatives
at 0 are 0 instead of infinite.

XLA:CPU, in jax 0.10.2, contracts a product and a sum into a fused multiply-add. In a sum of two
products it picks one of them, depending on the surrounding loop: twelve layers together get other
bits than each layer alone. It may also compute an average twice, with other bits for its codes than
for the update. So a product that is added to something passes through `exact`. Delete `exact` when
tests/numerics/test_exact.py finds the same bits without it.
"""

import functools
from collections.abc import Callable

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from adam_jax._types import Count, Function, PyTree, Result
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


def select(condition: Array | None, new: PyTree, old: PyTree) -> PyTree:
    """All of `new` or all of `old`, by one boolean scalar; None counts as true."""
    if condition is None:
        return new
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def next_count(count: Count) -> Array:
    """The count plus one; it saturates at the largest integer, as `optax.safe_increment`."""
    largest = np.iinfo(np.int32).max
    return jnp.where(count < largest, count + 1, largest)


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
    with jax.numpy_dtype_promotion("standard"):  # A complex x.
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
