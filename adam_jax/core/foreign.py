"""Transformations of other libraries, as bodies."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import optax

from adam_jax._types import Function, Leaf, Params, PyTree, State
from adam_jax.core.step import Body, Step
from adam_jax.numerics import select
from adam_jax.xla.barrier import kept_apart
from adam_jax.xla.once import if_due


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Foreign(Body):
    """The body of a transformation of another library."""

    tx: optax.GradientTransformation

    def call(self) -> str:
        """The name of the function that made it."""
        # In a chain of Optax, its update takes extra arguments and passes none of them on.
        inside = _held(self.tx.update, _OPTAX_EXTRA.update)
        update = inside[0].update if inside else self.tx.update
        return getattr(update, "__qualname__", "optax").partition(".")[0]

    def init(self, params: Params) -> State:
        """Its state before the first step."""
        return self.tx.init(params)

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        """Its step, if it is to be taken; in place if new parameters are wanted."""
        tx, applies = optax.with_extra_args_support(self.tx), step.apply and step.last
        if step.apply:
            step.needed_params()
        applies &= not step.update_factors and all(isinstance(p, jax.Array) for p in step.p)

        def stepped(g: Sequence[Any], p: Sequence[Any], state: State) -> tuple[Any, State]:
            its = step.but(g=g, p=p, factors=())
            updates, state = tx.update(
                its.rounded_grads(), state, its.joined_params(), **step.extra
            )
            every = step.align(updates)
            u = [every[i] for i in step.here]
            return (optax.apply_updates(list(p), u) if applies else u), state

        g, p = step.rounded(), list(step.p)
        nothing = p if applies else None
        u, state = taken_if(step.ok, stepped, g, p, state, nothing)
        return step.with_results(u, [x.dtype for x in u], done=applies), state


def taken_if(
    ok: jax.Array | None,
    step: Callable[..., tuple[Any, PyTree]],
    g: Sequence[Any],
    p: Sequence[Any],
    state: State,
    nothing: Sequence[Any] | None,
) -> tuple[Sequence[Any], State]:
    """The step of another library's transformation, taken where `ok`.

    Members of this package do not need it: they select each array in the loop that writes it.

    Args:
      ok: boolean scalar; None for yes.
      step: maps gradients, parameters and state to the results and the new state.
      g: the gradients.
      p: the parameters.
      state: the previous state.
      nothing: the results of a skipped step, in place of which new ones are made; None for zeros.
    """
    traced = isinstance(ok, jax.core.Tracer)
    if ok is None or (not traced and ok):
        return step(g, p, state)
    step = jax.jit(step, inline=True)  # Traced once for all uses below.
    made = jax.eval_shape(step, g, p, state)
    in_place = nothing is not None
    old = (nothing if in_place else jax.tree.map(jnp.zeros_like, made[0])), state
    if not traced:
        return old
    if not any(x.ndim for x in jax.tree.leaves(made[1])) or jax.eval_shape(lambda: old) != made:
        # Without arrays in the state, XLA fuses the select into the next operation and stores
        # nothing. A state that changes its dtypes cannot be returned from a loop or a branch.
        return select(ok, step(g, p, state), old)
    if not in_place:
        return jax.lax.cond(ok, lambda: step(g, p, state), lambda: old)
    # In place; a branch copies its operands. Without the barrier, XLA hoists everything that
    # depends only on the gradient out of the loop, and stores it.
    return if_due(ok, lambda old: step(*kept_apart((g, *old))), old)


def parts_of(body: Body) -> list[tuple[Function, Function]]:
    """`init` and `update` of each transformation in an `optax.chain`; empty for another body.

    Optax's chain is a pair of closures. They are recognized by their code, and the parts are the
    contents of their cells.
    """
    if not isinstance(body, Foreign):
        return []
    inits, updates = (_held(f, g) for f, g in zip(body.tx, _OPTAX_CHAIN, strict=True))
    return list(zip(*inits, *updates, strict=True)) if len(inits) == len(updates) == 1 else []


_OPTAX_CHAIN = optax.chain(optax.identity())
_OPTAX_EXTRA = optax.with_extra_args_support(optax.GradientTransformation(*optax.identity()))


def _held(f: Function, like: Function) -> list[Leaf]:
    """The contents of a function's closure, if it has the same code as `like`; else empty."""
    code = getattr(f, "__code__", None)
    return [cell.cell_contents for cell in f.__closure__ or ()] if code is like.__code__ else []  # pyright: ignore[reportFunctionMemberAccess]
