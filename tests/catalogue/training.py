"""A few steps of training, and the temporaries of one."""

import jax
import jax.numpy as jnp

from tests.catalogue.recipes import stepper


def sines(params, turn):
    del turn
    return jax.tree.map(jnp.sin, params)


def trained(tx, params, gradients=sines, steps=3, through="step", state=None, jit=True):
    """Parameters and state; `gradients` is called with the parameters and the turn."""
    step, state = stepper(tx, through), tx.init(params) if state is None else state
    step = jax.jit(step) if jit else step
    for turn in range(steps):
        params, state = step(params, state, gradients(params, turn))
    return params, state


def temporary(tx, params, through="step"):
    """Temporary bytes per parameter of a step, with parameters and state donated."""
    step = jax.jit(stepper(tx, through), donate_argnums=(0, 1))
    compiled = step.lower(params, tx.init(params), params).compile()
    size = sum(p.size for p in jax.tree.leaves(params))
    return compiled.memory_analysis().temp_size_in_bytes / size
