"""Differences between the versions of JAX that this package supports, 0.8.0 to the newest."""

from typing import Any

import jax
import jax.core

KERNELS = jax.__version_info__ >= (0, 10)
"""Before 0.10 Pallas does not lower casts of 8-bit codes on TPUs."""


def varying_axes(x: Any) -> frozenset[str]:
    """The axes of `shard_map` along which an array, or an array of this type, may vary."""
    aval: Any = x if isinstance(x, jax.core.ShapedArray) else jax.typeof(x)
    return frozenset(aval.manual_axis_type.varying if _is_new(aval) else aval.vma)


def cast_to_varying(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The same array, with a type that varies along these axes."""
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(x, axes, to="varying")
    return getattr(jax.lax, "pvary")(x, axes)  # noqa: B009


def described_like(
    x: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike
) -> jax.ShapeDtypeStruct:
    """Another shape and dtype, varying along the same axes of `shard_map` as x."""
    aval: Any = jax.typeof(x)
    kind: dict[str, Any]
    kind = {"manual_axis_type": aval.manual_axis_type} if _is_new(aval) else {"vma": aval.vma}
    return jax.ShapeDtypeStruct(shape, dtype, **kind)


def _is_new(aval: Any) -> bool:
    """Whether a type has `manual_axis_type`; older ones have only a set of axes, `vma`."""
    return hasattr(aval, "manual_axis_type")
