"""The dtype of a leaf, and the wider of two dtypes."""

import functools

import jax
import jax.numpy as jnp

from adam_jax._types import DType, Leaf


def moves(x: Leaf) -> bool:
    """Whether this is a parameter that steps move, or its gradient; Python numbers are.

    Integers, booleans and keys are not: they have no gradient (at most float0) and no state.
    """
    dtype = getattr(x, "dtype", None)
    return dtype is None or _is_inexact(dtype)


def leaf_dtype(param: Leaf) -> Leaf:
    """The floating-point dtype of a leaf; JAX's default one for a Python number, even an int.

    Raises:
      TypeError: the leaf is an array of integers or booleans (the caller adds its path).
      ValueError: the leaf has 8-bit or 4-bit floats, which have no arithmetic.
    """
    dtype = getattr(param, "dtype", None)
    if dtype is None:
        number = isinstance(param, (bool, int, float))
        dtype = jnp.result_type(float) if number else jnp.result_type(param)
    elif not isinstance(param, jax.Array):  # NumPy's float64 is JAX's float32, unless x64 is on.
        dtype = jax.dtypes.canonicalize_dtype(dtype)
    if not _is_inexact(dtype):
        raise TypeError(str(dtype))
    if jnp.dtype(dtype).itemsize == 1:
        raise ValueError(
            f"parameters and gradients must have 16 bits or more, got {jnp.dtype(dtype).name}: keep"
            f" them in bfloat16 or float32, and cast the parameters in the model."
        )
    return dtype


# Called for every leaf while tracing; JAX's dtype lattice takes 10 us.
_is_inexact = functools.cache(lambda dtype: jnp.issubdtype(dtype, jnp.inexact))


def in_range(x: jax.Array, dtype: DType) -> jax.Array:
    """x, its finite elements clipped to the range of another dtype; complex x is unchanged.

    An average forgets a clipped number at its rate, but never forgets infinity.
    """
    if jnp.iscomplexobj(x) or jnp.issubdtype(dtype, jnp.complexfloating):
        return x
    largest = float(jnp.finfo(dtype).max)
    if largest >= float(jnp.finfo(x.dtype).max):
        return x
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -largest, largest), x)


@functools.cache
def wider_dtype(first: Leaf, second: Leaf) -> Leaf:
    """The dtype that holds the numbers of both, even where strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(first, second)
