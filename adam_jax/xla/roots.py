"""The fourth root of numbers in [0, 1], without special cases on TPUs.

In jax 0.10.2 Mosaic computes √y as y·(1/√y) and then tests for zero and infinity. Two reciprocal
square roots in a row need no tests: 1/√0 is infinity, and 1/√∞ is 0. For 8-bit moments that is
1.6 bundles fewer on v5e, and 2.9 on v6e. A square root as 1/√(1/√y)² is slower on v5e.

Delete it when tests/xla/test_roots.py finds that a kernel with two `jnp.sqrt` takes no more cycles.
"""

import jax
import jax.numpy as jnp


def fourth_root(y: jax.Array) -> jax.Array:
    """The fourth root of float32 numbers in [0, 1]; subnormal numbers count as zero."""
    return jax.lax.platform_dependent(y, mosaic=without_tests, default=_by_square_roots)


def without_tests(y: jax.Array) -> jax.Array:
    """The program of a TPU's kernel."""
    return jax.lax.rsqrt(jax.lax.rsqrt(y))


def _by_square_roots(y: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sqrt(y))
