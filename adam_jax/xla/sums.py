"""Per-layer sums, for leaves that hold several layers.

On CPUs, in jax 0.10.2, sums over twelve layers of 33 x 17 numbers differ in their bits from the sum
over each layer alone, because XLA:CPU adds in another order. Sums of slices, taken one by one, have
the same bits, so a leaf of several layers is stepped exactly as its layers alone. On accelerators
all sums are one reduction.

Delete it when tests/xla/test_sums.py finds the same bits without it.
"""

import functools

import jax
import jax.numpy as jnp

from adam_jax._types import Function
from adam_jax.xla.products import no_product

LAYERS = "layers"
"""The axis along which a step is mapped over the layers of a leaf."""


def summed(x: jax.Array, axis: int | None = None) -> jax.Array:
    """`jnp.sum`; in a step mapped over `LAYERS`, bitwise equal to the sum of each layer alone."""
    return _by_layer(axis)(x) if _in_layers() else jnp.sum(no_product(x), axis)


def _in_layers() -> bool:
    try:
        jax.lax.axis_size(LAYERS)
    except NameError:
        return False
    return True


def _by_layer(axis: int | None) -> Function:
    one = functools.partial(jnp.sum, axis=axis)

    def rule(size: int, batched: list[bool], x: jax.Array) -> tuple[jax.Array, bool]:
        del size, batched

        def one_by_one(x: jax.Array) -> jax.Array:
            return jnp.stack([one(no_product(layer)) for layer in x])

        if x.shape[0] == 0:
            return jax.vmap(one)(x), True
        return jax.lax.platform_dependent(x, cpu=one_by_one, default=jax.vmap(one)), True

    mapped = jax.custom_batching.custom_vmap(one)
    mapped.def_vmap(rule)
    return mapped
