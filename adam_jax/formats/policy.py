"""Which format a slot of a leaf gets, from what the user wrote for `mu_dtype=` and `nu_dtype=`."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax.formats.base import Format, SlotPolicy
from adam_jax.formats.dense import AT_LEAST_FLOAT32, Dense
from adam_jax.formats.dtypes import leaf_dtype
from adam_jax.formats.quantized import Quantized
from adam_jax.formats.rounding import Stochastic
from adam_jax.validation import check_expression

SlotDType: TypeAlias = Any
"""A dtype, a `Format`, a `SlotPolicy`, or None, the parameter's own dtype (as in Optax).

float16 is for slots with a sign only, also where it is the parameter's.

`jnp.int8` and `jnp.int4` are codes with a scale per block: see `Quantized`. nu of AMSGrad and
Adamax is not stored in four bits.
"""

QUANTIZED = {jnp.dtype(codes): Quantized(codes) for codes in ("int8", "int4")}


def check_slot_dtype(argument: str, dtype: SlotDType) -> SlotDType:
    """Returns what the user wrote in the one form that compares and hashes by value.

    Raises:
      ValueError: nothing can be stored like that.
    """
    if dtype is None or isinstance(dtype, Format | SlotPolicy):
        return dtype
    allowed = (
        "float32, bfloat16, float64 (or a complex dtype), int8, int4, float16 for mu, or"
        " stochastic(...), by_path(...), Quantized(...), Factored() for nu"
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
    """`check_slot_dtype`, for what is never negative.

    Raises:
      ValueError: also for float16.
    """
    checked = check_slot_dtype(argument, dtype)
    fmt = Dense(checked) if isinstance(checked, np.dtype) else checked
    if isinstance(fmt, Format) and not fmt.for_magnitudes:
        raise ValueError(f"{argument} {NO_FLOAT16}")
    return checked


FLOAT16_IS_NARROW = (
    "float16, whose smallest number, 6e-8, is the square of a gradient of 2e-4, so that updates can"
    " be of any size"
)
FOUR_BITS_ARE_COARSE = (
    "4 bits where a maximum over the steps is taken of it: the largest of many coarsely rounded"
    " values is too large, and updates are up to 27 % too small"
)
NO_FLOAT16 = (
    f"must not be {FLOAT16_IS_NARROW}: write jnp.float32, or adam_jax.stochastic(jnp.bfloat16) for"
    f" 2 bytes."
)


def check_nearest_dtype(argument: str, dtype: SlotDType) -> SlotDType:
    """`check_slot_dtype`, for what has neither random bits nor paths of leaves.

    Raises:
      ValueError: also for stochastic rounding and policies by path.
    """
    checked = check_slot_dtype(argument, dtype)
    if getattr(checked, "stochastic", False) or isinstance(checked, ByPath):
        raise ValueError(
            f"{argument} must be one form for all leaves, rounded to the nearest, got {dtype!r}:"
            f" write jnp.float32, jnp.bfloat16 or jnp.int8."
        )
    return checked


def stochastic(dtype: Any) -> Format | SlotPolicy:
    """Stochastic rounding: for `mu_dtype=` and `nu_dtype=`.

    In bfloat16 an average with the rate 0.999, rounded to the nearest, ends 10 % off (and one that
    should fall stands still); rounded stochastically it does not. `jnp.int8` and `jnp.int4` are so
    rounded by default where a second moment needs it: see `Quantized`.

    The random bits are a hash of the element's index, the leaf and the slot, turned on in each step
    by the golden ratio: the same after a resume, and on any number of devices; see
    `stochastic_rounding`.

    Args:
      dtype: bfloat16, int8, int4, or float16, which is for mu only: its smallest number, 6e-8, is
        the square of a gradient of 2e-4.

    Raises:
      ValueError: another dtype.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> tx = adam_jax.adamw(1e-3, mu_dtype=jnp.bfloat16, nu_dtype=stochastic(jnp.bfloat16))
    """
    checked = check_slot_dtype("dtype", dtype)
    if isinstance(checked, Quantized):
        return dataclasses.replace(checked, stochastic=True)
    if checked not in (jnp.bfloat16, jnp.float16):
        raise ValueError(
            f"dtype must be bfloat16, float16, int8 or int4, got {dtype!r}: wider ones need no"
            f" stochastic rounding."
        )
    return Stochastic(checked)


@dataclasses.dataclass(frozen=True)
class ByPath(SlotPolicy):
    """The policy of `by_path`."""

    choices: tuple[tuple[str, SlotDType], ...]
    default: SlotDType

    def resolve(self, param: Any, magnitude: bool, path: str, rate: float | None = None) -> Format:
        matches = (choice for e, choice in self.choices if re.fullmatch(e, path))
        return resolve(next(matches, self.default), param, magnitude, path, rate)


def by_path(choices: Mapping[str, SlotDType], default: SlotDType = AT_LEAST_FLOAT32) -> SlotPolicy:
    """How a slot is stored, by the path of the leaf: for `mu_dtype=` and `nu_dtype=`.

    Args:
      choices: dtypes, formats or policies by regular expressions, matched with the whole path
        (`layers/0/kernel`); the first match counts.
      default: for leaves that none matches.

    Raises:
      ValueError: an expression that is none, or a dtype that cannot store a moment.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> moments = by_path({".*embed.*": jnp.float32}, default=jnp.int8)
      >>> tx = adam_jax.adamw(1e-3, mu_dtype=moments, nu_dtype=moments)
    """
    for expression in choices:
        check_expression("each key of choices", expression)
    checked = ((e, check_slot_dtype(f"choices[{e!r}]", x)) for e, x in choices.items())
    return ByPath(tuple(checked), check_slot_dtype("default", default))


def resolve(
    spec: SlotDType, param: Any, magnitude: bool, path: str = "", rate: float | None = None
) -> Format:
    """The format of one slot of one leaf.

    Args:
      spec: what the user asked for, checked.
      param: the leaf's parameter.
      magnitude: the slot is real where the parameter is complex, and never float16.
      path: of the leaf.
      rate: see `SlotPolicy.resolve`.

    Raises:
      ValueError: the slot cannot be stored like that; the caller knows the path.
    """
    fmt = _resolved(spec, param, magnitude, path, rate)
    if magnitude and not fmt.for_magnitudes:
        own = " (None is the parameter's own dtype)" if spec is None else ""
        raise ValueError(f"nu_dtype{own} {NO_FLOAT16}")
    return fmt


def _resolved(
    spec: SlotDType, param: Any, magnitude: bool, path: str, rate: float | None
) -> Format:
    if isinstance(spec, Format):
        return spec
    own = jnp.dtype(leaf_dtype(param))
    if isinstance(spec, SlotPolicy):
        return spec.resolve(param, magnitude, path, rate)
    dtype = own if spec is None else jax.dtypes.canonicalize_dtype(spec)
    return Dense(jnp.finfo(dtype).dtype if magnitude else jnp.dtype(dtype))


def format_of(stored: Any) -> Format | None:
    """The format that a slot is stored in, read from what is stored; None for an empty slot.

    The state says it, not the user's setting: so its dtypes never change from one step to the next,
    also in a state that came from an Optax checkpoint. An array is dense; what is more than that
    has its format as the attribute `format`.
    """
    if isinstance(stored, jax.Array):  # Most are, and a tracer takes long to say what it lacks.
        return Dense(stored.dtype)
    if isinstance(own := getattr(stored, "format", None), Format):
        return own
    return Dense(stored.dtype) if hasattr(stored, "dtype") else None
