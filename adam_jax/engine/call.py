"""The inside of a transformation of this package: a body that answers calls."""

import abc
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from adam_jax._types import Count, Leaf, Params, PyTree, Result, State, Updates
from adam_jax.engine.trees import chosen
from adam_jax.engine.unrounded import Unrounded

if TYPE_CHECKING:
    from adam_jax.engine.pipeline import Pipeline


class Call(NamedTuple):
    """The options of one step.

    A skipped step changes nothing, for any gradient: the state is unchanged and updates are zero.
    Wrappers use the methods; only the leaf program and `OptaxBody` read `ok`.

    Attributes:
      apply: return the new parameters instead of the updates.
      ok: boolean scalar, whether the step is taken; None for True.
      extra_args: those of `update`, such as `value=`.
      shardings: of the leaves, by path, where known.
    """

    apply: bool
    ok: jax.Array | None = None
    extra_args: Mapping[str, Leaf] = {}
    shardings: Mapping[str, NamedSharding] = {}

    def only_if(self, condition: jax.Array) -> "Call":
        """The same call, skipped unless this boolean scalar is also true."""
        return self._replace(ok=self.holds(condition))

    def holds(self, condition: jax.Array) -> jax.Array:
        """Whether the condition is true and the step is taken."""
        return condition if self.ok is None else condition & self.ok

    def taken(self, new: PyTree, old: PyTree) -> PyTree:
        """`new` if the step is taken, else `old`: trees of arrays."""
        return chosen(self.ok, new, old)

    def or_zeros(self, updates: Updates) -> Updates:
        """The updates if the step is taken, else zeros."""
        if isinstance(updates, Unrounded):
            return updates.then(self.ok)
        return jax.tree.map(lambda u: chosen(self.ok, u, 0), updates)

    def counted(self, count: Count) -> Count:
        """The count plus one if the step is taken; it saturates at the largest integer."""
        return _counted(count, self.ok)


# One program when called outside of a program: its five operations on a scalar would each take as
# long as the step of a small leaf.
@functools.partial(jax.jit, inline=True)
def _counted(count: Count, ok: jax.Array | None) -> Count:
    one_more: Count = optax.safe_increment(count)
    return one_more if ok is None else jnp.where(ok, one_more, count)


PASS_ON = (
    "pass on what init or the last step of this transformation returned, in the order"
    " tx.update(grads, state, params) or adam_jax.step(tx, grads, state, params)."
)
"""What to pass instead of a wrong state, which may be another argument in the wrong place."""


def in_words(kind: type) -> str:
    """A state type for error messages, with its article and fields."""
    fields = getattr(kind, "_fields", ())
    article = "an" if kind.__name__[0] in "AEIOaeio" else "a"
    return f"{article} {kind.__name__}" + (f"({', '.join(fields)})" if fields else "")


def check_state(state: State, kind: type, described: str) -> None:
    """Checks that a state has the type that `init` of this transformation returns.

    Raises:
      ValueError: it has not; `described` is the type with its article.
    """
    if not isinstance(state, kind):
        raise ValueError(f"the state must be {described}, got {type(state).__name__}: {PASS_ON}")


class NoPipeline(ValueError):
    """A body is not a member of this package, nor a wrapper of one that can be edited."""


class Body(abc.ABC):
    """The implementation of a `Transformation`: a `frozen_pytree`, so it compares by value and
    traces.

    Attributes:
      joins: whether its step accepts `SplitParams`, and then returns a `SplitResult`.
    """

    joins: bool = False

    @abc.abstractmethod
    def init(self, params: Params) -> State:
        """The state before the first step."""

    @abc.abstractmethod
    def run(self, updates: Updates, state: State, params: Params, call: Call) -> Result:
        """One step.

        Args:
          updates: the gradients: a tree of arrays and None, or an `Unrounded`.
          state: the result of `init` or of the last step.
          params: the parameters, or None.
          call: the options of this step.

        Returns:
          The updates, a tree like the gradients, or the new parameters; and the new state.
        """

    def pipeline(self) -> "Pipeline":
        """The pipeline of a member, for editing or grouping; other bodies refuse.

        Raises:
          NoPipeline: always; the caller adds what to write instead.
        """
        raise NoPipeline(type(self).__name__)

    def edited(self, edit: "Callable[[Pipeline], Pipeline]") -> "Body":
        """The same body with its pipeline edited; other bodies refuse.

        Raises:
          NoPipeline: always; the caller adds what to write instead.
        """
        raise NoPipeline(type(self).__name__)


def map_inside(f: Callable[[Body], Body], body: Body) -> PyTree:
    """The same body, with f of each body directly inside it."""
    return jax.tree.map(
        lambda x: f(x) if isinstance(x, Body) else x,
        body,
        is_leaf=lambda x: isinstance(x, Body) and x is not body,
    )
