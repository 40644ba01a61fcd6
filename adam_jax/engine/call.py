"""What a transformation of this package is inside: a body that answers calls."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax


class Call(NamedTuple):
    """What is asked of one step.

    Attributes:
      apply: return the new parameters and not the updates.
      ok: boolean scalar, or None for yes. Where it is false, the step changes nothing: the state is
        the old one, the updates are zero, whatever the gradient is.
      extra_args: of `update`, such as `value=`.
      dtypes: of every leaf of the updates, as Optax would pass them; None where they have them. Who
        hands float32 on in their place says so here, for another's transformation: its state may
        take the dtypes of what it is given.
    """

    apply: bool
    ok: jax.Array | None = None
    extra_args: Mapping[str, Any] = {}
    dtypes: list[Any] | None = None


def counted(count: Any, call: Call) -> Any:
    """One more, if the step is taken; saturates at the largest integer, as Optax's counts do."""
    return _counted(count, call.ok)


# As one program where it is not part of another: five operations on a number, of which each takes
# as long as the step of a small leaf.
@functools.partial(jax.jit, inline=True)
def _counted(count: Any, ok: jax.Array | None) -> Any:
    one_more: Any = optax.safe_increment(count)
    return one_more if ok is None else jnp.where(ok, one_more, count)


PASS_ON = (
    "pass on what init or the last step of this transformation returned, in the order"
    " tx.update(grads, state, params) or adam_jax.step(tx, grads, state, params)."
)
"""What to write instead of a wrong state, which may be one of the other arguments."""


def in_words(kind: type) -> str:
    """The type of a state in an error, with its article and its fields."""
    fields = getattr(kind, "_fields", ())
    article = "an" if kind.__name__[0] in "AEIOaeio" else "a"
    return f"{article} {kind.__name__}" + (f"({', '.join(fields)})" if fields else "")


def check_state(state: Any, kind: type, described: str) -> None:
    """Checks that a state is what `init` of this transformation returns.

    Raises:
      ValueError: it is not; `described` is the kind with its article.
    """
    if not isinstance(state, kind):
        raise ValueError(f"the state must be {described}, got {type(state).__name__}: {PASS_ON}")


class Body(Protocol):
    """What a `Transformation` does: a `frozen_pytree`, so that it compares by value and traces.

    One that reads extra arguments has their names in a class attribute `takes`.
    """

    def init(self, params: Any) -> Any:
        """The state before the first step."""
        ...

    def run(self, updates: Any, state: Any, params: Any, call: Call) -> tuple[Any, Any]:
        """Returns the updates, or the new parameters, and the new state."""
        ...
