"""Resolves the user's `mu_dtype=` and `nu_dtype=` to the format of each slot of each leaf."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax._types import DType, Leaf, Params, Stored
from adam_jax.formats.base import Format, SlotPolicy
from adam_jax.formats.blockwise import Quantized
from adam_jax.formats.dense import AT_LEAST_FLOAT32, Dense, format_of, leaf_dtype
from adam_jax.formats.rounding import Stochastic
from adam_jax.slots import Slot
from adam_jax.validation import check_expression

SlotDType: TypeAlias = Any
"""A dtype, a `Format`, a `SlotPolicy`, or None, the parameter's own dtype (as in Optax).

`jnp.int8` and `jnp.int4` are codes with a scale per block: see `Quantized`.
"""

QUANTIZED = {jnp.dtype(codes): Quantized(codes) for codes in ("int8", "int4")}


def check_slot_dtype(argument: str, dtype: SlotDType) -> SlotDType:
    """Normalizes the user's setting to the form that compares and hashes by value."""
    if dtype is None or isinstance(dtype, Format | SlotPolicy):
        return dtype
    allowed = (
        "float32, bfloat16, float64 (or a complex dtype), int8, int4, float16 for mu, or"
        " stochastic(...), by_path(...), Quantized(...), or for nu Factored(), BlockMeans(axes),"
        " AdamMini()"
    )
    instead = "None keeps the parameter's dtype, leaving the argument out at least float32"
    try:
        checked = jnp.dtype(dtype)
    except TypeError:
        message = f"{argument} must be one of {allowed}, got {dtype!r}: {instead}."
        raise ValueError(message) from None
    if checked in QUANTIZED:
        return QUANTIZED[checked]
    if jnp.issubdtype(checked, jnp.floating) and checked.itemsize < 2:
        instead = (
            "8-bit floating-point numbers are too far apart for moments, write jnp.int8, which has"
            " the same bytes"
        )
    if not jnp.issubdtype(checked, jnp.inexact) or checked.itemsize < 2:
        raise ValueError(f"{argument} must be one of {allowed}, got {checked.name}: {instead}.")
    return checked


def check_magnitude_dtype(argument: str, dtype: SlotDType) -> SlotDType:
    """`check_slot_dtype`, for values that are never negative: not float16."""
    checked = check_slot_dtype(argument, dtype)
    fmt = Dense(checked) if isinstance(checked, np.dtype) else checked
    if isinstance(fmt, Format):
        check_fits(Slot("nu", magnitude=True), fmt, argument)
    return checked


def check_fits(slot: Slot, fmt: Format, argument: str) -> None:
    """Checks that a slot may be stored in the format that the user asked for."""
    if refusal := fmt.refuses(slot):
        raise ValueError(f"{argument} must not be {refusal.why}: write {refusal.instead}.")


def check_still_fits(slot: Slot, fmt: Format) -> None:
    """Checks that a slot may be stored as a given state has it, from Optax or an older release.

    The caller adds the path to the error.
    """
    if refusal := fmt.refuses(slot):
        raise ValueError(
            f"the state has {slot.name} in {refusal.why}: convert it with"
            f" adam_jax.convert_state(state, {_argument(slot)}={refusal.instead})."
        )


def check_nearest_dtype(argument: str, dtype: SlotDType) -> SlotDType:
    """`check_slot_dtype`, where there are neither random bits nor paths of leaves."""
    checked = check_slot_dtype(argument, dtype)
    if getattr(checked, "stochastic", False) or isinstance(checked, ByPath):
        raise ValueError(
            f"{argument} must be one form for all leaves, rounded to the nearest, got {dtype!r}:"
            f" write jnp.float32, jnp.bfloat16 or jnp.int8."
        )
    return checked


def stochastic(dtype: DType) -> Format | SlotPolicy:
    """Stochastic rounding: for `mu_dtype=` and `nu_dtype=`.

    An average in bfloat16 with the rate 0.999, rounded to nearest, ends 10 % off, and one that
    should fall stops changing. Stochastic rounding avoids both. `jnp.int8` and `jnp.int4` use it by
    default where a second moment needs it: see `Quantized`.

    The random bits are a hash of the element's index, the leaf and the slot, shifted by the golden
    ratio in each step. They are the same after a resume and on any number of devices; see
    `stochastic_rounding`.

    Args:
      dtype: bfloat16, int8 or int4.

    Raises:
      ValueError: another dtype.
    """
    checked = check_slot_dtype("dtype", dtype)
    if isinstance(checked, Quantized):
        return dataclasses.replace(checked, stochastic=True)
    if checked != jnp.bfloat16:
        raise ValueError(
            f"dtype must be bfloat16, int8 or int4, got {dtype!r}: write jnp.bfloat16, or pass a"
            f" wider dtype without stochastic(), since it needs no stochastic rounding."
        )
    return Stochastic()


@dataclasses.dataclass(frozen=True)
class ByPath(SlotPolicy):
    """The policy of `by_path`."""

    choices: tuple[tuple[str, SlotDType], ...]
    default: SlotDType

    def resolve(self, param: Leaf, slot: Slot, path: str) -> Format:
        matches = (choice for e, choice in self.choices if re.fullmatch(e, path))
        return resolve(next(matches, self.default), param, slot, path)


def by_path(choices: Mapping[str, SlotDType], default: SlotDType = AT_LEAST_FLOAT32) -> SlotPolicy:
    """Chooses the storage of a slot by the path of the leaf: for `mu_dtype=` and `nu_dtype=`.

    Args:
      choices: dtypes, formats or policies, by regular expressions that must match the whole path
        (`layers/0/kernel`); the first match applies.
      default: for leaves that match none.

    Raises:
      ValueError: an invalid regular expression, or a dtype that cannot store a moment.
    """
    for expression in choices:
        check_expression("each key of choices", expression)
    checked = ((e, check_slot_dtype(f"choices[{e!r}]", x)) for e, x in choices.items())
    return ByPath(tuple(checked), check_slot_dtype("default", default))


def resolve(spec: SlotDType, param: Leaf, slot: Slot, path: str = "") -> Format:
    """The format of one slot of one leaf, by the user's setting, checked.

    Raises:
      ValueError: the slot cannot be stored in that format; the caller adds the path.
    """
    own_dtype = None if isinstance(spec, Format) else leaf_dtype(param)
    if isinstance(spec, Format):
        fmt = spec
    elif isinstance(spec, SlotPolicy):
        fmt = spec.resolve(param, slot, path)
    else:
        dtype = own_dtype if spec is None else jax.dtypes.canonicalize_dtype(spec)
        fmt = Dense(jnp.finfo(dtype).dtype if slot.magnitude else jnp.dtype(dtype))
    own = " (None is the parameter's own dtype)" if spec is None else ""
    check_fits(slot, fmt, f"{_argument(slot)}{own}")
    return fmt


def _argument(slot: Slot) -> str:
    return "nu_dtype" if slot.magnitude else "mu_dtype"


def check_mapped(params: Params, spec: SlotDType, slot: Slot) -> None:
    """Refuses `optax.tree.map_params` where its function would get codes or means.

    It calls `init` with a placeholder of its own, and its function with what is stored there.
    """
    if type(params).__name__ != "_ParamsPlaceholder":
        return
    specs = (spec.default, *dict(spec.choices).values()) if isinstance(spec, ByPath) else (spec,)
    large = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)
    for fmt in (resolve(spec, large, slot, "w") for spec in specs):
        if fmt.unit != 1:
            raise ValueError(
                f"tx of optax.tree.map_params must not store {slot.name} as {fmt}, which its"
                f" function would get instead of numbers: convert the state to float32 with"
                f" adam_jax.convert_state, map it with a transformation that stores float32, and"
                f" convert it back; for placement write jax.tree.map or adam_jax.shard_state."
            )


def stored_format(stored: Stored) -> Format:
    """The format of a slot that is not empty."""
    fmt = format_of(stored)
    assert fmt is not None, type(stored)
    return fmt
