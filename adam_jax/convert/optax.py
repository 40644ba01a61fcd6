"""Converts states from and to Optax: the same arrays, in another tree if the trees differ."""

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
    """A state of `tx` that continues the run of another transformation, Optax's or one of ours.

    If the trees agree, as those of an alias and its twin in Optax do, it is `state` itself, moved
    to or from host memory if only one of the two is offloaded. Otherwise the moments are found in
    `state`, at any depth, and placed where `tx` keeps them, in the formats of `tx`: from
    `optax.MultiSteps` to `accumulate`, from `optax.partition` to `groups`, from
    `optax.inject_hyperparams` to `with_hyperparams`, from float32 to 8 bits. Between
    `optax.partition` and `groups` of several optimizers with the same labels, parts with the same
    state (such as Muon's) are moved unchanged.

    Args:
      state: what `init` or `update` of the other transformation returned.
      params: the parameters.
      tx: the transformation that continues.

    Returns:
      The state. The moments are equal bit for bit if both store them alike. Every count of
      optimizer steps, including those of schedules, is that of the moments. Hyperparameters in the
      state are those of `tx`. Anything else that `tx` keeps (an average of the parameters)
      restarts.

    Raises:
      ValueError: moments that only one of the two has, listed by path; arrays in `state` that would
        be lost, such as an average of the parameters or partly accumulated gradients.

    Example:
      >>> import adam_jax, jax.numpy as jnp, optax
      >>> params = {"w": jnp.ones(3)}
      >>> state = optax.MultiSteps(optax.adamw(1e-3), 4).init(params)
      >>> state = from_optax(state, params, adam_jax.accumulate(adam_jax.adamw(1e-3), 4))
      >>> print(type(state).__name__)
      AccumulateState
    """
    target = Target(params, tx)
    if _described(state) == _described(target.state):
        return _moved(state, target.state)
    slots, counts = read(state, params)
    alike = _alike(state, target.state)
    if lost := left_behind(_with_parts(state, dict.fromkeys(alike))):
        raise ValueError(
            f"state must have nothing but moments and counts to be moved to another tree, got"
            f" {listed(lost)}: convert after an optimizer step, and pass only the part with the"
            f" moments, optax.tree.get(state, 'ScaleByAdamState')."
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
    """A state of Optax's `tx` that continues a run of this package; see `from_optax`.

    Args:
      state: of a transformation of this package.
      params: the parameters.
      tx: Optax's, whose `init` determines how the moments are stored: 8-bit ones are decoded.

    Raises:
      ValueError: as in `from_optax`.
    """
    return from_optax(state, params, tx)


def _moved(state: State, like: PyTree) -> State:
    """The state in the memory of `like`: the device's or the host's."""
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True)
    if all(on_host(x) == on_host(y) for x, y in pairs):
        return state
    return jax.tree.map(lambda x, y: jax.device_put(x, jax.typeof(y).memory_space), state, like)


def _alike(state: State, initial: State) -> dict[str, State]:
    """The parts of an `optax.partition` whose trees agree, by label; they are moved unchanged."""
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
    """The state with parts of its `optax.partition` replaced."""

    def replaced(x: Leaf) -> Leaf:
        return optax.PartitionState({**x.inner_states, **parts}) if _is_partition(x) else x

    return jax.tree.map(replaced, state, is_leaf=_is_partition) if parts else state


def _is_partition(x: Leaf) -> bool:
    return isinstance(x, optax.PartitionState)


def _described(tree: PyTree) -> PyTree:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(np.shape(x), getattr(x, "dtype", None)) for x in leaves]
