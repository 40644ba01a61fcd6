"""The reference kernel: the rules of one leaf, one after the other, for XLA to fuse."""

import dataclasses
import functools
from typing import Any

import jax
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


def pack(rules: tuple[Rule, ...], at: tuple[Any, ...]) -> Packed:
    """Packs the rules of a leaf, once for all leaves that have the same."""
    numbers, structure = jax.tree.flatten((rules, at))
    return Packed(jnp.array(numbers, jnp.result_type(float)), structure)


# Every leaf of one shape and dtype shares one trace and one lowered function, which XLA inlines
# before it fuses: 500 leaves cost the tracing time of one.
@functools.partial(jax.jit, static_argnames=("formats", "dtype", "apply"))
def leaf_step(
    packed: Packed,
    g: jax.Array,
    stored: tuple[tuple[Any, ...], ...],
    param: jax.Array | None,
    *,
    formats: tuple[tuple[Format, ...], ...],
    dtype: Any,
    apply: bool,
) -> tuple[jax.Array, tuple[tuple[Any, ...], ...]]:
    """Runs the rules on one leaf, in float32 or wider from the first to the last.

    Args:
      packed: the rules, applied in this order, each to what the one before it made of `g`.
      g: the gradient.
      stored: per rule, its slots as their formats keep them.
      param: the parameter; None if no rule reads it and it is not to be changed.
      formats: per rule, one format per slot.
      dtype: of the result, the only place where the update is rounded.
      apply: return the new parameter, θ + u, instead of the update u.

    Returns:
      The update or the new parameter, and the new stored slots.
    """
    # Every dtype is converted by hand below. A complex leaf still mixes complex and real arrays
    # (mu / √nu), for which strict promotion has no spelling.
    with jax.numpy_dtype_promotion("standard"):
        arithmetic = _arithmetic_dtype(g, stored, param)
        real = jnp.finfo(arithmetic).dtype
        numbers = [
            jax.lax.convert_element_type(packed.numbers[i], real)
            for i in range(packed.structure.num_leaves)
        ]
        rules, at = jax.tree.unflatten(packed.structure, numbers)
        u = jax.lax.convert_element_type(g, arithmetic)
        p = None if param is None else jax.lax.convert_element_type(param, arithmetic)
        new_stored = []
        for rule, rule_at, rule_stored, rule_formats in zip(
            rules, at, stored, formats, strict=True
        ):
            old = {
                slot.name: fmt.decode(x, real if slot.magnitude else arithmetic)
                for slot, fmt, x in zip(rule.slots, rule_formats, rule_stored, strict=True)
            }
            u, new = rule.step(u, old, rule_at, p)
            new_stored.append(
                tuple(
                    fmt.encode(new[slot.name])
                    for slot, fmt in zip(rule.slots, rule_formats, strict=True)
                )
            )
        if apply and p is not None:
            u = p + u
        return jax.lax.convert_element_type(u, dtype), tuple(new_stored)


def _arithmetic_dtype(g: jax.Array, stored: Any, param: jax.Array | None) -> Any:
    """float32, or wider where an array of this leaf is; complex if the gradient is."""
    arrays = [
        x for x in jax.tree.leaves((g, stored, param)) if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    dtype = functools.reduce(
        jnp.promote_types, (jnp.finfo(x.dtype).dtype for x in arrays), jnp.dtype(jnp.float32)
    )
    return jnp.promote_types(dtype, jnp.complex64) if jnp.iscomplexobj(g) else dtype
