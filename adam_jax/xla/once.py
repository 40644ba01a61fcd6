"""A conditional update in place: a loop of one turn or none.

Every platform updates a loop's carry in place. XLA:GPU copies a conditional's results in and out:
in jax 0.10.2, 48 bytes per parameter in every micro-step for the parameters and moments of Adam,
and 12 of temporaries.

Delete it when tests/xla/test_once.py finds that a conditional makes no copies, and write
`jax.lax.cond`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from adam_jax._compat import varying_axes
from adam_jax._types import Function, Leaf, PyTree, Result
from adam_jax.xla.barrier import as_varying, varying


def if_due(due: jax.Array, f: Callable[[Any], Any], carry: PyTree) -> PyTree:
    """f(carry) if due, else carry: `lax.cond` without copies.

    Outside a program, where `due` is known, it is a Python `if`: a loop would be compiled and
    cached for this one call.

    Args:
      due: boolean scalar.
      f: returns a tree like its argument. It must not compute with values that it returns
        unchanged: XLA hoists that computation out of the loop and keeps the results. See
        `kept_apart`.
      carry: arrays.
    """
    if not isinstance(due, jax.core.Tracer):
        return f(carry) if due else carry
    carry = _as_returned(f, carry)
    f, numbers = _closed(f, carry)
    return _if_due(f, due, carry, *numbers)


def _as_returned(f: Callable[[Any], Any], carry: PyTree) -> Any:
    """The carry with the types that f returns: inside `shard_map` types name axes."""
    while jax.sharding.get_abstract_mesh().manual_axes:
        returned = jax.tree.leaves(jax.make_jaxpr(f)(carry).out_avals)
        leaves, treedef = jax.tree.flatten(carry)
        pairs = list(zip(leaves, returned, strict=True))
        if all(varying_axes(aval) <= varying(x) for x, aval in pairs):
            break
        cast = [as_varying(x, varying_axes(aval)) for x, aval in pairs]
        carry = treedef.unflatten(cast)
    return carry


def _closed(f: Callable[[Any], Any], carry: PyTree) -> tuple[Function, list[Leaf]]:
    """f with all arrays as arguments; `jax.closure_convert` would keep f and its closure alive."""
    closed, out = jax.make_jaxpr(f, return_shape=True)(carry)
    jaxpr, structure = closed.jaxpr, jax.tree.structure(out)

    def converted(carry: PyTree, *numbers: PyTree) -> PyTree:
        return structure.unflatten(jax.core.eval_jaxpr(jaxpr, numbers, *jax.tree.leaves(carry)))

    return converted, closed.consts


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _if_due(f: Function, due: jax.Array, carry: PyTree, *numbers: PyTree) -> Function:
    def turn(state: tuple[jax.Array, Leaf]) -> tuple[jax.Array, Leaf]:
        return jnp.zeros_like(state[0]), f(state[1], *numbers)

    return jax.lax.while_loop(lambda state: state[0], turn, (due, carry))[1]


@_if_due.defjvp
def _if_due_jvp(f: Function, primals: PyTree, tangents: PyTree) -> Result:
    """Differentiates the conditional: a loop of unknown length has no reverse mode."""

    def conditional(due: jax.Array, carry: PyTree, *numbers: PyTree) -> PyTree:
        return jax.lax.cond(due, lambda c: f(c, *numbers), lambda c: c, carry)

    return jax.jvp(conditional, primals, tangents)
