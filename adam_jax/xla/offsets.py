"""The offsets of the parts of a buffer, hidden from XLA:CPU.

XLA:CPU compiles equal loops once, but not if they read at different constant offsets. A program
with 500 leaves in one buffer took 10 s to compile in jax 0.10.2, and 1 s with these offsets.

Delete it when tests/xla/test_offsets.py finds that constants make no larger program. The offsets
can then be `np.cumsum`, as they are outside of programs.
"""

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from adam_jax._types import Leaf

SHARING = 16
"""Parts per base. So many loops are compiled, and the program passes so many fewer bases."""


def offsets(sizes: list[int], buffer: jax.Array) -> list[Leaf]:
    """Where each part begins: a base shared by several parts, plus its distance from the base.

    On CPUs a condition that is never true (the buffer's first element exceeds infinity) would
    change the bases, so XLA cannot fold them. Other platforms use constants: there a branch waits
    for the host.

    Args:
      sizes: of the parts, in order, without gaps.
      buffer: the array that holds the parts.
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
