"""A count of steps for each leaf, for leaves that get their first gradient late."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from adam_jax._types import Params, PyTree, State
from adam_jax.core.member import Member
from adam_jax.core.states import register
from adam_jax.core.step import Body, Step, check_state
from adam_jax.core.transformation import Transformation, body_of
from adam_jax.pytrees import frozen_pytree
from adam_jax.rates import scheduled_rates


class LeafCountsState(NamedTuple):
    """State of `count_per_leaf`; `counts` is a tree of the steps of each leaf."""

    counts: PyTree
    inner_state: State


register(LeafCountsState, inner=["inner_state"])


@frozen_pytree
class CountPerLeaf(Body):
    """The body of `count_per_leaf`."""

    inner: Member

    def init(self, params: Params) -> LeafCountsState:
        counts = jax.tree.map(lambda _: jnp.zeros([], jnp.int32), params)
        return LeafCountsState(counts, self.inner.init(params))

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        check_state(state, LeafCountsState)
        counts = step.align(state.counts)
        out, inner_state = self.inner.run(step.but(counts=tuple(counts)), state.inner_state)
        for i in step.here:
            counts[i] = step.counted(counts[i])
        return out.but(counts=None), LeafCountsState(step.back(state.counts, counts), inner_state)


def count_per_leaf(tx: optax.GradientTransformation) -> Transformation:
    """Counts the steps of each leaf that have a gradient, for the bias correction of that leaf.

    With one count for all, a leaf whose gradient is None for 2,000 steps begins without bias
    correction: its first steps are 3 to 13 learning rates long. Schedules still count all steps.

    Args:
      tx: a member of this package, with any modifiers, or `groups` of one.

    Returns:
      A transformation with the state `LeafCountsState`. While all leaves have gradients, its steps
      are those of `tx`.

    Raises:
      ValueError: `tx` is not a member, or has a decay rate that is a schedule.

    Differs from Optax in: it has one count. This is PyTorch's, where each parameter has its own.
    """
    member = body_of("tx", tx)
    if not isinstance(member, Member):
        raise ValueError(
            f"tx must be a member of adam_jax, got {type(member).__name__}: write"
            f" count_per_leaf(adamw(...)), inside all wrappers."
        )
    if scheduled_rates(member.variants):
        raise ValueError("tx must have decay rates that are numbers, got a schedule of one.")
    return Transformation.around(CountPerLeaf(member))
