"""Values shared by the leaves of a step: the rules' numbers, and their scalars of this step.

The leaf program gets the rules without their hyperparameters, because a leaf needs only the scalars
computed from them. JAX caches the pytree structures of compiled functions. If these contained
schedules, a schedule would never be freed, and a new one would recompile every leaf.
"""

import functools
from typing import TypeAlias

import jax
import jax.core
import jax.numpy as jnp

from adam_jax._types import Leaf, PyTree, Scalars
from adam_jax.rules.base import Rule
from adam_jax.rules.hyperparameters import Constant, Hyperparameter

Structures: TypeAlias = tuple[tuple[Leaf, ...], ...]
"""The structure of each rule, by pipeline and stage; a hyperparameter is a leaf in it."""

Values: TypeAlias = tuple[tuple[tuple[PyTree, PyTree], ...], ...]
"""The leaves of each rule, None for a hyperparameter, and its scalars of this step."""


def as_arrays(numbers: PyTree) -> PyTree:
    """The same pytree with numbers as arrays: constants would be lowered again for every call."""
    dtype = jnp.result_type(float)
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, dtype), numbers)


def rule_of(structure: PyTree, numbers: PyTree, scalars: Scalars) -> tuple[Rule, Scalars]:
    """A rule with its scalars; its hyperparameters are None."""
    return structure.unflatten(numbers), scalars


def shared(
    rules: list[list[Rule]], counts: list[Leaf], others: list[Leaf]
) -> tuple[Structures, Values]:
    """The rules and their scalars, computed from numbers in the precision of arithmetic.

    They then have the same bits whether the numbers are traced or not. Outside a program, all
    scalars are computed by one compiled program, which all schedules share.

    Args:
      rules: by pipeline and stage.
      counts: of each stage, the completed optimizer steps; None if there is no count.
      others: the gradients. If one is traced, this is part of a larger program.
    """
    flat = [
        [jax.tree.flatten(rule, is_leaf=_is_hyperparameter) for rule in pipeline]
        for pipeline in rules
    ]
    structures = tuple(tuple(structure for _, structure in pipeline) for pipeline in flat)
    numbers = tuple(tuple(tuple(leaves) for leaves, _ in pipeline) for pipeline in flat)
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((numbers, counts, others))):
        return structures, _values(structures, numbers, tuple(counts))
    # Schedules are called outside of `_values`; inside, each would need its own program.
    now = tuple(
        tuple(
            tuple(Constant(x.at(count)) if _is_hyperparameter(x) else x for x in leaves)
            for leaves, count in zip(pipeline, counts, strict=True)
        )
        for pipeline in numbers
    )
    return structures, _compiled_values(structures, now, tuple(counts))


def _values(structures: Structures, numbers: PyTree, counts: tuple[Leaf, ...]) -> Values:
    numbers = as_arrays(numbers)
    made = []
    for its_structures, its_leaves in zip(structures, numbers, strict=True):
        pipeline = []
        for structure, leaves, count in zip(its_structures, its_leaves, counts, strict=True):
            scalars = as_arrays(structure.unflatten(leaves).scalars(count))
            pipeline.append((tuple(None if _is_hyperparameter(x) else x for x in leaves), scalars))
        made.append(tuple(pipeline))
    return tuple(made)


_compiled_values = functools.partial(jax.jit, static_argnums=0)(_values)


def _is_hyperparameter(x: Leaf) -> bool:
    return isinstance(x, Hyperparameter)
