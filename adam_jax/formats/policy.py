"""Which format a slot of a leaf gets, from what the user wrote for `mu_dtype=` and `nu_dtype=`."""

import dataclasses
import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from adam_jax.formats.base import Format
from adam_jax.formats.dense import Dense


@dataclasses.dataclass(frozen=True)
class AtLeastFloat32:
    """The parameter's own dtype, or float32 where that has 16 bits: the default of every slot.

    bfloat16 keeps 8 bits: an average that moves by 0.1 % of its value a step stands still in it.
    float16 has no numbers under 6e-8, the square of a gradient of 2e-4.
    """

    def __repr__(self) -> str:
        return "AT_LEAST_FLOAT32"


AT_LEAST_FLOAT32 = AtLeastFloat32()

SlotDType: TypeAlias = Any
"""A dtype, a `Format`, `AT_LEAST_FLOAT32`, or None, the parameter's own dtype (as in Optax)."""


def check_slot_dtype(argument: str, dtype: SlotDType) -> SlotDType:
    """Returns the dtype in the one form that compares and hashes by value.

    Raises:
      ValueError: it is not a floating-point dtype of at least 16 bits.
    """
    if dtype is None or isinstance(dtype, AtLeastFloat32 | Format):
        return dtype
    allowed = "float32, bfloat16, float16, float64 (or a complex dtype)"
    instead = "None keeps the parameter's dtype, leaving the argument out at least float32"
    try:
        checked = jnp.dtype(dtype)
    except TypeError:
        message = f"{argument} must be one of {allowed}, got {dtype!r}: {instead}."
        raise ValueError(message) from None
    # float8 keeps a range of 1e-3 to 448 or so: squares of gradients do not fit without a scale.
    if not jnp.issubdtype(checked, jnp.inexact) or checked.itemsize < 2:
        raise ValueError(f"{argument} must be one of {allowed}, got {checked.name}: {instead}.")
    return checked


def leaf_dtype(param: Any) -> Any:
    """The floating-point dtype of a leaf; a Python number, an int too, has JAX's default one.

    Raises:
      TypeError: the leaf is an array of integers or booleans (the caller knows its path).
    """
    dtype = getattr(param, "dtype", None)
    if dtype is None:
        number = isinstance(param, (bool, int, float))
        dtype = jnp.result_type(float) if number else jnp.result_type(param)
    elif not isinstance(param, jax.Array):  # NumPy's float64 is JAX's float32, unless x64 is on.
        dtype = jax.dtypes.canonicalize_dtype(dtype)
    if not _is_inexact(dtype):
        raise TypeError(jnp.dtype(dtype).name)
    return dtype


# Asked for every leaf while tracing; the lattice of dtypes answers in 10 us.
_is_inexact = functools.cache(lambda dtype: jnp.issubdtype(dtype, jnp.inexact))


@functools.cache
def wider_dtype(first: Any, second: Any) -> Any:
    """The dtype that holds the numbers of both, also where strict promotion would refuse to say."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(first, second)


def resolve(spec: SlotDType, param: Any, magnitude: bool) -> Format:
    """The format of one slot of one leaf.

    Args:
      spec: what the user asked for.
      param: the leaf's parameter.
      magnitude: the slot is real where the parameter is complex.
    """
    if isinstance(spec, Format):
        return spec
    own = jnp.dtype(leaf_dtype(param))
    if isinstance(spec, AtLeastFloat32):
        dtype = wider_dtype(own, jnp.dtype(jnp.float32))
    elif spec is None:
        dtype = own
    else:
        dtype = jax.dtypes.canonicalize_dtype(spec)
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
