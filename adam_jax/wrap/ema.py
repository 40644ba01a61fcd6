"""An average of the parameters, for evaluation: exponential, equal, or that of a decayed rate."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from adam_jax._types import Count, Leaf, Params, PyTree, State
from adam_jax.core.boxes import unboxed
from adam_jax.core.stacked import Layers
from adam_jax.core.states import only, register
from adam_jax.core.step import Body, Step, check_state, scaled
from adam_jax.core.transformation import Transformation
from adam_jax.core.trees import align_params, align_slot, fetched, is_stored, unflatten_stored
from adam_jax.formats import policy
from adam_jax.formats.dense import AT_LEAST_FLOAT32, is_floating, leaf_dtype
from adam_jax.formats.rounding import rounded_to_nearest
from adam_jax.numerics import exact
from adam_jax.pytrees import frozen_pytree, static
from adam_jax.rates import DecayRate, DecayRateLike, Schedule
from adam_jax.slots import Slot
from adam_jax.validation import check_integer, check_number
from adam_jax.xla.barrier import kept_apart


class EmaParamsState(NamedTuple):
    """State of `ema_params`: optimizer steps completed and the average of the parameters.

    Without `decay`, `rest` has the rounding errors of float32 leaves, as int8 in ema·2⁻²⁴/127.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    ema: PyTree
    rest: PyTree = ()


# The count belongs to the average, whose weights it determines: both restart together.
register(EmaParamsState)


@frozen_pytree
class EmaParams(Body):
    """The body of `ema_params`."""

    keeps_results = True

    rate: DecayRate | None
    debias: bool = static()
    start: int = static()
    window: int | None = static()
    emulates: Schedule | None = static()
    dtype: policy.SlotDType = static()
    layers: Layers = static(default=Layers())

    def init(self, params: Params) -> EmaParamsState:
        def start(p: Leaf, layer: Leaf) -> Leaf:
            if not is_floating(p):
                return jnp.copy(p)
            fmt = policy.resolve(self.dtype, layer, Slot("ema"))
            # A copy: params and state are both donated to the step.
            return fmt.encode(jnp.array(scaled(p), copy=True))

        def rest(x: Leaf) -> Leaf:
            is_float32 = getattr(x, "dtype", None) == jnp.float32
            return jnp.zeros_like(x, jnp.int8) if is_float32 else optax.MaskedNode()

        policy.check_mapped(params, self.dtype, Slot("ema"))
        started = list(map(start, jax.tree.leaves(params), self.layers.single(params)))
        state = EmaParamsState(jnp.zeros([], jnp.int32), unflatten_stored(params, started))
        if self.rate is not None:
            return state
        return state._replace(rest=unflatten_stored(params, list(map(rest, started))))

    def share(self, count: Count) -> jax.Array:
        """The weight of the newest parameters in the average."""
        t = count if self.start == 0 else jnp.maximum(count - self.start, 0)
        t = t if self.window is None else t % self.window
        if self.rate is not None:
            # Updated by (1-b)/(1-bᵗ), the average needs no bias correction when it is read.
            share = self.rate.complement * (self.rate.debiasing(t) if self.debias else 1)
        elif self.emulates is None:
            share = 1 / (t + 1)
        else:
            # `exact`: errors of w, the same in both steps that read it, then multiply only steps.
            dtype = jnp.result_type(float)
            now, later = (exact(jnp.asarray(self.emulates(x), dtype)) for x in (t, t + 1))
            share = jnp.where(later < 1, (now - later) / jnp.where(later < 1, 1 - later, 1), 1)
        return jnp.asarray(share if self.start == 0 else jnp.where(count < self.start, 1, share))

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        check_state(state, EmaParamsState)
        step.needed_params()
        share = self.share(state.count)

        def average(p: Leaf, old: PyTree, rest: Leaf = None) -> tuple[PyTree, Leaf]:
            if p is None:
                return old, rest
            if not is_floating(p):  # Copied unchanged, so that the average is a complete model.
                return step.taken(jnp.copy(p), old), rest
            x, dtype, fmt = scaled(p), leaf_dtype(p), policy.stored_format(old)
            # Forces the rounding: XLA:GPU would average the unrounded parameters.
            if dtype == jnp.bfloat16:
                x = rounded_to_nearest(x)
            elif dtype == jnp.float16:
                x = scaled(kept_apart(p))
            weight = jax.lax.convert_element_type(share, jnp.finfo(x.dtype).dtype)
            stored = fmt.decode(old, x.dtype)
            before = jnp.where(weight < 1, stored, x)  # The newest alone are so exactly.
            if hasattr(rest, "dtype"):
                # XLA:CPU would store what both results share, 8 bytes per parameter of all leaves.
                again = jax.lax.platform_dependent(rest, cpu=kept_apart, default=lambda x: x)
                after, _ = _compensated(before, rest, x, weight)
                _, error = _compensated(before, again, x, weight)
                return step.taken((after, error), (stored, rest))
            with jax.numpy_dtype_promotion("standard"):  # Complex and real numbers mix.
                after = before + weight * (x - before)
            return fmt.encode(step.taken(after, stored)), rest

        params = align_params(step.treedef, step.params, True, step.apply)
        trees, moved = state[1 : 3 if self.rate is None else 2], step.moved()
        columns = [step.align(tree) for tree in trees]
        for i, p in zip(step.here, moved, strict=True):
            params[i] = p
        for i in step.own:
            new = average(params[i], *(column[i] for column in columns))
            for column, x in zip(columns, new, strict=False):
                column[i] = x
        if step.apply and step.last and not step.is_split:
            step = step.with_results(moved, step.dtypes, done=True)
        return step, EmaParamsState(step.counted(state.count), *map(step.back, trees, columns))


def _compensated(old: Leaf, rest: Leaf, x: Leaf, weight: Leaf) -> tuple[Leaf, Leaf]:
    """The average and its rounding error: Kahan 1965."""
    error = jax.lax.convert_element_type(rest, x.dtype) * (2.0**-24 / 127) * old
    moved = exact(weight * (x - old - error)) + error
    new = old + moved
    error = (moved - (new - old)) / jnp.where(new == 0, 1, new) * (127 * 2.0**24)
    return new, jax.lax.convert_element_type(jnp.clip(jnp.round(error), -127, 127), jnp.int8)


def averaged(state: State, params: Params = None) -> Params:
    """The average of `ema_params`, whose state may be nested anywhere in `state`.

    Args:
      state: an optimizer state.
      params: the parameters, for an average in their dtypes. Without, codes become float32, and all
        else is as it is stored; integers, booleans and keys are the newest.

    Raises:
      ValueError: `state` does not contain exactly one `ema_params`, or is of other parameters.
    """

    def decoded(x: PyTree) -> PyTree:
        return policy.stored_format(x).decode(unboxed(x), jnp.float32) if is_stored(x) else x

    def cast(x: PyTree, p: Leaf) -> Leaf:
        x = p if isinstance(x, optax.MaskedNode) else x
        return jax.lax.convert_element_type(x, leaf_dtype(p)) if is_floating(p) else x

    instead = "pass the state of ema_params(...)"
    ema = fetched(only(state, lambda x: isinstance(x, EmaParamsState), "ema_params", instead).ema)
    ema, (leaves, treedef) = jax.tree.map(decoded, ema, is_leaf=is_stored), jax.tree.flatten(params)
    if params is None:
        return ema
    return treedef.unflatten(map(cast, align_slot(treedef, params, ema), leaves))


def ema_params(
    decay: DecayRateLike | None = None,
    debias: bool = True,
    *,
    start: int = 0,
    window: int | None = None,
    emulates: Schedule | None = None,
    dtype: policy.SlotDType = AT_LEAST_FLOAT32,
) -> Transformation:
    """Keeps an average of the parameters, which `averaged` reads; put it last in a `chain`.

        ema ← ema + s·(θ - ema)    s = (1-d)/(1-dᵗ⁺¹), 1/(t+1) or (w_t - w_t₊₁)/(1 - w_t₊₁)

    Args:
      decay: d, per optimizer step, 0 ≤ d < 1; usual values are 0.99 to 0.9999. None gives all
        parameters since `start` equal weights: the tail average.
      debias: of `decay`. True averages only over the steps taken. False uses the weight (1-d) from
        the first step on, so the initial parameters fade slowly.
      start: the optimizer steps before t = 0. During these, ema is the newest parameters.
      window: t is 0 again every so many steps: at start + k·window, ema is the average of the last
        `window` parameters. In between it has only those since then, at first few.
      emulates: w, a schedule from 1 to 0 by which the learning rate was not multiplied. ema is, to
        first order, where that would have led: Σ w_t·u_t from `start`, with the updates u_t.
      dtype: how ema is stored; see `mu_dtype` of `scale_by_adam`. Without `decay`, 1 byte per
        parameter beside float32 has rounding errors: ema is the mean of checkpoints to 2 ulp.

    Returns:
      A transformation that leaves the updates unchanged. `update` needs params.

    Raises:
      ValueError: an argument outside its range; params missing in `update`.

    Differs from Optax in: `optax.ema` averages updates; it and PyTorch's `AveragedModel` correct or
    copy the average when it is read.

    Reference: Polyak & Juditsky 1992; Kingma & Ba 2015, section 7.2; of `emulates` WSM, Tian et al.
    2025, theorem 3.1, https://arxiv.org/abs/2507.17634.
    """
    check_integer("start", start, 0, instead="0 averages from the first step on")
    if window is not None:
        check_integer("window", window, 1, instead="None never begins anew")
    if emulates is not None:
        first, instead = emulates(jnp.int32(0)), "write emulates=optax.linear_schedule(1, 0, 1000)"
        check_number("emulates(0)", first, 1, 1, closed=True, instead=instead)
        if decay is not None:
            raise ValueError(f"decay must be None with emulates, got {decay!r}: leave it out.")
    rate = None if decay is None else DecayRate.of("decay", decay)
    its = start, window, emulates, policy.check_nearest_dtype("dtype", dtype)
    return Transformation.around(EmaParams(rate, debias, *its))
