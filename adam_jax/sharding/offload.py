"""Keeps the state in host memory; each step moves it to the device leaf by leaf."""

import re

import jax
import jax.core
import optax

from adam_jax._types import Function, Leaf, Params, State
from adam_jax.core.step import Body, Step
from adam_jax.core.transformation import Transformation, body_of
from adam_jax.core.trees import leaf_paths
from adam_jax.pytrees import frozen_pytree, static
from adam_jax.validation import check_expression


@frozen_pytree
class Offloaded(Body):
    """The body of `offload`, with its arguments."""

    inner: Body
    to: str = static()
    where: str = static()

    def init(self, params: Params) -> State:
        """The inner state, with the selected arrays in host memory."""
        return self.stored(self.inner.init(params))

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        """The inner step, between two transfers."""
        fetched = self.moved(state, lambda x: jax.device_put(x, jax.memory.Space.Device))
        out, new = self.inner.run(step, fetched)
        return out, self.stored(new)

    def stored(self, state: State) -> State:
        """The state with the selected arrays in host memory."""

        def store(x: Leaf) -> Leaf:
            if isinstance(x, jax.core.Tracer):
                return jax.device_put(x, jax.memory.Space.Host)
            return jax.device_put(x, x.sharding.with_memory_kind(self.to))

        return self.moved(state, store)

    def moved(self, state: State, move: Function) -> State:
        """The state with the selected arrays moved."""
        leaves, treedef = jax.tree.flatten(state)
        pairs = zip(leaves, self.on_host(state), strict=True)
        return treedef.unflatten([move(x) if host else x for x, host in pairs])

    def on_host(self, state: State) -> list[bool]:
        """Whether each array of the state belongs in host memory."""
        pairs = zip(jax.tree.leaves(state), leaf_paths(state, none_is_leaf=False), strict=True)
        return [x.ndim > 0 and re.fullmatch(self.where, path) is not None for x, path in pairs]


def offload(
    tx: optax.GradientTransformation, to: str = "pinned_host", where: str = r".*"
) -> Transformation:
    r"""Keeps the state in host memory, from which each step fetches it leaf by leaf.

    The device holds only a few leaves of the state at a time. Each step transfers the state both
    ways: 16 bytes per parameter for float32 moments, 4 for 8-bit moments, which are preferable.

    Args:
      tx: any Optax transformation; the state is its own.
      to: the kind of memory: pinned host memory, which the device reads by itself. Devices also
        list "unpinned_host", but a compiled program cannot place its results there.
      where: a regular expression that must match the whole path of an array in the state to offload
        it: `r".*/nu/.*"`, or `r".*/embedding/.*"` for everything that belongs to those parameters.
        Scalars, such as the step count, stay on the device.

    Returns:
      A transformation to put around all others, including `shard_state`. Under jit the state has
      host-memory types on input and on output, and may be donated.

    Raises:
      ValueError: another kind of memory, or an invalid regular expression.

    Differs from PyTorch (DeepSpeed's ZeRO-Offload) in: the step itself runs on the device.
    """
    if to != "pinned_host":
        raise ValueError(
            f"to must be 'pinned_host', got {to!r}: it is the host memory that a device reads."
        )
    where = check_expression("where", where)
    return Transformation.around(Offloaded(body_of("tx", tx), to, where))
