"""One pass over the leaves of a tree, in which each runs through a row of links.

Step counts, trees, None leaves, masks and groups are known here (and in leaves.py, which lines
trees up), and nowhere below. `adamw` is one row of three links, all leaves in it; `groups` is
several rows of one shape, each with its own numbers, and a leaf in one of them or in none.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax.body import PASS_ON, Call, counted
from adam_jax.formats.dtypes import leaf_dtype, moves, wider_dtype
from adam_jax.formats.noise import Salt, salt_of_moments
from adam_jax.formats.policy import format_of
from adam_jax.kernels.scalars import shared
from adam_jax.kernels.xla import Kind, Leaf, Program, run
from adam_jax.leaves import (
    align_params,
    align_slot,
    check_leaf,
    leaf_paths,
    unflatten_slot,
    unflatten_stored,
)
from adam_jax.link import Link
from adam_jax.rules.pytrees import frozen_pytree, static

Labels = Sequence[int | None]
"""For each leaf the index of its row; None for a leaf that is frozen: no state, a zero update.

Nor has a leaf a state that is no floating-point number; its gradient is None.
"""


@frozen_pytree
class Row:
    """Links that run one after the other on each leaf.

    Attributes:
      links: in the order in which they run.
      chained: the state is a tuple with one entry per link, as `optax.chain` keeps it; False, for a
        single link, is that link's state itself.
    """

    links: tuple[Link, ...]
    chained: bool = static()

    @property
    def member(self) -> int | None:
        """The index of the last link that remembers something; None if none does."""
        return max((i for i, link in enumerate(self.links) if link.rule.slots), default=None)

    def init(self, params: Any) -> Any:
        """The state before the first step."""
        return init_rows((self,), [0] * len(jax.tree.leaves(params)), params)

    def run(self, updates: Any, state: Any, params: Any, call: Call) -> tuple[Any, Any]:
        """One optimizer step on every leaf; see `Body`."""
        leaves = jax.tree.leaves(updates, is_leaf=lambda x: x is None)
        return run_rows((self,), [0] * len(leaves), updates, state, params, call)

    def split(self, state: Any) -> tuple[Any, ...]:
        """The links' own states."""
        if not self.chained:
            states: Any = (state,)
        elif isinstance(state, tuple) and len(state) == len(self.links):
            states = state
        else:
            raise ValueError(
                f"the state must be the tuple of {len(self.links)} that init returned, got"
                f" {_described(state)}: {PASS_ON}"
            )
        return tuple(
            link.unwrap(s, f"at state[{k}], " if self.chained else "")
            for k, (link, s) in enumerate(zip(self.links, states, strict=True))
        )

    def join(self, states: list[Any]) -> Any:
        """The opposite of `split`."""
        wrapped = tuple(link.wrap(s) for link, s in zip(self.links, states, strict=True))
        return wrapped if self.chained else wrapped[0]


def init_rows(rows: tuple[Row, ...], labels: Labels, params: Any) -> Any:
    """The one state of all rows; `labels` are those of the parameters, None leaves left out."""
    leaves = jax.tree.leaves(params)
    paths = leaf_paths(params, none_is_leaf=False)
    states = []
    for k, link in enumerate(rows[0].links):
        fields: dict[str, Any] = {name: jnp.zeros([], jnp.int32) for name in link.counts}
        for j, slot in enumerate(link.rule.slots):
            stored = []
            for i, (p, label) in enumerate(zip(leaves, labels, strict=True)):
                if label is None or not moves(p):
                    stored.append(optax.MaskedNode())
                    continue
                try:
                    stored.append(rows[label].links[k].start(p, j, paths[i]))
                except ValueError as error:
                    raise ValueError(f"at {paths[i]!r}, {error}") from None
            fields[slot.name] = unflatten_stored(params, stored)
        states.append(link.state_type(**fields))
    return rows[0].join(states)


def run_rows(
    rows: tuple[Row, ...], labels: Labels, updates: Any, state: Any, params: Any, call: Call
) -> tuple[Any, Any]:
    """One optimizer step on every leaf; returns the updates, or the new parameters.

    Args:
      rows: with the same links but for numbers.
      labels: those of the updates, with an entry for each None leaf too.
      updates: the gradients.
      state: what `init_rows` or the last step returned.
      params: the parameters; None if no rule reads them.
      call: its extra arguments are for others in a chain, to all of which Optax passes them.
    """
    apply = call.apply
    links, states = rows[0].links, rows[0].split(state)
    leaves, treedef = jax.tree.flatten(updates, is_leaf=lambda x: x is None)
    counts = [
        getattr(s, link.counts[0]) if link.counts else None
        for link, s in zip(links, states, strict=True)
    ]
    # A schedule of a link without a count of its own, in a group, reads the member's.
    first = next((count for count in counts if count is not None), None)
    counts = [first if count is None else count for count in counts]
    rules = [[link.rule for link in row.links] for row in rows]
    structures, values = shared(rules, counts, leaves)
    # For each link, for each of its slots, what is stored for each leaf; renewed in place.
    stored = [
        [align_slot(treedef, updates, getattr(s, slot.name)) for slot in link.rule.slots]
        for link, s in zip(links, states, strict=True)
    ]
    needed = apply or any(link.rule.needs_params for row in rows for link in row.links)
    param_leaves = align_params(treedef, params, needed, apply)
    masks = [
        [link.mask and link.mask.flatten(params, treedef, param_leaves) for link in row.links]
        for row in rows
    ]

    # Leaves that share a program: the row, the links, the formats, the dtypes and the shape.
    alike: dict[Any, list[int]] = {}
    arrays: dict[int, Leaf] = {}
    results = list(param_leaves) if apply else list(leaves)
    for i, (g, p, label) in enumerate(zip(leaves, param_leaves, labels, strict=True)):
        if g is None:
            continue
        if label is None:
            results[i] = p if apply else jnp.zeros_like(g)
            continue
        used = tuple(k for k, mask in enumerate(masks[label]) if mask is None or mask[i])
        old = tuple(tuple(slot[i] for slot in stored[k]) for k in used)
        formats = tuple(tuple(map(format_of, slots)) for slots in old)
        if not moves(g) and {fmt for slots in formats for fmt in slots} == {None}:
            results[i] = p if apply else jnp.zeros_like(g)  # As that of an integer should be.
            continue
        try:
            g_dtype = check_leaf(g, p, old, formats)
            dtype = leaf_dtype(p) if apply else _update_dtype(g_dtype, p)
            kind = (label, used, formats, dtype, np.shape(g), g_dtype)
            if kind not in alike:
                for k, its in zip(used, formats, strict=True):
                    links[k].check_formats(its)
        except (TypeError, ValueError) as error:
            raise ValueError(f"at {leaf_paths(updates)[i]!r}, {error}") from None
        salt = _salt(formats, first, i)
        arrays[i] = Leaf(g, old, p if needed else None, salt)
        alike.setdefault(kind, []).append(i)

    kinds = [
        Kind(Program(formats, dtype, apply), (label, used), [arrays[i] for i in indices])
        for (label, used, formats, dtype, *_), indices in alike.items()
    ]
    for (_, used, *_), indices, stepped in zip(
        alike, alike.values(), run(kinds, structures, values, call.ok), strict=True
    ):
        for i, (result, new) in zip(indices, stepped, strict=True):
            results[i] = result
            for k, slots in zip(used, new, strict=True):
                for slot, x in zip(stored[k], slots, strict=True):
                    slot[i] = x

    new_states = []
    for link, s, slots in zip(links, states, stored, strict=True):
        fields = {name: counted(getattr(s, name), call) for name in link.counts}
        for slot, xs in zip(link.rule.slots, slots, strict=True):
            fields[slot.name] = unflatten_slot(treedef, updates, xs)
        new_states.append(link.state_type(**fields))
    return jax.tree.unflatten(treedef, results), rows[0].join(new_states)


def _described(state: Any) -> str:
    return f"a tuple of {len(state)}" if isinstance(state, tuple) else type(state).__name__


def _update_dtype(g_dtype: Any, p: Any) -> Any:
    """The gradient's dtype, widened to a wider parameter's, which a narrower update would round."""
    return g_dtype if p is None else wider_dtype(g_dtype, leaf_dtype(p))


def _salt(formats: Any, count: Any, index: int) -> Salt | None:
    """What makes the random bits of a leaf in a step its own; None where none are needed."""
    if not any(fmt is not None and fmt.stochastic for slots in formats for fmt in slots):
        return None
    if count is None:
        raise ValueError(
            "its state has no step count, which stochastic rounding needs: store it otherwise."
        )
    return salt_of_moments(count, index)
