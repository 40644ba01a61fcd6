"""The body of a chain, and the bodies of transformations that users pass to wrappers."""

from adam_jax._types import (
    AnyTransformation,
    Leaf,
    Params,
    Result,
    State,
    Updates,
)
from adam_jax.engine.call import PASS_ON, Body, Call
from adam_jax.engine.optax_body import is_foreign, parts_of
from adam_jax.engine.split import joined
from adam_jax.engine.transformation import body_of, whole
from adam_jax.engine.unrounded import as_wide_as, unrounded
from adam_jax.rules.pytrees import frozen_pytree


@frozen_pytree
class Chain(Body):
    """The body of `chain`."""

    bodies: tuple[Body, ...]

    @property
    def joins(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the last body does."""
        return self.bodies[-1].joins

    def init(self, params: Params) -> tuple[Leaf, ...]:
        """The tuple of the states."""
        return tuple(body.init(params) for body in self.bodies)

    def run(self, updates: Updates, state: State, params: Params, call: Call) -> Result:
        """One step of each body; the last one applies."""
        if not isinstance(state, tuple) or len(state) != len(self.bodies):
            raise ValueError(
                f"the state must be a tuple of {len(self.bodies)}, got {type(state).__name__}:"
                f" {PASS_ON}"
            )
        states, last = [], len(self.bodies) - 1
        for i, (body, s) in enumerate(zip(self.bodies, state, strict=True)):
            its_call = call._replace(apply=call.apply and i == last)
            theirs = params if body.joins and i == last else joined(params)
            updates, s = body.run(unrounded(updates), s, theirs, its_call)
            updates = as_wide_as(updates, theirs)
            states.append(s)
        return updates, tuple(states)


def inner_body(argument: str, tx: AnyTransformation) -> Body:
    """`body_of` for wrappers: an `optax.chain` that contains members of this package becomes a
    `Chain`.

    A wrapper skips the step of a `Chain` without copies. Optax's chain is a pair of closures, which
    `parts_of` recognizes. One that it does not recognize is treated as any other transformation:
    correct, but less cheap.

    Raises:
      ValueError: see `body_of`.
    """
    body = body_of(argument, tx)
    pairs = parts_of(body)
    if not pairs:
        return body
    bodies = tuple(inner_body(argument, whole(*pair)) for pair in pairs)
    return body if all(map(is_foreign, bodies)) else Chain(bodies)
