"""Steps one leaf after another on CPUs, so that all leaves share temporary memory.

XLA:CPU starts all leaves at once, and keeps the intermediates of each. In jax 0.10.2, for 8-bit
moments, these are the float32 moments: 8 bytes of temporaries per parameter, and their page faults
take most of the step. 20 leaves took 5.3 times the time of float32 moments. One after another they
take 1 byte per parameter and 1.8 to 2.9 times the time.

XLA:CPU orders only by data dependencies, and drops barriers before scheduling. So each leaf's
gradient is made to depend on the results of the previous leaf.

Delete it when tests/xla/test_turns.py finds no more temporaries on two devices, where leaves take
no turns, than on one.
"""

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax._types import PyTree

# The bits of a NaN that no arithmetic produces. If a weight held it, the next leaf's gradient would
# be zero.
NEVER = np.int32(0x7FEDCBA9)


def one_device() -> bool:
    """Whether the program is for one device: across devices a turn needs a collective.

    A host with one device compiles ahead of time for the many of a mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() == 1 and mesh.size <= 1 and not mesh.manual_axes


def first_turn() -> jax.Array:
    """The turn of the first leaf: 0, as all turns, but unknown to the compiler."""
    return jnp.zeros([], jnp.int32)


def in_turn(turn: jax.Array, g: jax.Array) -> jax.Array:
    """The gradient, available once its turn has come."""
    return jnp.where(turn == 0, g, jnp.zeros_like(g))


def turn_after(turn: jax.Array, results: PyTree) -> jax.Array:
    """The turn of the next leaf on CPUs; other platforms do not wait."""
    arrays = [x for x in jax.tree.leaves(results) if x.size and x.ndim]

    def wait(turn: jax.Array, *firsts: jax.Array) -> jax.Array:
        for x in firsts:
            bits = jax.lax.bitcast_convert_type(jnp.real(x).astype(jnp.float32), jnp.int32)
            turn = turn | jnp.where(bits == NEVER, jnp.int32(1), jnp.int32(0))
        return turn

    firsts = [x[(0,) * x.ndim] for x in arrays]
    return jax.lax.platform_dependent(turn, *firsts, cpu=wait, default=lambda turn, *_: turn)
