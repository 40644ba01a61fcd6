"""What a transformation of this package is inside: a body that answers calls."""

import abc
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from adam_jax._types import Count, Params, PyTree, Result, State, Updates
from adam_jax.engine.trees import chosen
from adam_jax.engine.unrounded import Unrounded

if TYPE_CHECKING:
    from adam_jax.engine.pipeline import Pipeline


class Call(NamedTuple):
    """What is asked of one step.

    A step that is not taken changes nothing, whatever the gradient is: the state stays as it is,
    updates are zero. Wrappers ask the methods; the leaf program and `OptaxBody` alone read `ok`.

    Attributes:
      apply: return the new parameters and not the updates.
      ok: boolean scalar: whether the step is taken; None for yes.
      extra_args: of `update`, such as `value=`.
      shardings: how leaves lie on several devices, by their paths, where that is known.
    """

    apply: bool
    ok: jax.Array | None = None
    extra_args: Mapping[str, Any] = {}
    shardings: Mapping[str, NamedSharding] = {}

    def only_if(self, condition: jax.Array) -> "Call":
        """The same call, of a step that is taken only if this boolean scalar is true as well."""
        return self._replace(ok=self.holds(condition))

    def holds(self, condition: jax.Array) -> jax.Array:
        """Whether the condition is true and the step is taken."""
        return condition if self.ok is None else condition & self.ok

    def taken(self, new: PyTree, old: PyTree) -> PyTree:
        """A tree of arrays if the step is taken, else another one."""
        return chosen(self.ok, new, old)

    def or_zeros(self, updates: Updates) -> Updates:
        """Updates if the step is taken, else zeros."""
        if isinstance(updates, Unrounded):
            return updates.then(self.ok)
        return jax.tree.map(lambda u: chosen(self.ok, u, 0), updates)

    def counted(self, count: Count) -> Count:
        """One more, if the step is taken; saturates at the largest integer, as in Optax."""
        return _counted(count, self.ok)


# As one program where it is not part of another: five operations on a number, of which each takes
# as long as the step of a small leaf.
@functools.partial(jax.jit, inline=True)
def _counted(count: Count, ok: jax.Array | None) -> Count:
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


def check_state(state: State, kind: type, described: str) -> None:
    """Checks that a state is what `init` of this transformation returns.

    Raises:
      ValueError: it is not; `described` is the kind with its article.
    """
    if not isinstance(state, kind):
        raise ValueError(f"the state must be {described}, got {type(state).__name__}: {PASS_ON}")


class NoPipeline(ValueError):
    """A body is no member of this package, nor around one that can be edited."""


class Body(abc.ABC):
    """What a `Transformation` does: a `frozen_pytree`, so that it compares by value and traces.

    Attributes:
      takes: the names of the extra arguments that it reads.
      joins: its step takes `SplitParams` too, and returns a `SplitResult` then.
    """

    takes: tuple[str, ...] = ()
    joins: bool = False

    @abc.abstractmethod
    def init(self, params: Params) -> State:
        """The state before the first step."""

    @abc.abstractmethod
    def run(self, updates: Updates, state: State, params: Params, call: Call) -> Result:
        """One step.

        Args:
          updates: the gradients, a tree of arrays and None, or one that is `Unrounded`.
          state: what `init` or the last step returned.
          params: the parameters, or None.
          call: what is asked.

        Returns:
          The updates, a tree like that of the gradients, or the new parameters; the new state.
        """

    def pipeline(self) -> "Pipeline":
        """The pipeline of a member, for who edits or groups it; others refuse.

        Raises:
          NoPipeline: always; the caller says what to write instead.
        """
        raise NoPipeline(type(self).__name__)

    def edited(self, edit: "Callable[[Pipeline], Pipeline]") -> "Body":
        """The same body with its pipeline edited; others refuse.

        Raises:
          NoPipeline: always; the caller says what to write instead.
        """
        raise NoPipeline(type(self).__name__)
