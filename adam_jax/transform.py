"""From a row of links to an Optax transformation, with update and apply in one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_jax.body import Body, Call
from adam_jax.formats.dtypes import moves
from adam_jax.formats.policy import SlotDType, check_slot_dtype
from adam_jax.leaves import align_params, cast
from adam_jax.link import Link
from adam_jax.row import Row
from adam_jax.rules.base import Rule


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Foreign:
    """The body of a transformation that is not of this package: update, then apply."""

    tx: optax.GradientTransformation

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
        given = [_zeros_for(g, p) if g is None and not moves(p) else g for g, p in pairs]
        result, new = self.own_step(treedef.unflatten(given), state, params, call)
        results = [
            x if g is not None or moves(p) else p if call.apply else None
            for x, g, p in zip(treedef.flatten_up_to(result), leaves, stored, strict=True)
        ]
        return treedef.unflatten(results), new

    def own_step(self, updates: Any, state: Any, params: Any, call: Call) -> tuple[Any, Any]:
        """Its own, taken back where none is to be taken."""
        if call.apply:
            result, new = step(self.tx, updates, state, params, **call.extra_args)
        else:
            tx = optax.with_extra_args_support(self.tx)
            result, new = tx.update(updates, state, params, **call.extra_args)
        return unless(call, result, new, state, params)


def unless(call: Call, result: Any, new: Any, state: Any, params: Any) -> tuple[Any, Any]:
    """A step that was taken, taken back where it was not to be: a choice between whole trees.

    The members of this package need none: they choose each array in the loop that writes it.
    """
    if call.ok is None:
        return result, new
    nothing = params if call.apply else jax.tree.map(jnp.zeros_like, result)
    return chosen(call.ok, result, nothing), chosen(call.ok, new, state)


def chosen(condition: jax.Array, new: Any, old: Any) -> Any:
    """Everything from `new` or everything from `old`, by one scalar."""
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def body_of(argument: str, tx: Any) -> Body:
    """The body of a transformation, this package's or another's, to build others around.

    Raises:
      ValueError: it is not a transformation; `argument` is what the caller calls it.
    """
    if isinstance(tx, Transformation):
        return tx.body
    if not isinstance(tx, optax.GradientTransformation):
        verbs = (getattr(tx, name, None) for name in ("init", "update"))
        if isinstance(tx, type) or not all(map(callable, verbs)):
            raise ValueError(
                f"{argument} must be an Optax transformation, got {tx!r}: write adamw(1e-3), say."
            )
        tx = optax.GradientTransformation(tx.init, tx.update)  # optax.MultiSteps is none.
    return Foreign(tx)


def _init(body: Body, params: Any) -> Any:
    return body.init(params)


def _update(
    body: Body, updates: Any, state: Any, params: Any = None, **extra_args: Any
) -> tuple[Any, Any]:
    return _run(body, updates, state, params, Call(False, None, extra_args))


def _run(body: Body, updates: Any, state: Any, params: Any, call: Call) -> tuple[Any, Any]:
    """A body's step, in which every gradient is a floating-point number or None.

    Those of integers, booleans and keys (float0, as `jax.grad` returns, or integers) are None
    inside; outside their updates are zeros that `optax.apply_updates` can add.
    """
    leaves, treedef = jax.tree.flatten(updates, is_leaf=lambda x: x is None)
    if all(map(moves, leaves)):
        return body.run(updates, state, params, call)
    stored = align_params(treedef, params, needed=False, apply=call.apply)
    fixed = [
        i
        for i, (g, p) in enumerate(zip(leaves, stored, strict=True))
        if not moves(g) and (g.dtype == jax.dtypes.float0 or not moves(p))
    ]
    inside = [None if i in set(fixed) else g for i, g in enumerate(leaves)]
    result, new = body.run(treedef.unflatten(inside), state, params, call)
    if call.apply:
        return result, new
    results = treedef.flatten_up_to(result)
    for i in fixed:
        results[i] = _zeros_for(leaves[i], stored[i])
    return treedef.unflatten(results), new


def _zeros_for(g: Any, p: Any) -> Any:
    """The update of what does not move; None for a key, to which nothing can be added."""
    if p is None:  # Booleans add to every integer.
        return jnp.zeros(g.shape, bool if g.dtype == jax.dtypes.float0 else g.dtype)
    is_key = jnp.issubdtype(p.dtype, jax.dtypes.prng_key)
    return None if is_key else jnp.zeros_like(p)


@jax.tree_util.register_pytree_node_class
class Transformation(optax.GradientTransformationExtraArgs):
    """An Optax transformation with `step`, update and apply in one.

    It is a value: equal rules and numbers make equal transformations (Optax's closures never are),
    so it can be a static argument without retracing. It is a pytree as well: as a jit argument its
    numbers are traced, so that another learning rate does not retrace either.
    """

    __slots__ = ()

    @classmethod
    def of(cls, *links: Link, chained: bool = True) -> "Transformation":
        """Joins links, applied in this order; `chained` as in `Row`."""
        return cls.around(Row(links, chained))

    @classmethod
    def around(cls, body: Body) -> "Transformation":
        """Puts `init` and `update` around a body."""
        return cls(jax.tree_util.Partial(_init, body), jax.tree_util.Partial(_update, body))

    @property
    def body(self) -> Any:
        """What is behind `init` and `update`."""
        return self.update.args[0]  # pyright: ignore[reportAttributeAccessIssue]

    def step(self, grads: Any, state: Any, params: Any, **extra_args: Any) -> tuple[Any, Any]:
        """`update` and `optax.apply_updates`, in one pass over each leaf; see `adam_jax.step`."""
        return _run(self.body, grads, state, params, Call(True, None, extra_args))

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
    nu_dtype = check_slot_dtype("nu_dtype", nu_dtype)
    dtypes = tuple(nu_dtype if slot.magnitude else mu_dtype for slot in rule.slots)
    return Transformation.of(Link(rule, state_type, dtypes), chained=False)


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
      ValueError: a tree, a shape or a dtype that does not fit the state; the message has the path.
    """
    fused = getattr(tx, "step", None)
    if fused is not None:
        return fused(grads, state, params, **extra_args)
    tx = optax.with_extra_args_support(tx)
    updates, state = tx.update(grads, state, params, **extra_args)
    return optax.apply_updates(params, updates), state
