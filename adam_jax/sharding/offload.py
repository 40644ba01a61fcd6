"""The state in the memory of the host, which comes to the device leaf by leaf in each step."""

import re

import jax
import jax.core
import optax

from adam_jax._types import Function, Leaf, Params, Result, State, Updates
from adam_jax.engine.call import Body, Call
from adam_jax.engine.transformation import Transformation, body_of
from adam_jax.engine.trees import leaf_paths
from adam_jax.rules.pytrees import frozen_pytree, static
from adam_jax.validation import check_expression


@frozen_pytree
class Offloaded(Body):
    """The body of `offload`.

    Attributes:
      inner: whose state it is.
      to: the kind of the host's memory.
      where: a regular expression that matches the whole path of what goes there.
    """

    inner: Body
    to: str = static()
    where: str = static()

    def init(self, params: Params) -> State:
        """The inner state, a part of it in the memory of the host."""
        return self.stored(self.inner.init(params))

    def run(self, updates: Updates, state: State, params: Params, call: Call) -> Result:
        """The inner step, between two transfers."""
        fetched = self.moved(state, lambda x: jax.device_put(x, jax.memory.Space.Device))
        result, new = self.inner.run(updates, fetched, params, call)
        return result, self.stored(new)

    def stored(self, state: State) -> State:
        """The state, with what belongs there in the memory of the host."""

        def store(x: Leaf) -> Leaf:
            if isinstance(x, jax.core.Tracer):
                return jax.device_put(x, jax.memory.Space.Host)
            return jax.device_put(x, x.sharding.with_memory_kind(self.to))

        return self.moved(state, store)

    def moved(self, state: State, move: Function) -> State:
        """The state, with what the expression matches moved; numbers stay on the device."""
        leaves, treedef = jax.tree.flatten(state)
        pairs = zip(leaves, self.on_host(state), strict=True)
        return treedef.unflatten([move(x) if host else x for x, host in pairs])

    def on_host(self, state: State) -> list[bool]:
        """Of each array of the state, whether it belongs in the memory of the host."""
        paths = leaf_paths(state, none_is_leaf=False)
        matches = (re.fullmatch(self.where, path) is not None for path in paths)
        leaves = zip(jax.tree.leaves(state), matches, strict=True)
        return [x.ndim > 0 and match for x, match in leaves]


def offloaded(body: Body) -> Offloaded | None:
    """The body, if it is one that `offload` made."""
    return body if isinstance(body, Offloaded) else None


def offload(
    tx: optax.GradientTransformation, to: str = "pinned_host", where: str = r".*"
) -> Transformation:
    r"""Keeps the state in the memory of the host, from where each step fetches it leaf by leaf.

    Bytes on the device are those of a few leaves. Each step sends the state both ways: 16 bytes per
    parameter for float32 moments, 4 for those of 8 bits, which are the ones to keep there.

    Args:
      tx: any Optax transformation; the state is its own.
      to: the kind of memory: pinned, which the device reads by itself. The other kind that devices
        list, "unpinned_host", is not one that a compiled program puts its results in.
      where: a regular expression that must match the whole path in the state of what goes there:
        `r".*/nu/.*"`, or `r".*/embedding/.*"` for all that belongs to those parameters. Numbers,
        such as the step count, stay on the device.

    Returns:
      A transformation to go around all others, `shard_state` too. Under jit the state has the types
      of host memory going in and coming out, and may be donated.

    Raises:
      ValueError: another kind of memory, or no regular expression.

    Differs from PyTorch (DeepSpeed's ZeRO-Offload) in: the step itself runs on the device.
    """
    if to != "pinned_host":
        raise ValueError(
            f"to must be 'pinned_host', got {to!r}: it is the memory of hosts that a device reads."
        )
    where = check_expression("where", where)
    return Transformation.around(Offloaded(body_of("tx", tx), to, where))
