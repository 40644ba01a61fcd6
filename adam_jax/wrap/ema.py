"""An exponential moving average of the parameters, for evaluation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from adam_jax._types import Leaf, Params, PyTree, State
from adam_jax.core.stacked import Layers
from adam_jax.core.states import register
from adam_jax.core.step import Body, Step, check_state, scaled
from adam_jax.core.transformation import Transformation
from adam_jax.core.trees import align_params, unflatten_stored
from adam_jax.formats.dense import AT_LEAST_FLOAT32, is_floating, leaf_dtype
from adam_jax.formats.policy import (
    SlotDType,
    check_mapped,
    check_nearest_dtype,
    resolve,
    stored_format,
)
from adam_jax.formats.rounding import rounded_to_nearest
from adam_jax.pytrees import frozen_pytree, static
from adam_jax.rates import DecayRate, DecayRateLike
from adam_jax.slots import Slot
from adam_jax.xla.barrier import kept_apart


class EmaParamsState(NamedTuple):
    """State of `ema_params`: optimizer steps completed and the average of the parameters."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    ema: PyTree


# The count belongs to the average, whose bias it corrects: both restart together.
register(EmaParamsState)


@frozen_pytree
class EmaParams(Body):
    """The body of `ema_params`."""

    keeps_results = True

    rate: DecayRate
    debias: bool = static()
    dtype: SlotDType = static()
    layers: Layers = static(default=Layers())

    def init(self, params: Params) -> EmaParamsState:
        def start(p: Leaf, layer: Leaf) -> Leaf:
            if not is_floating(p):
                return jnp.copy(p)
            fmt = resolve(self.dtype, layer, Slot("ema"))
            # A copy: params and state are both donated to the step.
            return fmt.encode(jnp.array(scaled(p), copy=True))

        check_mapped(params, self.dtype, Slot("ema"))
        started = map(start, jax.tree.leaves(params), self.layers.single(params))
        ema = unflatten_stored(params, list(started))
        return EmaParamsState(jnp.zeros([], jnp.int32), ema)

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        check_state(state, EmaParamsState, "an EmaParamsState")
        step.needed_params()
        weight = self.rate.complement
        if self.debias:
            # Updated by (1-b)/(1-bᵗ), the stored average needs no bias correction when read.
            weight = weight * self.rate.debiasing(state.count)

        def average(p: Leaf, old: PyTree) -> PyTree:
            if p is None:
                return old
            if not is_floating(p):  # Copied unchanged, so that the average is a complete model.
                return step.taken(jnp.copy(p), old)
            x, dtype, fmt = scaled(p), leaf_dtype(p), stored_format(old)
            # Forces the rounding: XLA:GPU would average the unrounded parameters.
            if dtype == jnp.bfloat16:
                x = rounded_to_nearest(x)
            elif dtype == jnp.float16:
                x = scaled(kept_apart(p))
            real = jnp.finfo(x.dtype).dtype
            before = fmt.decode(old, x.dtype)
            with jax.numpy_dtype_promotion("standard"):  # Complex and real numbers mix.
                after = before + jax.lax.convert_element_type(weight, real) * (x - before)
            return fmt.encode(step.taken(after, before))

        params = align_params(step.treedef, step.params, True, step.apply)
        entries, moved = step.align(state.ema), step.moved()
        for i, p in zip(step.here, moved, strict=True):
            params[i] = p
        for i in step.own:
            entries[i] = average(params[i], entries[i])
        ema = step.back(state.ema, entries)
        if step.apply and step.last and not step.is_split:
            step = step.with_results(moved, step.dtypes, done=True)
        return step, EmaParamsState(step.counted(state.count), ema)


def ema_params(
    decay: DecayRateLike, debias: bool = True, *, dtype: SlotDType = AT_LEAST_FLOAT32
) -> Transformation:
    """Keeps an exponential moving average of the parameters; put it last in a `chain`.

        ema ← ema + (1-d)/(1-dᵗ)·(θ - ema)

    Args:
      decay: d, per optimizer step, 0 ≤ d < 1; usual values are 0.99 to 0.9999.
      debias: True averages only over the steps taken. False uses the weight (1-d) from the first
        step on, so the initial parameters fade slowly.
      dtype: how the average is stored; see `mu_dtype` of `scale_by_adam`.

    Returns:
      A transformation that leaves the updates unchanged. `optax.tree.get(state, "ema")` is the
      average, ready to use: it is stored with bias correction, and has the newest integers,
      booleans and keys. `update` needs params.

    Raises:
      ValueError: a decay outside [0, 1); params missing in `update`.

    Differs from Optax in: `optax.ema` averages updates; it and PyTorch's `AveragedModel` correct or
    copy the average when it is read.

    Reference: Polyak & Juditsky 1992; Kingma & Ba 2015, section 7.2.
    """
    return Transformation.around(
        EmaParams(DecayRate.of("decay", decay), debias, check_nearest_dtype("dtype", dtype))
    )
