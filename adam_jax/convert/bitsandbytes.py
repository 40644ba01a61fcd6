"""8-bit and 32-bit states of bitsandbytes; codes are decoded to float32."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import optax

from adam_jax._types import AnyTransformation, Named, Params, State
from adam_jax.convert.entries import as_numpy
from adam_jax.convert.moments import Target
from adam_jax.convert.names import Names, listed
from adam_jax.convert.pytorch import entries_of, resumed
from adam_jax.convert.twins import twin_rules
from adam_jax.family.ademamix import ScaleByAdemamixState

KINDS = (optax.ScaleByAdamState, optax.ScaleByLionState, ScaleByAdemamixState)
WRAPPED = "__bnb_optimizer_quant_state__"
"""The key under which `state_dict()` has everything but the step; older versions lack it."""
BLOCKS = (256, 2048)
"""Elements of the flattened array that share a scale: now, and before 0.44."""


def from_bitsandbytes(
    state_dict: Mapping[str, Any],
    params: Params,
    tx: AnyTransformation,
    *,
    names: Names | None = None,
    order: Sequence[str] | None = None,
) -> State:
    """A state of `tx` that continues the run of a bitsandbytes optimizer.

    Args:
      state_dict: `optimizer.state_dict()` of Adam, AdamW, Lamb, Lion or AdEMAMix, of 8 or 32 bits.
      params: the parameters in JAX.
      tx: the transformation that continues. 8-bit moments are decoded to float32 and stored as `tx`
        stores them: lossless in float32, rounded again in `jnp.int8`. Weight decay is decoupled in
        bitsandbytes, in Adam too: write `adamw`.
      names: as in `from_torch`.
      order: as in `from_torch`.

    Returns:
      The state, as in `from_torch`.

    Raises:
      ValueError: as in `from_torch`; also for codes without a map, or with scales that fit neither
        blocks of 256 nor of 2048.
    """
    target = Target(params, tx)
    kinds = target.kinds.values()
    rules = twin_rules("bitsandbytes", params, tx, kinds, KINDS)
    entries = {}
    for name, entry in entries_of(state_dict, order).items():
        parts = _slots({**entry, **entry.get(WRAPPED, {})}, kinds)
        slots = {slot: _decoded(f"{name}/{slot}", part) for slot, part in parts.items()}
        entries[name] = {"step": entry.get("step", 0), **slots}
    return resumed(target, rules, entries, names, {slot: slot for _, slot in target.kinds})


def _slots(entry: Named, kinds: Collection[type]) -> dict[str, Named]:
    """The part of an entry for each of our slots: `state`, and for codes `absmax`, `qmap`."""
    slots = {}
    for i, slot in ((1, "mu"), (2, "nu")):
        names = [name for name in ("state", "absmax", "qmap") if f"{name}{i}" in entry]
        if "state" in names:
            slots[slot] = {name: as_numpy(entry[f"{name}{i}"]) for name in names}
    if ScaleByAdemamixState in kinds and "mu" in slots:
        both = slots.pop("mu")  # Both averages, stacked in one array.
        for i, slot in enumerate(("m1", "m2")):
            slots[slot] = {name: x if name == "qmap" else x[i] for name, x in both.items()}
    return slots


def _decoded(key: str, part: Named) -> np.ndarray:
    """The decoded array. A code indexes the map, whose numbers are in units of the scale."""
    state = part["state"]
    if state.dtype != np.uint8:
        return state
    absent = [name for name in ("absmax", "qmap") if name not in part]
    if absent:
        raise ValueError(f"{key!r} must have scales and a map for its codes, got no {absent[0]}.")
    scale, values = part["absmax"].astype(np.float32), part["qmap"].astype(np.float32)
    block = next((b for b in BLOCKS if scale.shape == (math.ceil(state.size / b),)), None)
    if block is None or values.shape != (256,):
        raise ValueError(
            f"{key!r} must have a scale for each block of 256 elements (2048 before bitsandbytes"
            f" 0.44) and a map of 256 numbers, got {scale.shape} and {values.shape} for"
            f" {state.size} elements: {listed(map(str, BLOCKS))}."
        )
    return values[state] * np.repeat(scale, block)[: state.size].reshape(state.shape)
