"""States of bitsandbytes, of 8 and 32 bits: codes are decoded to float32."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optax

from adam_jax._types import AnyTransformation, Named, Params, State
from adam_jax.convert.entries import as_numpy, check_real, matched_slots
from adam_jax.convert.moments import Moments, Target
from adam_jax.convert.names import Names, layouts, listed
from adam_jax.convert.pytorch import entries_of, order_of, steps_of
from adam_jax.convert.twins import check_kinds, check_twin, member_rules
from adam_jax.family.ademamix import ScaleByAdemamixState

KINDS = (optax.ScaleByAdamState, optax.ScaleByLionState, ScaleByAdemamixState)
WRAPPED = "__bnb_optimizer_quant_state__"
"""Below this `state_dict()` keeps everything but the step; older versions do not."""
BLOCKS = (256, 2048)
"""Elements of the flattened array that share a scale: today, and before 0.44."""


def from_bitsandbytes(
    state_dict: Mapping[str, Any],
    params: Params,
    tx: AnyTransformation,
    *,
    names: Names | None = None,
    order: Sequence[str] | None = None,
) -> State:
    """A state of `tx` that goes on where an optimizer of bitsandbytes stopped.

    Args:
      state_dict: `optimizer.state_dict()` of Adam, AdamW, Lamb, Lion or AdEMAMix, of 8 or 32 bits.
      params: our parameters.
      tx: what goes on. 8-bit moments are decoded to float32 and stored as `tx` stores them: without
        loss in float32, rounded again in `jnp.int8`. Weight decay is decoupled in bitsandbytes, in
        Adam too: write `adamw`.
      names: as in `from_torch`.
      order: as in `from_torch`.

    Returns:
      The state, as `from_torch` makes it.

    Raises:
      ValueError: as `from_torch`; also for codes without a map, or whose scales fit neither blocks
        of 256 nor of 2048.
    """
    target, rules = Target(params, tx), member_rules(tx)
    check_kinds("bitsandbytes", target.kinds.values(), KINDS)
    if optax.ScaleByAdamState in target.kinds.values():
        check_twin("bitsandbytes", rules)
    check_real(params)
    order = order_of("state_dict", state_dict, order)
    entries = {order[i]: _unwrapped(e) for i, e in entries_of(state_dict, order).items()}
    layout = layouts(target.shapes, names)
    found = {}
    for name, entry in entries.items():
        for slot, part in _slots(entry, target.kinds.values()).items():
            key = f"{name}/{slot}"
            found[key] = _decoded(key, part)
    keys = {(path, slot): f"{layout[path].name}/{slot}" for path, slot in target.kinds}
    slots = matched_slots("state_dict", found, keys, layout, target.shapes)
    steps = {path: steps_of(path, entries[layout[path].name]) for path, _ in keys}
    return target.filled(Moments(slots, steps))


def _unwrapped(entry: Mapping[str, Any]) -> Named:
    inside = entry.get(WRAPPED, {})
    return {name: x for name, x in entry.items() if name != WRAPPED} | dict(inside)


def _slots(entry: Named, kinds: Any) -> dict[str, Named]:
    """By our name of each slot, its part of the entry: `state`, and for codes `absmax`, `qmap`."""
    parts = {
        i: {
            n: as_numpy(entry[f"{n}{i}"]) for n in ("state", "absmax", "qmap") if f"{n}{i}" in entry
        }
        for i in (1, 2)
        if f"state{i}" in entry
    }
    if ScaleByAdemamixState not in kinds:
        return {{1: "mu", 2: "nu"}[i]: part for i, part in parts.items()}
    slots = {"nu": parts[2]} if 2 in parts else {}
    if 1 in parts:  # Both averages in one array, one after the other.
        for j, slot in enumerate(("m1", "m2")):
            slots[slot] = {n: x if n == "qmap" else x[j] for n, x in parts[1].items()}
    return slots


def _decoded(key: str, part: Named) -> np.ndarray:
    """The array. A code is an index into the map, whose numbers are in units of the scale."""
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
