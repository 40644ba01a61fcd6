"""Skips optimizer steps whose gradient or loss is not finite."""

import warnings
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax._types import Params, State
from adam_jax.core.stacked import Layers
from adam_jax.core.states import only
from adam_jax.core.step import Body, Step, check_state
from adam_jax.core.transformation import Transformation
from adam_jax.pytrees import frozen_pytree, static
from adam_jax.validation import check_integer, check_scalar
from adam_jax.wrap.chain import inner_body
from adam_jax.wrap.clip import global_norm


@frozen_pytree
class SkipNonfinite(Body):
    """The body of `skip_nonfinite`."""

    inner: Body
    max_consecutive: int = static()
    warn: bool = static()
    layers: Layers = static(default=Layers())

    def init(self, params: Params) -> State:
        zero, total = jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32)
        return optax.ApplyIfFiniteState(zero, jnp.asarray(True), total, self.inner.init(params))

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        check_state(state, optax.ApplyIfFiniteState)
        # Clipping needs the same sum, so this is cheaper than isfinite of each element.
        good = jnp.isfinite(global_norm(step, self.layers).value)
        for name in ("value", "loss"):
            if (loss := step.extra.get(name)) is not None:
                good &= jnp.isfinite(check_scalar(name, loss, instead="pass the mean loss"))
        out, inner_state = self.inner.run(step.only_if(good), state.inner_state)
        bad = step.only_if(~good)
        count = jnp.where(good, 0, bad.counted(state.notfinite_count))
        total = bad.counted(state.total_notfinite)
        count, good, total = step.taken((count, good, total), state[:3])
        if self.warn:
            alarm(count, state.notfinite_count, self.max_consecutive + 1, SKIPPED)
        return out.but(ok=step.ok), optax.ApplyIfFiniteState(count, good, total, inner_state)


SKIPPED = (
    "skipped: the gradient or the loss is not finite. Parameters and state are as they were before"
    " the first of them."
)


def alarm(count: jax.Array, before: jax.Array, first: int, what: str) -> None:
    """Warns once each time the count of steps in a row reaches `first`, also inside a program."""
    reached = (count == first) & (count != before)

    def later(count: jax.Array) -> None:  # vmap turns the condition around it into a select.
        jax.debug.callback(lambda n: _warn(first, what) if n == first else None, count)

    if isinstance(reached, jax.core.Tracer):
        jax.lax.cond(reached, later, lambda count: None, count)
    elif reached:
        _warn(first, what)


def _warn(count: int, what: str) -> None:
    warnings.warn(f"{count} optimizer steps in a row were {what}", stacklevel=2)


def skip_nonfinite(
    inner: optax.GradientTransformation, max_consecutive: int = 10, *, warn: bool = False
) -> Transformation:
    """Skips steps whose gradient or loss is NaN or infinite.

        (θ, state) ← inner's if ‖g‖ is finite, else (θ, state)

    A skipped step changes only the counters: no moment, no schedule count, no weight decay. Bad
    steps are skipped after the limit too; `skipped(state)` reads the counters and warns.

    Args:
      inner: any Optax transformation.
      max_consecutive: the limit: with more consecutive skipped steps, something must be wrong.
      warn: warns from inside the compiled program as soon as the limit is exceeded. The program
        then contains a callback to Python, can be neither exported nor kept in JAX's persistent
        compilation cache, and costs 5 % of a step on CPU even if the callback never runs.

    Returns:
      A transformation with Optax's `ApplyIfFiniteState`. `update` and `step` take the loss
      as `value=`, Optax's name, or `loss=`, that of MaxText and Levanter.

    Raises:
      ValueError: an argument outside its range.

    Differs from Optax (`apply_if_finite`) in: after the limit bad gradients are still skipped.
    """
    check_integer("max_consecutive", max_consecutive, 0, instead="the usual value is 10")
    return Transformation.around(SkipNonfinite(inner_body("inner", inner), max_consecutive, warn))


class Skipped(NamedTuple):
    """The counters of `skip_nonfinite`: steps skipped in a row up to now, and in the whole run."""

    consecutive: int
    total: int


def skipped(state: State, max_consecutive: int = 10) -> Skipped:
    """The counters of `skip_nonfinite`, whose state may be nested anywhere in `state`.

    Args:
      state: an optimizer state, not traced.
      max_consecutive: warns if more steps than these were skipped in a row.

    Returns:
      `Skipped(consecutive, total)`; for several models under vmap, arrays.

    Raises:
      ValueError: `state` does not contain exactly one `skip_nonfinite`.
    """
    instead = "pass the state of skip_nonfinite(...), or of a transformation around it"
    own = only(state, lambda x: isinstance(x, optax.ApplyIfFiniteState), "skip_nonfinite", instead)
    counters = [np.asarray(x) for x in (own.notfinite_count, own.total_notfinite)]
    if (most := int(np.max(counters[0]))) > max_consecutive:
        _warn(most, SKIPPED)
    return Skipped(*(x if x.ndim else int(x) for x in counters))  # pyright: ignore[reportArgumentType]
