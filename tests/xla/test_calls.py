"""jnp functions are calls in a traced program, except inside `without_calls`."""

import contextlib

import jax
import jax.numpy as jnp

from adam_jax.xla.calls import without_calls


def calls(around):
    def f(x):
        with around():
            return jnp.where(x > 0, x, jnp.clip(x, -1, 1))

    equations = jax.make_jaxpr(f)(jnp.ones(3)).jaxpr.eqns
    return sum("jit" in str(e.primitive) for e in equations)


def test_a_program_has_calls_without_it():
    assert calls(contextlib.nullcontext) == 2, "adam_jax/xla/calls.py can go"
    assert calls(without_calls) == 0
