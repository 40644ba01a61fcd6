"""Keeping XLA from finding out that two arrays are the same."""

from typing import Any

import jax


@jax.custom_jvp
def kept_apart(tree: Any) -> Any:
    """The same arrays, without XLA's knowing that they are the same."""
    return jax.lax.optimization_barrier(tree)


@kept_apart.defjvp
def _kept_apart_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    # jax 0.12 cannot transpose a barrier over arrays of which some have no derivative.
    return kept_apart(*primals), tangents[0]


def computed_again(tree: Any) -> Any:
    """`kept_apart`, but on CPUs: what XLA:CPU would otherwise compute twice it does not fuse."""
    with jax.disable_jit(False):
        return jax.lax.platform_dependent(tree, cpu=lambda x: x, default=kept_apart)
