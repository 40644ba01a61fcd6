"""Transformations of other libraries, as bodies."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.core
import jax.numpy as jnp
import optax

from adam_jax._types import (
    AnyTransformation,
    Function,
    Leaf,
    Params,
    PyTree,
    Result,
    State,
    Updates,
)
from adam_jax.engine.call import Body, Call
from adam_jax.engine.functions import zeros_for
from adam_jax.engine.trees import align_params, chosen
from adam_jax.engine.unrounded import rounded
from adam_jax.formats.dense import is_floating
from adam_jax.xla.barrier import kept_apart
from adam_jax.xla.once import if_due


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class OptaxBody(Body):
    """The body of a transformation of another library."""

    tx: optax.GradientTransformation

    def init(self, params: Params) -> State:
        """Its state before the first step."""
        return self.tx.init(params)

    def run(self, updates: Updates, state: State, params: Params, call: Call) -> Result:
        """Its step."""
        updates = rounded(updates)
        leaves = jax.tree.leaves(updates, is_leaf=lambda x: x is None)
        if any(g is None for g in leaves):
            return self.with_integers(leaves, updates, state, params, call)
        return self.own_step(updates, state, params, call)

    def with_integers(
        self, leaves: list[Leaf], updates: Updates, state: State, params: Params, call: Call
    ) -> Result:
        """Its step, with zeros instead of None for integers: Optax keeps a state for them."""
        treedef = jax.tree.structure(updates, is_leaf=lambda x: x is None)
        stored = align_params(treedef, params, needed=False, apply=call.apply)
        pairs = zip(leaves, stored, strict=True)
        given = [zeros_for(g, p) if g is None and not is_floating(p) else g for g, p in pairs]
        result, new = self.own_step(treedef.unflatten(given), state, params, call)
        results = [
            x if g is not None or is_floating(p) else p if call.apply else None
            for x, g, p in zip(treedef.flatten_up_to(result), leaves, stored, strict=True)
        ]
        return treedef.unflatten(results), new

    def own_step(self, updates: Updates, state: State, params: Params, call: Call) -> Result:
        """Its step, if it is to be taken."""

        def taken(updates: Updates, params: Params, state: State) -> Result:
            if call.apply:
                return stepped(self.tx, updates, state, params, call.extra_args)
            tx = optax.with_extra_args_support(self.tx)
            return tx.update(updates, state, params, **call.extra_args)

        if call.ok is None:
            return taken(updates, params, state)
        return taken_if(call, taken, updates, params, state)


def stepped(
    tx: AnyTransformation,
    grads: Updates,
    state: State,
    params: Params,
    extra_args: Mapping[str, Leaf],
) -> Result:
    """The transformation's own `step`, if it has one; else its update and Optax's apply_updates."""
    if (fused := getattr(tx, "step", None)) is not None:
        return fused(grads, state, params, **extra_args)
    updates, state = optax.with_extra_args_support(tx).update(grads, state, params, **extra_args)
    return optax.apply_updates(params, updates), state


def taken_if(
    call: Call,
    step: Callable[..., tuple[PyTree, PyTree]],
    updates: Updates,
    params: Params,
    state: State,
) -> Result:
    """The step of another library's transformation, taken where `call.ok`.

    Members of this package do not need it: they select each array in the loop that writes it.

    Args:
      call: with an `ok`.
      step: maps updates, params and state to the result and the new state.
      updates: the gradients.
      params: the parameters; the result of a skipped step if `call.apply`.
      state: the previous state.
    """
    if not isinstance(call.ok, jax.core.Tracer) and call.ok:
        return step(updates, params, state)
    step = jax.jit(step, inline=True)  # Traced once for all uses below.
    made = jax.eval_shape(step, updates, params, state)
    nothing = params if call.apply else jax.tree.map(jnp.zeros_like, made[0])
    old = nothing, state
    if not isinstance(call.ok, jax.core.Tracer):
        return old
    if not any(x.ndim for x in jax.tree.leaves(made[1])) or jax.eval_shape(lambda: old) != made:
        # Without arrays in the state, XLA fuses the select into the next operation and stores
        # nothing. A state that changes its dtypes cannot be returned from a loop or a branch.
        return chosen(call.ok, step(updates, params, state), old)
    if not call.apply:
        return jax.lax.cond(call.ok, lambda: step(updates, params, state), lambda: old)
    # In place; a branch copies its operands. Without the barrier, XLA hoists everything that
    # depends only on the gradient out of the loop, and stores it.
    return if_due(call.ok, lambda old: step(*kept_apart((updates, *old))), old)


def is_foreign(body: Body) -> bool:
    """Whether a body is a transformation of another library."""
    return isinstance(body, OptaxBody)


def parts_of(body: Body) -> list[tuple[Function, Function]]:
    """`init` and `update` of each transformation in an `optax.chain`; empty for another body.

    Optax's chain is a pair of closures. They are recognized by their code, and the parts are the
    contents of their cells.
    """
    if not isinstance(body, OptaxBody):
        return []
    inits, updates = (_held(f, g) for f, g in zip(body.tx, _OPTAX_CHAIN, strict=True))
    return list(zip(*inits, *updates, strict=True)) if len(inits) == len(updates) == 1 else []


_OPTAX_CHAIN = optax.chain(optax.identity())


def _held(f: Function, like: Function) -> list[Leaf]:
    """The contents of a function's closure, if it has the same code as `like`; else empty."""
    code = getattr(f, "__code__", None)
    return [cell.cell_contents for cell in f.__closure__ or ()] if code is like.__code__ else []  # pyright: ignore[reportFunctionMemberAccess]
