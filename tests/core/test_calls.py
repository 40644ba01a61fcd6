"""jnp functions are calls in a traced program, except under `jax.disable_jit` as in `leaf_step`."""

import contextlib

import jax
import jax.numpy as jnp


def calls(around):
    def f(x):
        with around():
            return jnp.where(x > 0, x, jnp.clip(x, -1, 1))

    equations = jax.make_jaxpr(f)(jnp.ones(3)).jaxpr.eqns
    return sum("jit" in str(e.primitive) for e in equations)


def test_a_program_has_calls_without_it():
    assert calls(contextlib.nullcontext) == 2, "core/leaf.py needs no disable_jit"
    assert calls(jax.disable_jit) == 0
