"""Quotients and roots in a TPU's kernel, without tests for unusual numbers.

In jax 0.10.2 Mosaic computes 1/y and 1/√x from an estimate of the processor (on v5e and v5p with a
step of Newton's method), and √x as x·(1/√x). On v5e it adds nine operations for divisors that are
zero, infinite or NaN, and four for such arguments of 1/√x; everywhere five for those of √x. The
functions here need no tests, for the numbers that they are documented for. `jnp.arctan2` takes 62
operations on v5e, half of them for x < 0 and for unusual numbers.

Delete it when tests/xla/test_mosaic.py finds that a kernel takes no more cycles without it.
"""

import contextlib
import operator
from collections.abc import Iterator
from contextvars import ContextVar

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax._types import Function, Leaf

SMALLEST = np.finfo(np.float32).tiny

_in_tiles: ContextVar[bool] = ContextVar("in_tiles", default=False)


@contextlib.contextmanager
def in_tiles(tiles: bool) -> Iterator[None]:
    """A context for tracing a program whose arrays are tiles of a kernel, or are not."""
    token = _in_tiles.set(tiles)
    try:
        yield
    finally:
        _in_tiles.reset(token)


def in_kernel_or_not(usual: Function, on_mosaic: Function, *args: Leaf) -> jax.Array:
    """`on_mosaic` in a kernel that is compiled for a TPU, `usual` elsewhere.

    Outside of tiles `on_mosaic` is not traced, so it needs no derivative and no `vmap`.
    """
    if not _in_tiles.get():
        return usual(*args)
    return jax.lax.platform_dependent(*args, mosaic=on_mosaic, default=usual)


def quotient(x: jax.Array, y: jax.Array) -> jax.Array:
    """x / y; in a TPU's kernel for 2⁻¹²⁶ ≤ |y| < 2¹²⁶, and NaN if y is 0, infinite or NaN."""
    return in_kernel_or_not(operator.truediv, _divided_on_mosaic, x, y)


def _divided_on_mosaic(x: jax.Array, y: jax.Array) -> jax.Array:
    from jax.experimental import pallas as pl  # Takes half of the time of `import adam_jax`.

    return x * pl.reciprocal(y, full_range=False)


def divisor(largest: jax.Array) -> jax.Array:
    """The largest magnitude of some numbers, by which they are divided.

    Quotients of zeros are zeros, but NaN in a TPU's kernel.
    """
    return in_kernel_or_not(lambda x: jnp.maximum(x, SMALLEST), lambda x: x, largest)


def square_root(x: jax.Array) -> jax.Array:
    """√x for x ≥ 0; in a TPU's kernel NaN for infinity."""
    return in_kernel_or_not(jnp.sqrt, _root_on_mosaic, x)


def _root_on_mosaic(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.maximum(x, SMALLEST))


def signed_square_root(y: jax.Array, times: np.float32) -> jax.Array:
    """√|y|·times with the sign of y, never contracted with a sum; otherwise as `square_root`."""
    return in_kernel_or_not(_signed_root, _signed_root_on_mosaic, y, times)


def _signed_root(y: jax.Array, times: np.float32) -> jax.Array:
    return with_sign(jnp.sqrt(jnp.abs(y)) * times, y)


def _signed_root_on_mosaic(y: jax.Array, times: np.float32) -> jax.Array:
    return y * jax.lax.rsqrt(jnp.maximum(jnp.abs(y), SMALLEST)) * times


def fourth_root(y: jax.Array) -> jax.Array:
    """The fourth root of numbers in [0, 1]."""
    return in_kernel_or_not(lambda y: jnp.sqrt(jnp.sqrt(y)), _fourth_root_on_mosaic, y)


def _fourth_root_on_mosaic(y: jax.Array) -> jax.Array:
    return jax.lax.rsqrt(jax.lax.rsqrt(y))  # 1/√0 is infinity, and 1/√∞ is 0.


def arctan2(y: jax.Array, x: jax.Array) -> jax.Array:
    """The angle of (x, y) for x ≥ 0; 0, with derivative 0, where both are 0."""

    def usual(y: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.arctan2(y, jnp.where((y == 0) & (x == 0), 1, x))

    return in_kernel_or_not(usual, _arctan2_on_mosaic, y, x)


# arctan(t) = t·(1 + a·t² + b·t⁴ + ...) for 0 ≤ t ≤ 1, with the smallest relative error, 1.1e-7.
ARCTAN = (-0.33332392, 0.19974214, -0.14041327, 0.09968472, -0.06020311, 0.02473405, -0.00482253)


def _arctan2_on_mosaic(y: jax.Array, x: jax.Array) -> jax.Array:
    # Of the smaller by the larger, so that NaN stays.
    size = jnp.abs(y)
    steep = size > x
    smaller, larger = jnp.where(steep, x, size), jnp.where(steep, size, x)
    t = _divided_on_mosaic(smaller, larger + SMALLEST)  # 0 where both are 0.
    square = t * t
    series = square * np.float32(ARCTAN[-1])
    for coefficient in reversed(ARCTAN[:-1]):
        series = (series + np.float32(coefficient)) * square
    angle = t + t * series
    return with_sign(jnp.where(steep, np.float32(np.pi / 2) - angle, angle), y)


def with_sign(size: jax.Array, y: jax.Array) -> jax.Array:
    """The magnitude of one float32 number with the sign of another, in two operations."""
    bits, sign = (jax.lax.bitcast_convert_type(x, jnp.uint32) for x in (size, y))
    return jax.lax.bitcast_convert_type(bits | (sign & np.uint32(1 << 31)), jnp.float32)
