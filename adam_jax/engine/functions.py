"""`init` and `update` as functions that compare by value, pickle and trace."""

import jax
import jax.numpy as jnp

from adam_jax._types import Leaf, Params, PyTree, Result, State, Updates
from adam_jax.engine.call import Body, Call
from adam_jax.engine.trees import align_params, leaf_paths
from adam_jax.engine.unrounded import rounded
from adam_jax.formats.dense import is_floating


class OfBody:
    """`init` or `update`: a function that pickles, and a pytree of the body's numbers.

    Attributes:
      body: the body that it calls.
    """

    def __init__(self, body: Body) -> None:
        self.body = body
        self.__name__ = self.__qualname__ = type(self).__name__.lower()

    @property
    def __wrapped__(self) -> PyTree:
        """For code that inspects functions, such as chex: `inspect` finds the signature here."""
        return self.__call__  # pyright: ignore[reportAttributeAccessIssue]

    def tree_flatten(self) -> tuple[tuple[Body], None]:
        """As a pytree, it is its body."""
        return (self.body,), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: tuple[Body]) -> PyTree:
        """The inverse of `tree_flatten`."""
        del aux
        return cls(*children)


@jax.tree_util.register_pytree_node_class
class Init(OfBody):
    """The `init` of a `Transformation`."""

    def __call__(self, params: Params) -> PyTree:
        """The state before the first step."""
        return self.body.init(params)


@jax.tree_util.register_pytree_node_class
class Update(OfBody):
    """The `update` of a `Transformation`."""

    def __call__(
        self, updates: Updates, state: State, params: Params = None, **extra_args: Leaf
    ) -> Result:
        """Returns the updates, from the gradients, and the new state."""
        return run_body(self.body, updates, state, params, Call(False, None, extra_args))


def run_body(body: Body, updates: Updates, state: State, params: Params, call: Call) -> Result:
    """A body's step, with floating-point gradients or None only.

    Gradients of integers, booleans and keys (float0 from `jax.grad`, or integers) are None inside.
    Outside, their updates are zeros that `optax.apply_updates` can add.
    """
    leaves, treedef = jax.tree.flatten(updates, is_leaf=lambda x: x is None)
    fixed = {}
    if not all(map(is_floating, leaves)):
        fixed = _zeros_of_integers(leaves, align_params(treedef, params, False, call.apply))
        inside = [None if i in fixed else g for i, g in enumerate(leaves)]
        updates = treedef.unflatten(inside)
    try:
        result, new = body.run(updates, state, params, call)
    except ValueError as error:
        if "memory_space" in str(error):
            _check_memory(state)
        raise
    if call.apply:
        return result, new
    result = rounded(result)
    if fixed:
        results = treedef.flatten_up_to(result)
        result = treedef.unflatten([fixed.get(i, u) for i, u in enumerate(results)])
    return result, new


def _zeros_of_integers(leaves: list[Leaf], params: list[Leaf]) -> dict[int, Leaf]:
    """The updates of integers, booleans and keys, by the index of the gradient."""
    return {
        i: zeros_for(g, p)
        for i, (g, p) in enumerate(zip(leaves, params, strict=True))
        if not is_floating(g) and (g.dtype == jax.dtypes.float0 or not is_floating(p))
    }


def _check_memory(state: State) -> None:
    """Explains an error that JAX raised because the state is in host memory.

    It runs only after a failure, so it costs nothing in other steps.

    Raises:
      ValueError: some of the state is in host memory; the message has the first path.
    """
    for path, x in zip(leaf_paths(state, none_is_leaf=False), jax.tree.leaves(state), strict=True):
        if jax.typeof(x).memory_space == jax.memory.Space.Host:
            raise ValueError(
                f"at {path!r}, the state is in host memory, which JAX cannot compute with: step"
                f" with sharding.offload(tx), which made it, or move it to the device first,"
                f" jax.device_put(state, jax.memory.Space.Device)."
            ) from None


def zeros_for(g: Leaf, p: Leaf) -> Leaf:
    """The update of a leaf that does not move; None for a key, to which nothing can be added."""
    if p is None:  # Booleans add to every integer.
        return jnp.zeros(g.shape, bool if g.dtype == jax.dtypes.float0 else g.dtype)
    is_key = jnp.issubdtype(p.dtype, jax.dtypes.prng_key)
    return None if is_key else jnp.zeros_like(p)
