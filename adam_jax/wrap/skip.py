"""Skips optimizer steps whose gradient or loss is not finite or is a spike."""

import warnings
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax._types import Leaf, Number, Params, State
from adam_jax.core.stacked import Layers
from adam_jax.core.states import only, register
from adam_jax.core.step import Body, Step, check_state, select
from adam_jax.core.transformation import Transformation
from adam_jax.pytrees import exported, frozen_pytree, static
from adam_jax.validation import check_integer, check_number, check_scalar
from adam_jax.wrap.chain import inner_body
from adam_jax.wrap.clip import Norm, global_norm


@exported
class SpikeWindow(NamedTuple):
    """The recent steps that spikes are compared with; zeros where there is none yet."""

    seen: jax.Array  # The number of finite norms so far; the next is written at seen % window.
    norms: jax.Array
    values: jax.Array  # The losses of the same steps, where `value=` is passed.


class SkipState(NamedTuple):
    """State of `skip_nonfinite(..., spike_sigmas=)`: `optax.ApplyIfFiniteState` and the window."""

    notfinite_count: jax.Array
    last_finite: jax.Array
    total_notfinite: jax.Array
    inner_state: State
    spikes: SpikeWindow


register(SkipState, inner=["inner_state"], others_matter=False)


@frozen_pytree
class SkipNonfinite(Body):
    """The body of `skip_nonfinite`."""

    inner: Body
    spike_sigmas: Number
    max_consecutive: int = static()
    window: int = static()
    warn: bool = static()
    layers: Layers = static(default=Layers())

    def init(self, params: Params) -> State:
        zero = jnp.zeros([], jnp.int32)
        fields = (zero, jnp.asarray(True), jnp.zeros([], jnp.int32), self.inner.init(params))
        if self.spike_sigmas is None:
            return optax.ApplyIfFiniteState(*fields)
        none = (jnp.zeros(self.window), jnp.zeros(self.window))
        return SkipState(*fields, SpikeWindow(jnp.zeros([], jnp.int32), *none))

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        expected = optax.ApplyIfFiniteState if self.spike_sigmas is None else SkipState
        check_state(state, expected, f"of type {expected.__name__}")
        # Clipping needs the same sum, so this is cheaper than isfinite of each element.
        norm = global_norm(step, self.layers)
        value = step.extra.get("value")
        good = jnp.isfinite(norm.value)
        if value is not None:
            good &= jnp.isfinite(check_scalar("value", value, instead="pass the mean loss"))
        own = {}
        if isinstance(state, SkipState):
            good, own["spikes"] = self.without_spikes(good, norm, value, state.spikes)
        out, inner_state = self.inner.run(step.only_if(good), state.inner_state)
        bad = step.only_if(~good)
        count = jnp.where(good, 0, bad.counted(state.notfinite_count))
        total = bad.counted(state.total_notfinite)
        own |= {"notfinite_count": count, "last_finite": good, "total_notfinite": total}
        own = step.taken(own, {name: getattr(state, name) for name in own})
        if self.warn:
            limit = self.max_consecutive + 1
            alarm(own["notfinite_count"], state.notfinite_count, limit, SKIPPED)
        return out.but(ok=step.ok), state._replace(inner_state=inner_state, **own)

    def without_spikes(
        self, good: jax.Array, norm: Norm, value: Leaf, spikes: SpikeWindow
    ) -> tuple[jax.Array, SpikeWindow]:
        """Whether this step is not a spike, and the window with it, if it is finite."""
        # Bounded, since an infinite norm would make the window's mean NaN.
        size = jnp.minimum(norm.value * norm.unit, jnp.finfo(jnp.float32).max)
        new = {"norms": size} if value is None else {"norms": size, "values": value}
        finite, enough = good, spikes.seen >= self.window // 2
        filled = jnp.minimum(spikes.seen, self.window).astype(jnp.float32)
        present = jnp.arange(self.window) < spikes.seen
        for name, x in new.items():
            x, seen = jnp.asarray(x, jnp.float32), getattr(spikes, name)
            mean = jnp.sum(seen) / jnp.maximum(filled, 1)
            squares = jnp.where(present, (seen - mean) ** 2, 0)
            deviation = jnp.sqrt(jnp.sum(squares) / jnp.maximum(filled - 1, 1))
            # It is zero for equal numbers, and their mean is off by rounding.
            deviation = jnp.maximum(deviation, 1e-6 * jnp.abs(mean))
            good &= ~(enough & (x > mean + self.spike_sigmas * deviation))
            new[name] = seen.at[spikes.seen % self.window].set(x)
        # Prevents overflow and keeps the position in the ring.
        seen = spikes.seen + 1
        new["seen"] = jnp.where(seen >= 2 * self.window, seen - self.window, seen)
        return good, select(finite, spikes._replace(**new), spikes)


SKIPPED = (
    "skipped: the gradient or the loss is not finite, or a spike. Parameters and state are as they"
    " were before the first of them."
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
    inner: optax.GradientTransformation,
    max_consecutive: int = 10,
    *,
    spike_sigmas: jax.typing.ArrayLike | None = None,
    window: int = 128,
    warn: bool = False,
) -> Transformation:
    """Skips steps whose gradient or loss is NaN or infinite or, optionally, a spike.

        (θ, state) ← inner's if ‖g‖ is finite, else (θ, state)

    A skipped step changes only the counters: no moment, no schedule count, no weight decay. Bad
    steps are skipped after the limit too; `skipped(state)` reads the counters and warns.

    Args:
      inner: any Optax transformation.
      max_consecutive: the limit: with more consecutive skipped steps, something must be wrong.
      spike_sigmas: also skips steps where ‖g‖, or the loss passed as `value=`, exceeds the mean of
        the last `window` values by this many of their standard deviations; 6 is usual. None skips
        no spikes. Spikes enter the window, so a new level is accepted after a while. Pass `value=`
        in every step or in none.
      window: finite steps that spikes are compared with; detection starts when it is half full.
      warn: warns from inside the compiled program as soon as the limit is exceeded. The program
        then contains a callback to Python, can be neither exported nor kept in JAX's persistent
        compilation cache, and costs 5 % of a step on CPU even if the callback never runs.

    Returns:
      A transformation with Optax's `ApplyIfFiniteState`; with `spike_sigmas` a `SkipState`, which
      adds a window of two numbers per step. `update` and `step` take `value=`, the loss.

    Raises:
      ValueError: an argument outside its range.

    Differs from Optax (`apply_if_finite`) in: after the limit bad gradients are still skipped.

    Reference: OLMo's `SkipStepOptimizer` and MaxText's `skip_step_on_spikes` for the window of 128
    and its first half, in which nothing counts as a spike.
    """
    check_integer("max_consecutive", max_consecutive, 0, instead="the usual value is 10")
    check_integer("window", window, 4, instead="the usual value is 128")
    if spike_sigmas is not None:
        instead = "the usual value is 6.0; None detects no spikes"
        spike_sigmas = check_number("spike_sigmas", spike_sigmas, instead=instead)
    body = inner_body("inner", inner)
    return Transformation.around(SkipNonfinite(body, spike_sigmas, max_consecutive, window, warn))


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
    kinds = (optax.ApplyIfFiniteState, SkipState)
    instead = "pass the state of skip_nonfinite(...), or of a transformation around it"
    own = only(state, lambda x: isinstance(x, kinds), "skip_nonfinite", instead)
    counters = [np.asarray(x) for x in (own.notfinite_count, own.total_notfinite)]
    if (most := int(np.max(counters[0]))) > max_consecutive:
        _warn(most, SKIPPED)
    return Skipped(*(x if x.ndim else int(x) for x in counters))  # pyright: ignore[reportArgumentType]
