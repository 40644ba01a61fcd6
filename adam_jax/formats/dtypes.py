"""The dtype that a leaf has, and the wider of two."""

import functools

import jax
import jax.numpy as jnp

from adam_jax._types import DType, Leaf


def moves(x: Leaf) -> bool:
    """Whether this is a parameter that steps move, or the gradient of one; so is a Python number.

    Integers, booleans and keys are not: they have no gradient (float0 at most) and keep no state.
    """
    dtype = getattr(x, "dtype", None)
    return dtype is None or _is_inexact(dtype)


def leaf_dtype(param: Leaf) -> Leaf:
    """The floating-point dtype of a leaf; a Python number, an int too, has JAX's default one.

    Raises:
      TypeError: the leaf is an array of integers or booleans (the caller knows its path).
      ValueError: it has floating-point numbers of 8 or 4 bits, which have no arithmetic.
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


# Asked for every leaf while tracing; the lattice of dtypes answers in 10 us.
_is_inexact = functools.cache(lambda dtype: jnp.issubdtype(dtype, jnp.inexact))


def in_range(x: jax.Array, dtype: DType) -> jax.Array:
    """x, its finite elements clipped to the range of another dtype; complex numbers as they are.

    An average forgets a number that was clipped at its rate, and infinity never.
    """
    if jnp.iscomplexobj(x) or jnp.issubdtype(dtype, jnp.complexfloating):
        return x
    largest = float(jnp.finfo(dtype).max)
    if largest >= float(jnp.finfo(x.dtype).max):
        return x
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -largest, largest), x)


@functools.cache
def wider_dtype(first: Leaf, second: Leaf) -> Leaf:
    """The dtype that holds the numbers of both, also where strict promotion would refuse to say."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(first, second)
