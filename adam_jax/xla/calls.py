"""Traces functions of jnp inline.

Every jnp function is a `jit`. It is traced anew for each shape and becomes a call that XLA inlines.
In jax 0.10.2 tracing AdamW for a new shape takes 5 ms with these calls, and 3 ms without.

Delete it when tests/xla/test_calls.py finds that a program has no calls without it.
"""

from contextlib import AbstractContextManager

import jax


def without_calls() -> AbstractContextManager[None]:
    """A context in which functions of jnp are traced into the surrounding program."""
    return jax.disable_jit()
