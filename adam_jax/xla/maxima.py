"""The largest magnitude in each block: on CPUs with every NaN, and by vector instructions.

What XLA:CPU does otherwise, in jax 0.10.2:

  * Its maximum along a last axis of 64 elements or more loses NaNs. A sum keeps them.
  * If NaNs are looked for element by element, it stores each moment of 8 bits twice: 1.9 bytes of
    temporaries per parameter and not 1.0, and a step of 5.1 times AdamW's time and not 2.7.
  * It reduces the last axis by one element at a time, and other axes by many: blocks turned into
    `LANES` columns save a third of the time of a step.

XLA:GPU has none of these habits, and would make four kernels more of the sum.

Delete it when tests/xla/test_maxima.py finds that a maximum keeps its NaNs: `elsewhere` is then
enough, if the bytes there stay and the rows of 8 bits in benchmarks/step.py too.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

LANES = 16


def largest(x: jax.Array, blocks: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The largest magnitude in each block, infinite where there is a NaN.

    Args:
      x: float32.
      blocks: reshapes it so that the last axis goes through a block.
    """

    # Other orders of these lines store each moment twice too.
    def on_cpu(x: jax.Array) -> jax.Array:
        missing = jnp.isnan(jnp.sum(blocks(x), axis=-1))
        sizes = blocks(jnp.abs(x))
        if sizes.shape[-1] % LANES == 0:
            lanes = (*sizes.shape[:-1], sizes.shape[-1] // LANES, LANES)
            sizes = jnp.max(jnp.reshape(sizes, lanes), axis=-2)
        return jnp.where(missing, np.float32(np.inf), jnp.max(sizes, axis=-1))

    def elsewhere(x: jax.Array) -> jax.Array:
        return jnp.max(blocks(magnitudes(x)), axis=-1)

    return jax.lax.platform_dependent(x, cpu=on_cpu, default=elsewhere)


def magnitudes(x: jax.Array) -> jax.Array:
    """|x|, infinite where it is NaN, as a maximum may lose it."""
    return jnp.where(jnp.isnan(x), np.float32(np.inf), jnp.abs(x))
