"""Products that are to be rounded before they are added to something.

XLA:CPU, in jax 0.10.2, contracts a product and a sum, and of a sum of two products either of the
two, by the loop around it: twelve layers at once have other bits than each alone. A choice between
two numbers is no product.

Delete it when tests/xla/test_products.py finds the same bits without it.
"""

import jax
import jax.numpy as jnp


@jax.custom_jvp
def no_product(x: jax.Array) -> jax.Array:
    """The same numbers, which XLA:CPU does not know to be a product."""
    return jax.lax.platform_dependent(x, cpu=_chosen, default=_as_it_is)


# Functions with names, which JAX traces once for each shape: a lambda takes 7 ms for each call.
def _chosen(x: jax.Array) -> jax.Array:
    return jnp.where(x == 0, jnp.zeros_like(x), x)


def _as_it_is(x: jax.Array) -> jax.Array:
    return x


@no_product.defjvp
def _no_product_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # Of the choice itself the derivative at 0 would be that of a constant.
    return no_product(*primals), tangents[0]
