"""The sign of a number, for kernels that are compiled where there is no TPU.

In jax 0.10.2 Mosaic's sign asks on which TPU JAX runs, and on a CPU raises an error: for
`jax.export`, and for compilation ahead of time.

Delete it when tests/xla/test_sign.py finds that a kernel with `jnp.sign` is lowered on a CPU.
"""

import jax
import jax.numpy as jnp


def sign(x: jax.Array) -> jax.Array:
    """`jnp.sign`: of a zero and of a NaN it is that number."""
    if jnp.iscomplexobj(x):
        return jnp.sign(x)
    one = jnp.ones_like(x)
    return jnp.where(x > 0, one, jnp.where(x < 0, -one, 0 * x))
