"""Finds the elements where ε dominates the divisor of the update."""

import functools

import jax
import jax.numpy as jnp
import optax

from adam_jax._types import Leaf, Params, Scalars, State
from adam_jax.engine.call import Body
from adam_jax.engine.leaf_factors import Factors
from adam_jax.engine.leafwise import decoded, fetched
from adam_jax.engine.pipeline import factors_in
from adam_jax.engine.states import described, found, is_known
from adam_jax.engine.trees import align_slot, leaf_paths
from adam_jax.engine.unrounded import arithmetic_dtype
from adam_jax.formats.dense import is_floating
from adam_jax.modify.pack import unpack_state
from adam_jax.modify.partition import Partition
from adam_jax.rules.base import MemberRule, member_rules_in
from adam_jax.rules.units import rescaled


def eps_dominates(body: Body, state: State, params: Params) -> list[Leaf]:
    """For each parameter, the elements with √nû ≤ ε; None where this is not defined.

    It is defined for a single member that divides by an average of squares as Adam does, and for
    each such member in `groups`.
    """
    leaves, treedef = jax.tree.flatten(params, is_leaf=lambda x: x is None)
    partitions = found(body, lambda x: isinstance(x, Partition))
    states = found(state, lambda x: isinstance(x, optax.PartitionState))
    if len(partitions) == len(states) == 1:
        return _in_parts(partitions[0], states[0], params)
    state = unpack_state(state, params)
    rules = member_rules_in(body)
    kept = found(state, _keeps_nu)
    if len(rules) != 1 or len(kept) != 1:
        return [None] * len(leaves)
    [rule], [member] = rules, kept
    count = getattr(member, described(member).counts[0]) - 1
    factors = factors_in(body)

    @functools.cache
    def with_scalars(its: Factors) -> tuple[MemberRule, Scalars]:
        scaled = rescaled(rule, its.by_unit())
        return scaled, scaled.scalars(count)

    def known(p: Leaf, nu: Leaf, path: str) -> Leaf:
        if p is None or not is_floating(p) or isinstance(nu, optax.MaskedNode):
            return None
        nu = decoded(fetched(nu), jnp.finfo(arithmetic_dtype(p)).dtype)
        its, scalars = with_scalars(factors.get(path, Factors()))
        return its.eps_dominates({"nu": nu}, scalars)

    slots = align_slot(treedef, params, member.nu)
    return list(map(known, leaves, slots, leaf_paths(params)))


def _in_parts(partition: Partition, state: State, params: Params) -> list[Leaf]:
    """`eps_dominates` of each part, for its own leaves."""
    indices = [i for i, p in enumerate(_leaves(params)) if p is not None]
    known: list[Leaf] = [None] * len(_leaves(params))
    for part, theirs in partition.of_params(params):
        inner_state = state.inner_states[part.expression].inner_state
        small = eps_dominates(part.body, inner_state, theirs)
        own = [x for x, p in zip(small, _leaves(theirs), strict=True) if p is not None]
        for i, x in zip(part.indices, own, strict=True):
            known[indices[i]] = x
    return known


def _leaves(params: Params) -> list[Leaf]:
    return jax.tree.leaves(params, is_leaf=lambda x: x is None)


def _keeps_nu(x: Leaf) -> bool:
    return is_known(x) and "nu" in described(x).slots and bool(described(x).counts)
