"""The reference kernel: the rules of one leaf, one after the other, for XLA to fuse."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp

from adam_jax.formats.base import Format
from adam_jax.rules.base import Rule, static


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """Rules, and their scalars of this step, with all numbers in one vector.

    Each scalar would be an argument of its own of every leaf's call: in a tree of 500 leaves that
    is most of the tracing and lowering time. XLA takes the vector apart again when it inlines.
    """

    numbers: jax.Array
    structure: Any = static()


def pack(rules: tuple[Rule, ...], scalars: tuple[Any, ...]) -> Packed:
    """Packs the rules of a leaf, once for all leaves that have the same."""
    numbers, structure = jax.tree.flatten((rules, scalars))
    return Packed(jnp.array(numbers, jnp.result_type(float)), structure)


class Leaf(NamedTuple):
    """The arrays of one leaf.

    Attributes:
      g: the gradient.
      stored: per rule, its slots as their formats keep them.
      param: the parameter; None if no rule reads it and it is not to be changed.
    """

    g: Any
    stored: tuple[tuple[Any, ...], ...]
    param: Any


class Program(NamedTuple):
    """What shapes the program of a leaf, besides its arrays and its rules.

    Attributes:
      formats: per rule, one format per slot.
      dtype: of the result, the only place where the update is rounded.
      apply: return the new parameter, θ + u, instead of the update u.
    """

    formats: tuple[tuple[Format, ...], ...]
    dtype: Any
    apply: bool


Stepped = tuple[jax.Array, tuple[tuple[Any, ...], ...]]
"""The update or the new parameter, and the new stored slots."""

CHUNK = 16


def run(program: Program, packed: Packed, leaves: list[Leaf]) -> list[Stepped]:
    """Steps leaves that share a program, which is traced and lowered once; XLA inlines the calls.

    Inside a jit, 16 leaves at a time share a call too: 500 leaves are then 47 calls to trace and to
    lower. Outside, each leaf is a dispatch of its own, since leaves may lie on different devices.
    """
    whole = len(leaves) // CHUNK * CHUNK
    if not isinstance(packed.numbers, jax.core.Tracer):
        whole = 0
    stepped: list[Stepped] = []
    for i in range(0, whole, CHUNK):
        stepped += chunk_step(program, packed, leaves[i : i + CHUNK])
    return stepped + [leaf_step(program, packed, leaf) for leaf in leaves[whole:]]


@functools.partial(jax.jit, static_argnums=0)
def chunk_step(program: Program, packed: Packed, leaves: list[Leaf]) -> list[Stepped]:
    """`leaf_step` on a chunk of leaves of one shape."""
    return [leaf_step(program, packed, leaf) for leaf in leaves]


@functools.partial(jax.jit, static_argnums=0)
def leaf_step(program: Program, packed: Packed, leaf: Leaf) -> Stepped:
    """Runs the rules on one leaf, in float32 or wider from the first to the last."""
    # Every dtype is converted by hand below. A complex leaf still mixes complex and real arrays
    # (mu / √nu), for which strict promotion has no spelling.
    with jax.numpy_dtype_promotion("standard"):
        arithmetic = _arithmetic_dtype(leaf)
        real = jnp.finfo(arithmetic).dtype
        numbers = [
            jax.lax.convert_element_type(packed.numbers[i], real)
            for i in range(packed.structure.num_leaves)
        ]
        rules, scalars = jax.tree.unflatten(packed.structure, numbers)
        u = jax.lax.convert_element_type(leaf.g, arithmetic)
        p = None if leaf.param is None else jax.lax.convert_element_type(leaf.param, arithmetic)
        new_stored = []
        for rule, rule_scalars, rule_stored, rule_formats in zip(
            rules, scalars, leaf.stored, program.formats, strict=True
        ):
            old = {
                slot.name: fmt.decode(x, real if slot.magnitude else arithmetic)
                for slot, fmt, x in zip(rule.slots, rule_formats, rule_stored, strict=True)
            }
            u, new = rule.step(u, old, rule_scalars, p)
            new_stored.append(
                tuple(
                    fmt.encode(new[slot.name])
                    for slot, fmt in zip(rule.slots, rule_formats, strict=True)
                )
            )
        if program.apply and p is not None:
            u = p + u
        return jax.lax.convert_element_type(u, program.dtype), tuple(new_stored)


def _arithmetic_dtype(leaf: Leaf) -> Any:
    """float32, or wider where an array of this leaf is; complex if the gradient is."""
    arrays = [x for x in jax.tree.leaves(leaf) if jnp.issubdtype(x.dtype, jnp.inexact)]
    dtype = functools.reduce(
        jnp.promote_types, (jnp.finfo(x.dtype).dtype for x in arrays), jnp.dtype(jnp.float32)
    )
    return jnp.promote_types(dtype, jnp.complex64) if jnp.iscomplexobj(leaf.g) else dtype
