"""Optax transformations around a body, with `step`, which fuses update and apply."""

from typing import Any, TypeVar, cast

import jax
import jax.core
import optax
from jax.sharding import NamedSharding, PartitionSpec

from adam_jax._types import AnyTransformation, Function, Leaf, Params, State, Updates
from adam_jax.core.foreign import Foreign
from adam_jax.core.member import Member, Stage
from adam_jax.core.step import Body, call_of
from adam_jax.formats.policy import SlotDType, check_magnitude_dtype, check_slot_dtype
from adam_jax.rules.base import Rule

P = TypeVar("P")
"""The type of the parameters, which a step keeps."""


@jax.tree_util.register_pytree_node_class
class Method:
    """`init` or `update` of a body: a function, and a pytree of the body's numbers.

    Equinox (`closure_to_pytree`) and Optimistix trace the numbers in the closures of `optax.chain`.
    """

    def __init__(self, body: Body, name: str) -> None:
        self.body = body
        self.__name__ = self.__qualname__ = name

    @property
    def __wrapped__(self) -> Function:
        """For code that inspects functions, such as chex: `inspect` finds the signature here."""
        return getattr(self.body, self.__name__)

    def __call__(self, *args: Leaf, **kwargs: Leaf) -> Any:
        """Calls it."""
        made = self.__wrapped__(*args, **kwargs)
        return made if self.__name__ == "update" else _placed(made, (args, kwargs))

    def tree_flatten(self) -> tuple[tuple[Body], str]:
        """As a pytree, it is its body."""
        return (self.body,), self.__name__

    @classmethod
    def tree_unflatten(cls, name: str, children: tuple[Body]) -> "Method":
        """The inverse of `tree_flatten`."""
        return cls(*children, name)


@jax.tree_util.register_pytree_node_class
class Transformation(optax.GradientTransformationExtraArgs):
    """An Optax transformation with `step`, which fuses update and apply.

    It is a value: equal rules and numbers make equal transformations (Optax's closures never are
    equal), so it can be a static argument without retracing. It is also a pytree: as a jit argument
    its numbers are traced, so another learning rate does not retrace either.
    """

    __slots__ = ()

    @classmethod
    def around(cls, body: Body) -> "Transformation":
        """The transformation whose `init` and `update` are those of a body."""
        return cls(Method(body, "init"), Method(body, "update"))

    @property
    def body(self) -> Any:
        """The body that `init` and `update` belong to."""
        update: Any = self.update
        return update.body

    def step(self, grads: Updates, state: State, params: P, **extra_args: Leaf) -> tuple[P, State]:
        """`update` and `optax.apply_updates`, in one pass over each leaf; see `adam_jax.step`."""
        return self.body.step(grads, state, params, **extra_args)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Transformation) and self.body == other.body

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.body)

    def __repr__(self) -> str:
        return call_of(self.body)

    def tree_flatten(self) -> tuple[tuple[Body], None]:
        """As a pytree, it is its body."""
        return (self.body,), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: tuple[Body]) -> "Transformation":
        """The inverse of `tree_flatten`."""
        del aux
        return cls.around(*children)


def _placed(state: State, params: Params) -> State:
    """A state whose counts and numbers are on the mesh of the parameters, if outside jit.

    On one device, they could not be saved by several processes.
    """
    arrays = [x for x in jax.tree.leaves((params, state)) if isinstance(x, jax.Array)]
    if any(isinstance(x, jax.core.Tracer) for x in arrays):
        return state
    meshes = {x.sharding.mesh for x in arrays if isinstance(x.sharding, NamedSharding)}
    if len(meshes) != 1:
        return state
    where = NamedSharding(meshes.pop(), PartitionSpec())
    return jax.tree.map(
        lambda x: x if getattr(x, "committed", True) else jax.device_put(x, where), state
    )


def body_of(argument: str, tx: AnyTransformation) -> Body:
    """The body of any transformation, this package's or another's, for building wrappers.

    As in Optax, any object with `init` and `update` is a transformation.

    Raises:
      ValueError: it is not a transformation; `argument` is the caller's name for it.
    """
    if isinstance(tx, Transformation):
        return tx.body
    if isinstance(tx, optax.GradientTransformation):
        return Foreign(tx)
    pair: Any = getattr(tx, "init", None), getattr(tx, "update", None)
    if isinstance(tx, type) or not all(map(callable, pair)):
        raise ValueError(
            f"{argument} must be an Optax transformation, got {type(tx).__name__}: write"
            f" adamw(1e-3), say."
        )
    # As Optax accepts it; the two functions compare and hash even if the object does not.
    return Foreign(optax.GradientTransformation(*pair))


def from_functions(init: Function, update: Function) -> optax.GradientTransformation:
    """The transformation, this package's or another's, that has these two functions."""
    own = isinstance(update, Method)
    return (Transformation if own else optax.GradientTransformationExtraArgs)(init, update)


def scale_by_rule(
    rule: Rule, state_type: Any, mu_dtype: SlotDType, nu_dtype: SlotDType, name: str
) -> Transformation:
    """Makes a transformation of a rule.

    Args:
      rule: the operation on one array.
      state_type: a NamedTuple of the rule's slots, plus step counts.
      mu_dtype: storage of slots with a sign.
      nu_dtype: storage of magnitudes, if the rule has any.
      name: of the function that is called, for `repr`.
    """
    mu_dtype = check_slot_dtype("mu_dtype", mu_dtype)
    nu_dtype = check_magnitude_dtype("nu_dtype", nu_dtype)
    dtypes = tuple(nu_dtype if slot.magnitude else mu_dtype for slot in rule.slots)
    stage = Stage(rule, state_type, dtypes)
    return Transformation.around(Member.of(stage, chained=False, name=name))


def step(
    tx: optax.GradientTransformation, grads: Updates, state: State, params: P, **extra_args: Leaf
) -> tuple[P, State]:
    """One optimizer step: the new parameters and the new state.

    For any Optax transformation this is `tx.update` followed by `optax.apply_updates`. A
    transformation with its own `step`, as all of ours have, does both in one pass over each leaf,
    and adds the update to the parameter before anything is rounded to a 16-bit dtype. In ours, a
    None gradient leaves its parameter and its state unchanged. Integers, booleans and keys among
    the parameters have no state and stay unchanged; their gradient is None, float0 or an integer.

    Under a jit that donates them, pass parameters and state in the order in which they are
    returned. JAX pairs donated buffers with results of the same shape in order, and would otherwise
    copy the moments to the parameters' buffers (in float32 on a GPU, 44 bytes per parameter instead
    of 28).

    Args:
      tx: any Optax transformation.
      grads: a tree like `params`.
      state: the result of `tx.init` or of the last step.
      params: the parameters, in any floating-point dtype, which is kept.
      **extra_args: passed on to transformations that take them, such as `value=`.

    Returns:
      `(params, state)`.

    Raises:
      TypeError: `tx` is not a transformation.
      ValueError: a tree, a shape or a dtype does not match the state; the message has the path.
    """
    if not hasattr(tx, "init") or not hasattr(tx, "update"):
        raise TypeError(
            f"tx must be an Optax transformation, got {type(tx).__name__}: write"
            f" adam_jax.step(tx, grads, state, params) with tx = adam_jax.adamw(1e-3), say."
        )
    if (fused := getattr(tx, "step", None)) is not None:
        return fused(grads, state, params, **extra_args)
    theirs: Any = params
    updates, state = optax.with_extra_args_support(tx).update(grads, state, theirs, **extra_args)
    return cast(P, optax.apply_updates(theirs, updates)), state
