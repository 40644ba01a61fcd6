"""Leaving out the optimizer steps whose gradient or loss cannot be right."""

import warnings
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax._types import Leaf, Number, Params, Result, State, Updates
from adam_jax.engine.call import Body, Call, check_state
from adam_jax.engine.chain import inner_body
from adam_jax.engine.layers import Layers
from adam_jax.engine.leafwise import Norm, global_norm
from adam_jax.engine.states import found, register
from adam_jax.engine.transformation import Transformation
from adam_jax.rules.pytrees import frozen_pytree, static
from adam_jax.validation import check_integer, check_number, check_scalar


class SpikeWindow(NamedTuple):
    """What spikes are judged by.

    Attributes:
      seen: int32 scalar, the finite norms seen so far; the next is written at seen % window.
      norms: the last gradient norms; 0 where there was none yet.
      values: the losses of the same steps, where `value=` is passed.
    """

    seen: jax.Array
    norms: jax.Array
    values: jax.Array


class SkipState(NamedTuple):
    """State of `skip_nonfinite(..., spike_sigmas=)`: `optax.ApplyIfFiniteState`, and the window."""

    notfinite_count: jax.Array
    last_finite: jax.Array
    total_notfinite: jax.Array
    inner_state: State
    spikes: SpikeWindow


register(
    SkipState,
    inner=["inner_state"],
    own=["notfinite_count", "last_finite", "total_notfinite", "spikes"],
    own_matters=False,
)


@frozen_pytree
class SkipNonfinite(Body):
    """The body of `skip_nonfinite`."""

    takes = ("value",)

    inner: Body
    spike_sigmas: Number
    max_consecutive: int = static()
    window: int = static()
    warn: bool = static()
    layers: Layers = static(default=Layers())

    @property
    def joins(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """If what is inside does."""
        return self.inner.joins

    def init(self, params: Params) -> State:
        """Optax's state, and the window if spikes are looked for."""
        zero = jnp.zeros([], jnp.int32)
        fields = (zero, jnp.asarray(True), jnp.zeros([], jnp.int32), self.inner.init(params))
        if self.spike_sigmas is None:
            return optax.ApplyIfFiniteState(*fields)
        none = (jnp.zeros(self.window), jnp.zeros(self.window))
        return SkipState(*fields, SpikeWindow(jnp.zeros([], jnp.int32), *none))

    def run(self, updates: Updates, state: State, params: Params, call: Call) -> Result:
        """One step of what is inside, or none."""
        expected = optax.ApplyIfFiniteState if self.spike_sigmas is None else SkipState
        check_state(state, expected, f"of type {expected.__name__}")
        # Not by isfinite of each element: this sum is the one that clipping needs as well.
        norm = global_norm(updates, self.layers)
        value = call.extra_args.get("value")
        good = jnp.isfinite(norm.value)
        if value is not None:
            good &= jnp.isfinite(check_scalar("value", value, instead="pass the mean loss"))
        own = {}
        if isinstance(state, SkipState):
            good, own["spikes"] = self.without_spikes(good, norm, value, state.spikes)
        its_call = call.only_if(good)
        result, inner_state = self.inner.run(updates, state.inner_state, params, its_call)
        bad = call.only_if(~good)
        own["notfinite_count"] = jnp.where(good, 0, bad.counted(state.notfinite_count))
        own["last_finite"] = good
        own["total_notfinite"] = bad.counted(state.total_notfinite)
        own = call.taken(own, {name: getattr(state, name) for name in own})
        if self.warn:
            count = own["notfinite_count"]
            # Once for each time that the limit is passed.
            passed = (count == self.max_consecutive + 1) & (count != state.notfinite_count)
            if isinstance(passed, jax.core.Tracer):
                jax.lax.cond(passed, self.call_back, lambda count: None, count)
            elif passed:
                _warn(int(count))
        return result, state._replace(inner_state=inner_state, **own)

    def without_spikes(
        self, good: jax.Array, norm: Norm, value: Leaf, spikes: SpikeWindow
    ) -> tuple[jax.Array, SpikeWindow]:
        """Whether this step is none, and the window with it in; only finite ones are written."""
        finite, where = good, spikes.seen % self.window
        # An infinite one in the window would make NaN of its mean.
        size = jnp.minimum(norm.value * norm.unit, jnp.finfo(jnp.float32).max)
        new = {"norms": size} if value is None else {"norms": size, "values": value}
        enough = spikes.seen >= self.window // 2
        filled = jnp.minimum(spikes.seen, self.window).astype(jnp.float32)
        present = jnp.arange(self.window) < spikes.seen
        for name, x in new.items():
            x, seen = jnp.asarray(x, jnp.float32), getattr(spikes, name)
            mean = jnp.sum(seen) / jnp.maximum(filled, 1)
            squares = jnp.where(present, (seen - mean) ** 2, 0)
            deviation = jnp.sqrt(jnp.sum(squares) / jnp.maximum(filled - 1, 1))
            # Of equal numbers it is zero, and their mean is not quite one of them.
            deviation = jnp.maximum(deviation, 1e-6 * jnp.abs(mean))
            good &= ~(enough & (x > mean + self.spike_sigmas * deviation))
            new[name] = jnp.where(finite, seen.at[where].set(x), seen)
        seen = jnp.where(finite, spikes.seen + 1, spikes.seen)
        # Never overflows, and keeps its place in the ring.
        seen = jnp.where(seen >= 2 * self.window, seen - self.window, seen)
        return good, spikes._replace(seen=seen, **new)

    def call_back(self, count: jax.Array) -> None:
        """Warns on the host, from inside the program."""
        # vmap turns the condition into a select, and calls for every model.
        jax.debug.callback(
            lambda n: _warn(int(n)) if n == self.max_consecutive + 1 else None, count
        )


def _warn(count: int) -> None:
    warnings.warn(
        f"{count} optimizer steps in a row were skipped: the gradient or the loss is not finite, or"
        f" a spike. Parameters and state are as they were before the first of them.",
        stacklevel=2,
    )


def skip_nonfinite(
    inner: optax.GradientTransformation,
    max_consecutive: int = 10,
    *,
    spike_sigmas: jax.typing.ArrayLike | None = None,
    window: int = 128,
    warn: bool = False,
) -> Transformation:
    """Leaves out the steps whose gradient or loss is NaN, infinite, or on request a spike.

        (θ, state) ← inner's if ‖g‖ is finite, else (θ, state)

    A skipped step changes nothing but the counters: no moment, no count of a schedule, no weight
    decay. Nothing is applied after the limit either; `skipped(state)` reads the counters and warns.

    Args:
      inner: any Optax transformation. An `optax.chain` with members of this package in it counts as
        `chain`. Through `update` another's step costs what it does in `apply_if_finite`; through
        `step` it is taken in place.
      max_consecutive: skipped steps in a row after which something must be wrong: the limit.
      spike_sigmas: also skips where ‖g‖, or the loss if it is passed as `value=`, is above the mean
        of the last `window` plus so many of their standard deviations; 6 is usual. None does not.
        Spikes are written into the window, so that a new level is accepted after a while. Pass
        `value=` in every step or in none.
      window: finite steps that spikes are judged by; once it is half full.
      warn: warns from inside the compiled program as soon as the limit is passed. That is a call
        back to Python, with which a program can be neither exported nor kept in JAX's persistent
        compilation cache, and which costs 5 % of a step on CPU even if it is never made.

    Returns:
      A transformation with Optax's `ApplyIfFiniteState`; with spikes `SkipState`, that and a window
      of two numbers per step. `update` and `step` take `value=`, the loss.

    Raises:
      ValueError: an argument outside its range.

    Differs from Optax (`apply_if_finite`) in: after the limit the bad gradient is not let in.

    Reference: OLMo's `SkipStepOptimizer` and MaxText's `skip_step_on_spikes` for the window of 128
    and its first half, in which nothing counts as a spike.
    """
    check_integer("max_consecutive", max_consecutive, 0, instead="the usual value is 10")
    check_integer("window", window, 4, instead="the usual value is 128")
    if spike_sigmas is not None:
        instead = "the usual value is 6.0; None looks for no spikes"
        spike_sigmas = check_number("spike_sigmas", spike_sigmas, instead=instead)
    body = inner_body("inner", inner)
    return Transformation.around(SkipNonfinite(body, spike_sigmas, max_consecutive, window, warn))


class Skipped(NamedTuple):
    """The counters of `skip_nonfinite`: steps skipped in a row until now, and in the whole run."""

    consecutive: int
    total: int


def skipped(state: State, max_consecutive: int = 10) -> Skipped:
    """The counters in the state of `skip_nonfinite`, from wherever it is inside `state`.

    Args:
      state: an optimizer state, not traced.
      max_consecutive: warns if more steps than these were skipped in a row.

    Returns:
      `Skipped(consecutive, total)`; of several models under vmap, arrays of them.

    Raises:
      ValueError: no `skip_nonfinite` in there.
    """
    kinds = (optax.ApplyIfFiniteState, SkipState)
    states = found(state, lambda x: isinstance(x, kinds))
    if len(states) != 1:
        raise ValueError(
            f"state must have one skip_nonfinite in it, got {len(states)}: pass the state of"
            f" skip_nonfinite(...), or one around it."
        )
    counters = [np.asarray(x) for x in (states[0].notfinite_count, states[0].total_notfinite)]
    consecutive, total = (x if x.ndim else int(x) for x in counters)
    if np.max(consecutive) > max_consecutive:
        _warn(int(np.max(consecutive)))
    return Skipped(consecutive, total)  # pyright: ignore[reportArgumentType]
