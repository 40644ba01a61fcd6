"""A count of steps for each leaf, for leaves that get their first gradient late."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adam_jax._types import Params, PyTree, State
from adam_jax.core.member import Member
from adam_jax.core.states import register
from adam_jax.core.step import Body, NoMember, Step, check_state
from adam_jax.core.transformation import Transformation, body_of
from adam_jax.core.trees import unflatten_stored
from adam_jax.formats.dense import is_floating
from adam_jax.pytrees import frozen_pytree
from adam_jax.rates import scheduled_rates


class LeafCountsState(NamedTuple):
    """State of `count_per_leaf`; `counts` is a tree of the steps of each leaf."""

    counts: PyTree
    inner_state: State


register(LeafCountsState, inner=["inner_state"])


@frozen_pytree
class CountPerLeaf(Body):
    """The body of `count_per_leaf`: a step of the member for each leaf, with the leaf's count."""

    inner: Member

    def init(self, params: Params) -> LeafCountsState:
        none = [
            jnp.zeros([], jnp.int32) if is_floating(p) else optax.MaskedNode()
            for p in jax.tree.leaves(params)
        ]
        return LeafCountsState(unflatten_stored(params, none), self.inner.init(params))

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        check_state(state, LeafCountsState, "a LeafCountsState")
        counts, old, new = step.align(state.counts), state.inner_state, state.inner_state
        g: list[Any] = []
        dtypes: list[Any] = []
        for i in step.here:
            # Counts of other stages, such as that of a schedule, are those of all leaves.
            its = self.inner.with_counts(new, old, counts[i])
            out, new = self.inner.run(step.part([i]), its)
            counts[i] = step.counted(counts[i])
            g += out.finished()
            dtypes += out.dtypes
        if step.here:  # The member's own count is that of the leaf with the most steps.
            new = self.inner.with_counts(new, new, jnp.max(jnp.stack(jax.tree.leaves(counts))))
        state = LeafCountsState(step.back(state.counts, counts), new)
        return step.with_results(g, dtypes, done=step.last).widened(), state


def count_per_leaf(tx: optax.GradientTransformation) -> Transformation:
    """Counts the steps of each leaf that have a gradient, for the bias correction of that leaf.

    With one count for all, a leaf whose gradient is None for 2,000 steps begins without bias
    correction: its first steps are 3 to 13 learning rates long. Schedules still count all steps.

    Args:
      tx: a member of this package, with any modifiers, or `groups` of one, whose schedules then
        count the steps of the leaf.

    Returns:
      A transformation with the state `LeafCountsState`. While all leaves have gradients, its steps
      are those of `tx`.

    Raises:
      ValueError: `tx` is not a member, or has a decay rate that is a schedule.

    Differs from Optax in: it has one count. This is PyTorch's, where each parameter has its own.
    """
    instead = "write count_per_leaf(adamw(...)), inside all wrappers"
    try:
        member = body_of("tx", tx).member()
    except NoMember as error:
        raise ValueError(f"tx must be a member of adam_jax, got {error}: {instead}.") from None
    if scheduled_rates(member.variants):
        raise ValueError("tx must have decay rates that are numbers, got a schedule of one.")
    return Transformation.around(CountPerLeaf(member))
