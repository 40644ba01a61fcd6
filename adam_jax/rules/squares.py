"""Squares of gradients, and how large a gradient may be to have one."""

import jax
import jax.numpy as jnp
from jax import Array


def abs_squared(g: Array) -> Array:
    """|g|², real also for complex g; g·g where g is real, so that its gradient at zero is zero."""
    if jnp.iscomplexobj(g):
        return jnp.real(g) * jnp.real(g) + jnp.imag(g) * jnp.imag(g)
    return g * g


def bounded(g: Array, times: float = 1.0) -> Array:
    """g, clipped so that |g|² is well inside of float32: to ±2.3e18·times. NaN stays NaN.

    Averages of such gradients, of their squares and of their differences are finite, and forget a
    large gradient at the rates of the averages. Adam's updates depend on ratios of gradients: they
    are unchanged while all that is clipped is equally large. (The leaf program shows an infinite
    gradient.)

    Args:
      g: a gradient, real or complex; a difference of such, which may be `times` as large.
      times: up to 4, whose square is a quarter of the largest number.
    """
    if jnp.iscomplexobj(g):
        parts = (_clipped(x, times * 0.5**0.5) for x in (jnp.real(g), jnp.imag(g)))
        return jax.lax.complex(*parts)
    return _clipped(g, times)


def _clipped(x: Array, times: float) -> Array:
    # A quarter, as averages are divided by 1 - b^t, and formats multiply by reciprocals.
    limit = times / 8 * float(jnp.finfo(x.dtype).max) ** 0.5
    return jnp.clip(x, -limit, limit)
