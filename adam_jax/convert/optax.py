"""States from Optax and to Optax: the same arrays, in another tree where the trees differ."""

import jax
import numpy as np

from adam_jax._types import AnyTransformation, Params, PyTree, State
from adam_jax.convert.entries import complain
from adam_jax.convert.moments import Target, left_behind, members, read
from adam_jax.convert.names import listed
from adam_jax.engine.leafwise import on_host


def from_optax(state: State, params: Params, tx: AnyTransformation) -> State:
    """A state of `tx` that goes on where another transformation stopped: Optax's, or one of ours.

    Where the trees agree, as those of an alias and its twin in Optax do, it is `state` itself,
    moved to or from the memory of the host if only one of the two is offloaded. Else
    the moments are looked for in `state`, at any depth, and put where `tx` keeps them, in the form
    in which it stores them: from `optax.MultiSteps` to `accumulate`, from `optax.partition` to
    `groups`, from `optax.inject_hyperparams` to `with_hyperparams`, from float32 to 8 bits.

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
        pairs = zip(jax.tree.leaves(state), jax.tree.leaves(target.initial), strict=True)
        if all(on_host(x) == on_host(like) for x, like in pairs):
            return state
        return jax.tree.map(
            lambda x, like: jax.device_put(x, jax.typeof(like).memory_space), state, target.initial
        )
    slots, counts = read(state, params)
    if lost := left_behind(state):
        raise ValueError(
            f"state must have nothing but moments and counts to be moved to another tree, got"
            f" {listed(lost)}: convert behind an optimizer step, and pass the part with the moments"
            f" alone, optax.tree.get(state, 'ScaleByAdamState')."
        )
    wanted, found = ({"/".join(key) for key in x} for x in (target.kinds, slots))
    complain("state", wanted - found, found - wanted)
    wrong = set(map(type, members(state))) - set(target.kinds.values())
    if wrong:
        raise ValueError(
            f"state must be that of the same member as tx, got {listed(k.__name__ for k in wrong)}"
            f" for {listed({k.__name__ for k in target.kinds.values()})}."
        )
    return target.filled(slots, counts)


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


def _described(tree: PyTree) -> PyTree:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(np.shape(x), getattr(x, "dtype", None)) for x in leaves]
