"""States from Optax and to Optax: the same arrays, in another tree where the trees differ."""

from collections.abc import Mapping

import jax
import numpy as np
import optax

from adam_jax._types import AnyTransformation, Leaf, Params, PyTree, State
from adam_jax.convert.entries import complain
from adam_jax.convert.moments import Target, left_behind, members, read
from adam_jax.convert.names import listed
from adam_jax.engine.leafwise import on_host
from adam_jax.engine.states import found


def from_optax(state: State, params: Params, tx: AnyTransformation) -> State:
    """A state of `tx` that goes on where another transformation stopped: Optax's, or one of ours.

    Where the trees agree, as those of an alias and its twin in Optax do, it is `state` itself,
    moved to or from the memory of the host if only one of the two is offloaded. Else
    the moments are looked for in `state`, at any depth, and put where `tx` keeps them, in the form
    in which it stores them: from `optax.MultiSteps` to `accumulate`, from `optax.partition` to
    `groups`, from `optax.inject_hyperparams` to `with_hyperparams`, from float32 to 8 bits. Between
    `optax.partition` and `groups` of several optimizers with the same labels, parts that keep the
    same (Muon's, say) are moved as they are.

    Args:
      state: what `init` or `update` of the other transformation returned.
      params: the parameters.
      tx: what goes on.

    Returns:
      The state, with the moments bit for bit where both store them alike, and every count of
      optimizer steps, those of schedules too, at that of the moments. Hyperparameters in the state
      are those of `tx`. What `tx` keeps besides (an average of the parameters) begins anew.

    Raises:
      ValueError: moments that only one of the two has, listed by path; arrays in `state` that would
        be lost, such as an average of the parameters or gradients in the middle of accumulation.

    Example:
      >>> import adam_jax, jax.numpy as jnp, optax
      >>> params = {"w": jnp.ones(3)}
      >>> state = optax.MultiSteps(optax.adamw(1e-3), 4).init(params)
      >>> state = from_optax(state, params, adam_jax.accumulate(adam_jax.adamw(1e-3), 4))
      >>> print(type(state).__name__)
      AccumulateState
    """
    target = Target(params, tx)
    if _described(state) == _described(target.initial):
        return _moved(state, target.initial)
    slots, counts = read(state, params)
    alike = _alike(state, target.initial)
    if lost := left_behind(_with_parts(state, dict.fromkeys(alike))):
        raise ValueError(
            f"state must have nothing but moments and counts to be moved to another tree, got"
            f" {listed(lost)}: convert behind an optimizer step, and pass the part with the moments"
            f" alone, optax.tree.get(state, 'ScaleByAdamState')."
        )
    wanted, given = ({"/".join(key) for key in x} for x in (target.kinds, slots))
    complain("state", wanted - given, given - wanted)
    wrong = set(map(type, members(state))) - set(target.kinds.values())
    if wrong:
        raise ValueError(
            f"state must be that of the same member as tx, got {listed(k.__name__ for k in wrong)}"
            f" for {listed({k.__name__ for k in target.kinds.values()})}."
        )
    return _with_parts(target.filled(slots, counts), alike)


def to_optax(state: State, params: Params, tx: AnyTransformation) -> State:
    """A state of Optax's `tx` that goes on where one of this package stopped; see `from_optax`.

    Args:
      state: of a transformation of this package.
      params: the parameters.
      tx: Optax's, whose `init` says how the moments are stored: 8-bit ones are decoded.

    Raises:
      ValueError: as `from_optax`.
    """
    return from_optax(state, params, tx)


def _moved(state: State, like: PyTree) -> State:
    """The state where `like` is: on the device, or in the memory of the host."""
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True)
    if all(on_host(x) == on_host(y) for x, y in pairs):
        return state
    return jax.tree.map(lambda x, y: jax.device_put(x, jax.typeof(y).memory_space), state, like)


def _alike(state: State, initial: State) -> dict[str, State]:
    """By label the parts of an `optax.partition` whose trees agree: no moments are looked for."""
    both = [found(x, _is_partition) for x in (state, initial)]
    if any(len(partitions) != 1 for partitions in both):
        return {}
    parts, like = (partitions[0].inner_states for partitions in both)
    return {
        label: _moved(part, like[label])
        for label, part in parts.items()
        if label in like and _described(part) == _described(like[label])
    }


def _with_parts(state: State, parts: Mapping[str, State]) -> State:
    """The state, with other parts in the `optax.partition` in it."""

    def replaced(x: Leaf) -> Leaf:
        return optax.PartitionState({**x.inner_states, **parts}) if _is_partition(x) else x

    return jax.tree.map(replaced, state, is_leaf=_is_partition) if parts else state


def _is_partition(x: Leaf) -> bool:
    return isinstance(x, optax.PartitionState)


def _described(tree: PyTree) -> PyTree:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(np.shape(x), getattr(x, "dtype", None)) for x in leaves]
