"""Products that are rounded before they are added to something.

XLA:CPU, in jax 0.10.2, contracts a product and a sum into a fused multiply-add. In a sum of two
products it picks one of them, depending on the surrounding loop: twelve layers together get other
bits than each layer alone. It may also compute an average twice, with other bits for its codes than
for the update. A select between two numbers is not contracted, but see `own_zero`.

Delete it when tests/xla/test_products.py finds the same bits without it.
"""

import jax
import jax.numpy as jnp


@jax.custom_jvp
def no_product(x: jax.Array) -> jax.Array:
    """The same numbers, in a form that XLA:CPU does not contract with a sum."""
    return jax.lax.platform_dependent(x, cpu=_chosen, default=_as_it_is)


# Named functions, because JAX traces them once per shape. A lambda takes 7 ms per call.
def _chosen(x: jax.Array) -> jax.Array:
    # Not a constant 0: see own_zero. LLVM simplifies a select of |x|.
    return jnp.where(x == 0, x * x, x)


def _as_it_is(x: jax.Array) -> jax.Array:
    return x


@no_product.defjvp
def _no_product_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # The select itself has the derivative 0 at 0.
    return no_product(*primals), tangents[0]


def _zeros(x: jax.Array) -> jax.Array:
    return jax.lax.full_like(x, 0)


def own_zero(x: jax.Array) -> jax.Array:
    """0 for the places where x is 0: there x itself on CPUs, and a constant elsewhere.

    LLVM multiplies a select's constant arm by a constant learning rate. Without AVX-512, it then
    does not contract the sum of that select and the parameter; with a rate as an argument it does.
    """
    return jax.lax.platform_dependent(x, cpu=_as_it_is, default=_zeros)
