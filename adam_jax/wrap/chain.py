"""Transformations in sequence; the last one fuses update and apply."""

import itertools
from collections.abc import Sequence

import optax

from adam_jax._types import AnyTransformation, Params, State
from adam_jax.core.foreign import Foreign, parts_of
from adam_jax.core.member import Member
from adam_jax.core.step import PASS_ON, Body, Step, call_of
from adam_jax.core.transformation import Transformation, body_of, from_functions
from adam_jax.pytrees import frozen_pytree


@frozen_pytree
class Chain(Body):
    """The body of `chain`."""

    bodies: tuple[Body, ...]

    @classmethod
    def of(cls, bodies: Sequence[Body]) -> "Chain":
        """Checks that nothing changes the updates behind a body that reads the new parameters."""
        for first, second in itertools.pairwise(bodies):
            if first.keeps_results and not second.keeps_results:
                name, other = (call_of(body).partition("(")[0] for body in (first, second))
                raise ValueError(
                    f"{name} must be last in a chain, got {other} behind it: it reads the new"
                    f" parameters. Write chain({other}(...), {name}(...))."
                )
        return cls(tuple(bodies))

    def init(self, params: Params) -> State:
        return tuple(body.init(params) for body in self.bodies)

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        if not isinstance(state, tuple) or len(state) != len(self.bodies):
            raise ValueError(
                f"the state must be a tuple of {len(self.bodies)}, got {type(state).__name__}:"
                f" {PASS_ON}"
            )
        states, last = [], len(self.bodies) - 1
        # Averages of parameters follow the step in its own loop; weights are split after them.
        while last > 0 and self.bodies[last].keeps_results and not step.is_split:
            last -= 1
        for i, (body, s) in enumerate(zip(self.bodies, state, strict=True)):
            out, s = body.run(step.but(last=step.last and i >= last), s)
            step = out.but(last=step.last).widened()
            states.append(s)
        return step, tuple(states)


def inner_body(argument: str, tx: AnyTransformation) -> Body:
    """`body_of` for wrappers, which skip the step of a `Chain` without copies.

    An `optax.chain` that contains members of this package becomes one, if `parts_of` recognizes it.
    """
    body = body_of(argument, tx)
    pairs = parts_of(body)
    if not pairs:
        return body
    bodies = tuple(inner_body(argument, from_functions(*pair)) for pair in pairs)
    return body if all(isinstance(x, Foreign) for x in bodies) else Chain.of(bodies)


def chain(*txs: optax.GradientTransformation) -> Transformation:
    """Applies transformations in sequence, as `optax.chain` does, and keeps `step`.

    Args:
      *txs: transformations of this package or any other; the updates of one are the gradients of
        the next. An empty chain passes gradients through unchanged.

    Returns:
      A transformation with the state of `optax.chain`, the tuple of the individual states. It
      compares by value, and its `step` is that of the last transformation.

    Raises:
      ValueError: an argument is not a transformation, or one follows `ema_params`.

    Differs from Optax in: between two transformations of this package updates are float32 or wider.
    Only after the last are they rounded to the gradient's dtype (or the parameter's, if wider).
    """
    if not txs:
        return Transformation.around(Member.of(name="chain"))
    bodies = [inner_body(f"txs[{i}]", tx) for i, tx in enumerate(txs)]
    return Transformation.around(Chain.of(bodies))
