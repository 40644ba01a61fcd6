"""The roles of leaves, derived from their shapes."""

import jax
import jax.numpy as jnp

from adam_jax.transfer.growth import growths


def shape(*axes):
    return jax.ShapeDtypeStruct(axes, jnp.float32)


def roles(base, params, **kwargs):
    """The role, and the growth of inputs and outputs, of each leaf by path."""
    return {
        g.path: (g.role, round(g.fan_in, 9), round(g.fan_out, 9))
        for g in growths(base, params, **kwargs)
    }


HIDDEN, INPUT, OUTPUT, VECTOR = (
    ("hidden", 4, 4),
    ("input", 1, 4),
    ("output", 4, 1),
    ("vector", 1, 4),
)
