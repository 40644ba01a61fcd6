"""Where the parts of a buffer begin, unknown to XLA:CPU.

XLA:CPU compiles one loop for many that are equal, but not if they read at other constant offsets.
In jax 0.10.2, 500 leaves of one buffer took 10 s to compile, and 1 s with these.

Delete it when tests/xla/test_offsets.py finds that constants make no larger program: the offsets
can then be `np.cumsum`, as they are outside of programs.
"""

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from adam_jax._types import Leaf

SHARING = 16
"""Parts with one base: as many loops are compiled, and so many fewer bases handed about."""


def offsets(sizes: list[int], buffer: jax.Array) -> list[Leaf]:
    """Where each part begins: as a base, one for several parts, and its distance from that.

    On CPUs the bases might be others, if the buffer began with more than infinity. Elsewhere a
    branch waits for the host, and so is not used.

    Args:
      sizes: of the parts, which follow each other.
      buffer: what they are parts of.
    """
    starts = list(np.cumsum([0, *sizes[:-1]], dtype=np.int32))
    if not isinstance(buffer, jax.core.Tracer) or not buffer.size:
        return starts
    bases = starts[::SHARING]

    def hidden(bases: list[Leaf]) -> list[Leaf]:
        never = jnp.real(buffer[0]) > jnp.inf
        return jax.lax.cond(never, lambda xs: [x + 1 for x in xs], lambda xs: xs, bases)

    bases = jax.lax.platform_dependent(bases, cpu=hidden, default=lambda xs: xs)
    distances = [start - starts[i // SHARING * SHARING] for i, start in enumerate(starts)]
    return [bases[i // SHARING] + distance for i, distance in enumerate(distances)]
