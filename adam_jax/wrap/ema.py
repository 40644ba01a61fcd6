"""An exponential moving average of the parameters, for evaluation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from adam_jax._types import Leaf, Params, PyTree, Result, State, Updates
from adam_jax.engine.call import Body, Call, check_state
from adam_jax.engine.layers import Layers
from adam_jax.engine.leafwise import decoded, map_leaves, stored_like
from adam_jax.engine.states import register
from adam_jax.engine.transformation import Transformation
from adam_jax.engine.trees import unflatten_slot, unflatten_stored
from adam_jax.engine.unrounded import applied, promoted, rounded, values
from adam_jax.formats.dense import is_floating, leaf_dtype
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType, check_nearest_dtype, resolve
from adam_jax.formats.rounding import rounded_to_nearest
from adam_jax.rules.arithmetic import DecayRate, DecayRateLike
from adam_jax.rules.pytrees import frozen_pytree, static
from adam_jax.slots import Slot


class EmaParamsState(NamedTuple):
    """State of `ema_params`: optimizer steps completed and the average of the parameters."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    ema: PyTree


# The count belongs to the average, whose bias it corrects: both restart together.
register(EmaParamsState, own=["count", "ema"], own_matters=True)


@frozen_pytree
class EmaParams(Body):
    """The body of `ema_params`."""

    rate: DecayRate
    debias: bool = static()
    dtype: SlotDType = static()
    layers: Layers = static(default=Layers())

    def init(self, params: Params) -> EmaParamsState:
        """The initial average: the parameters."""

        def start(p: Leaf, layer: Leaf) -> Leaf:
            if not is_floating(p):
                return jnp.copy(p)
            fmt = resolve(self.dtype, layer, Slot("ema"))
            # A copy: params and state are both donated to the step.
            return fmt.encode(jnp.array(promoted(p), copy=True))

        started = map(start, jax.tree.leaves(params), self.layers.single(params))
        ema = unflatten_stored(params, list(started))
        return EmaParamsState(jnp.zeros([], jnp.int32), ema)

    def run(self, updates: Updates, state: State, params: Params, call: Call) -> Result:
        """Passes the updates on and averages the updated parameters."""
        check_state(state, EmaParamsState, "an EmaParamsState")
        if params is None:
            raise ValueError(
                "params must be given, got None: ema_params averages them. Write"
                " tx.update(grads, state, params)."
            )
        # Updates are rounded before the user adds them.
        moved = applied(values(updates) if call.apply else rounded(updates), params)
        weight = self.rate.complement
        if self.debias:
            # Updated by (1-b)/(1-bᵗ), the stored average needs no bias correction when read.
            weight = weight * self.rate.debiasing(state.count)

        def average(p: Leaf, old: PyTree) -> PyTree:
            if p is None:
                return old
            if not is_floating(p):  # Copied unchanged, so that the average is a complete model.
                return call.taken(jnp.copy(p), old)
            x, dtype = promoted(p), leaf_dtype(p)
            if x.dtype != dtype:
                # Forces the rounding: XLA:GPU would average the unrounded parameters.
                x = rounded_to_nearest(x, dtype)
            real = jnp.finfo(x.dtype).dtype
            before = decoded(old, x.dtype)
            with jax.numpy_dtype_promotion("standard"):  # Complex and real numbers mix.
                after = before + jax.lax.convert_element_type(weight, real) * (x - before)
            return stored_like(old, call.taken(after, before))

        ema = unflatten_slot(state.ema, map_leaves(average, moved, state.ema))
        return (moved if call.apply else updates), EmaParamsState(call.counted(state.count), ema)


def ema_params(
    decay: DecayRateLike, debias: bool = True, *, dtype: SlotDType = AT_LEAST_FLOAT32
) -> Transformation:
    """Keeps an exponential moving average of the parameters; put it last in a `chain`.

        ema ← ema + (1-d)/(1-dᵗ)·(θ - ema)

    Args:
      decay: d, per optimizer step, 0 ≤ d < 1; usual values are 0.99 to 0.9999.
      debias: True averages only over the steps taken. False uses the weight (1-d) from the first
        step on, so the initial parameters fade slowly.
      dtype: how the average is stored; see `mu_dtype` of `adamw`.

    Returns:
      A transformation that leaves the updates unchanged. `optax.tree.get(state, "ema")` is the
      average, ready to use: it is stored with bias correction, and has the newest integers,
      booleans and keys. `update` needs params.

    Raises:
      ValueError: a decay outside [0, 1); params missing in `update`.

    Differs from Optax in: `optax.ema` averages updates; it and PyTorch's `AveragedModel` correct or
    copy the average when it is read.

    Reference: Polyak & Juditsky 1992; Kingma & Ba 2015, section 7.2.

    Example:
      >>> import adam_jax
      >>> tx = adam_jax.chain(adam_jax.adamw(1e-3), adam_jax.ema_params(0.999))
    """
    return Transformation.around(
        EmaParams(DecayRate.of("decay", decay), debias, check_nearest_dtype("dtype", dtype))
    )
