"""From a pipeline of stages to an Optax transformation, with update and apply in one."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import optax

from adam_jax.engine.call import Body, Call
from adam_jax.engine.functions import Init, Update, run_body, zeros_for
from adam_jax.engine.pipeline import Pipeline
from adam_jax.engine.stage import Stage
from adam_jax.engine.trees import align_params, cast
from adam_jax.formats.dtypes import moves
from adam_jax.formats.policy import SlotDType, check_magnitude_dtype, check_slot_dtype
from adam_jax.rules.base import Rule
from adam_jax.xla.barrier import kept_apart
from adam_jax.xla.once import if_due


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class OptaxBody:
    """The body of a transformation that is not of this package: update, then apply."""

    tx: optax.GradientTransformation

    @property
    def takes(self) -> list[str]:
        """The extra arguments that its signature names."""
        parameters = list(inspect.signature(self.tx.update).parameters.values())[3:]
        return [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]

    def init(self, params: Any) -> Any:
        """Its state before the first step."""
        return self.tx.init(params)

    def run(self, updates: Any, state: Any, params: Any, call: Call) -> tuple[Any, Any]:
        """Its step."""
        if call.dtypes is not None:
            updates = cast(updates, call.dtypes)
        leaves = jax.tree.leaves(updates, is_leaf=lambda x: x is None)
        if any(g is None for g in leaves):
            return self.with_integers(leaves, updates, state, params, call)
        return self.own_step(updates, state, params, call)

    def with_integers(
        self, leaves: list[Any], updates: Any, state: Any, params: Any, call: Call
    ) -> tuple[Any, Any]:
        """Its step, with zeros in the place of None for integers: Optax keeps a state for them."""
        treedef = jax.tree.structure(updates, is_leaf=lambda x: x is None)
        stored = align_params(treedef, params, needed=False, apply=call.apply)
        pairs = zip(leaves, stored, strict=True)
        given = [zeros_for(g, p) if g is None and not moves(p) else g for g, p in pairs]
        result, new = self.own_step(treedef.unflatten(given), state, params, call)
        results = [
            x if g is not None or moves(p) else p if call.apply else None
            for x, g, p in zip(treedef.flatten_up_to(result), leaves, stored, strict=True)
        ]
        return treedef.unflatten(results), new

    def own_step(self, updates: Any, state: Any, params: Any, call: Call) -> tuple[Any, Any]:
        """Its own, if it is to be taken."""

        def taken(updates: Any, params: Any, state: Any) -> tuple[Any, Any]:
            if call.apply:
                return step(self.tx, updates, state, params, **call.extra_args)
            tx = optax.with_extra_args_support(self.tx)
            return tx.update(updates, state, params, **call.extra_args)

        if call.ok is None:
            return taken(updates, params, state)
        return taken_if(call, taken, updates, params, state)


def taken_if(
    call: Call, step: Callable[..., tuple[Any, Any]], updates: Any, params: Any, state: Any
) -> tuple[Any, Any]:
    """A step of another's transformation, taken where `call.ok`.

    The members of this package do without: they choose each array in the loop that writes it.

    Args:
      call: with an `ok`.
      step: from the three that follow to the result and the new state.
      updates: the gradients.
      params: the parameters; the result where the step is not taken, if `call.apply`.
      state: the state before.
    """
    if not isinstance(call.ok, jax.core.Tracer) and call.ok:
        return step(updates, params, state)
    step = jax.jit(step, inline=True)  # Traced once for all that follows.
    made = jax.eval_shape(step, updates, params, state)
    nothing = params if call.apply else jax.tree.map(jnp.zeros_like, made[0])
    old = nothing, state
    if not isinstance(call.ok, jax.core.Tracer):
        return old
    if not any(x.ndim for x in jax.tree.leaves(made[1])) or jax.eval_shape(lambda: old) != made:
        # Without arrays in the state XLA fuses the choice into the next operation, and stores
        # nothing. And a state that changes its dtypes can be returned by no loop and no branch.
        return chosen(call.ok, step(updates, params, state), old)
    if not call.apply:
        return jax.lax.cond(call.ok, lambda: step(updates, params, state), lambda: old)
    # In place; a branch copies its operands. Without the barrier XLA computes what depends on the
    # gradient alone ahead of the loop, and stores it.
    return if_due(call.ok, lambda old: step(*kept_apart((updates, *old))), old)


def chosen(condition: jax.Array, new: Any, old: Any) -> Any:
    """Everything from `new` or everything from `old`, by one scalar."""
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def body_of(argument: str, tx: Any) -> Body:
    """The body of a transformation, this package's or another's, to build others around.

    As in Optax, any object with an `init` and an `update` is one.

    Raises:
      ValueError: it is not a transformation; `argument` is what the caller calls it.
    """
    if isinstance(tx, Transformation):
        return tx.body
    if isinstance(tx, optax.GradientTransformation):
        return OptaxBody(tx)
    pair: Any = getattr(tx, "init", None), getattr(tx, "update", None)
    if isinstance(tx, type) or not all(map(callable, pair)):
        raise ValueError(
            f"{argument} must be an Optax transformation, got {tx!r}: write adamw(1e-3), say."
        )
    # As Optax takes it; the functions compare and hash where the object may not.
    return OptaxBody(optax.GradientTransformation(*pair))


def whole(init: Any, update: Any) -> optax.GradientTransformation:
    """The transformation, this package's or another's, that has these two functions."""
    own = isinstance(update, Update)
    return (Transformation if own else optax.GradientTransformationExtraArgs)(init, update)


@jax.tree_util.register_pytree_node_class
class Transformation(optax.GradientTransformationExtraArgs):
    """An Optax transformation with `step`, update and apply in one.

    It is a value: equal rules and numbers make equal transformations (Optax's closures never are),
    so it can be a static argument without retracing. It is a pytree as well: as a jit argument its
    numbers are traced, so that another learning rate does not retrace either.
    """

    __slots__ = ()

    @classmethod
    def of(cls, *stages: Stage, chained: bool = True) -> "Transformation":
        """Joins stages, applied in this order; `chained` as in `Pipeline`."""
        for stage in stages:
            stage.describe()
        return cls.around(Pipeline(stages, chained))

    @classmethod
    def around(cls, body: Body) -> "Transformation":
        """Puts `init` and `update` around a body."""
        return cls(Init(body), Update(body))

    @property
    def body(self) -> Any:
        """What is behind `init` and `update`."""
        return self.update.body  # pyright: ignore[reportAttributeAccessIssue]

    def step(self, grads: Any, state: Any, params: Any, **extra_args: Any) -> tuple[Any, Any]:
        """`update` and `optax.apply_updates`, in one pass over each leaf; see `adam_jax.step`."""
        return run_body(self.body, grads, state, params, Call(True, None, extra_args))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Transformation) and self.body == other.body

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.body)

    def __repr__(self) -> str:
        return f"Transformation({self.body})"

    def tree_flatten(self) -> tuple[tuple[Body], None]:
        """As a pytree, it is its body."""
        return (self.body,), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: tuple[Body]) -> "Transformation":
        """The opposite of `tree_flatten`."""
        del aux
        return cls.around(*children)


def scale_by_rule(
    rule: Rule, state_type: Any, mu_dtype: SlotDType, nu_dtype: SlotDType
) -> Transformation:
    """Lifts a rule to a transformation.

    Args:
      rule: what happens to one array.
      state_type: a NamedTuple of the rule's slots and, besides them, step counts.
      mu_dtype: how the slots with a sign are stored.
      nu_dtype: how magnitudes are stored, if the rule has any.
    """
    mu_dtype = check_slot_dtype("mu_dtype", mu_dtype)
    nu_dtype = check_magnitude_dtype("nu_dtype", nu_dtype)
    dtypes = tuple(nu_dtype if slot.magnitude else mu_dtype for slot in rule.slots)
    return Transformation.of(Stage(rule, state_type, dtypes), chained=False)


def step(
    tx: optax.GradientTransformation, grads: Any, state: Any, params: Any, **extra_args: Any
) -> tuple[Any, Any]:
    """One optimizer step: the new parameters and the new state.

    For any Optax transformation this is `tx.update` and then `optax.apply_updates`. A
    transformation with a `step` of its own, as all of ours have, does both in one pass over each
    leaf, and adds the update to the parameter before anything is rounded to a 16-bit dtype. A None
    among the gradients of ours leaves its parameter and its state alone. Integers, booleans and
    keys among the parameters keep no state and stay as they are: their gradient is None, float0 or
    an integer. (`schedule_free_adamw` is
    Optax's code around ours: there it is Optax that adds, and every gradient must be there.)

    Under a jit that donates them, parameters and state should be arguments in the order in which
    they are returned: JAX pairs donated buffers with results of the same shape in that order, and
    the moments would be copied to where the parameters were (in float32, 44 bytes per parameter
    instead of 28 on a GPU).

    Args:
      tx: any Optax transformation.
      grads: a tree like `params`.
      state: what `tx.init` or the last step returned.
      params: the parameters, in any floating-point dtype, which they keep.
      **extra_args: passed on to transformations that take them, such as `value=`.

    Returns:
      `(params, state)`.

    Raises:
      TypeError: `tx` is no transformation; an extra argument that one of ours takes is misspelt.
      ValueError: a tree, a shape or a dtype that does not fit the state; the message has the path.
    """
    if not hasattr(tx, "init") or not hasattr(tx, "update"):
        raise TypeError(
            f"tx must be an Optax transformation, got {type(tx).__name__}: write"
            f" adam_jax.step(tx, grads, state, params) with tx = adam_jax.adamw(1e-3), say."
        )
    fused = getattr(tx, "step", None)
    if fused is not None:
        return fused(grads, state, params, **extra_args)
    tx = optax.with_extra_args_support(tx)
    updates, state = tx.update(grads, state, params, **extra_args)
    return optax.apply_updates(params, updates), state
