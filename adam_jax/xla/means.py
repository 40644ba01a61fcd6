"""Means over axes of what is not in memory: on CPUs and GPUs without storing it.

What XLA does otherwise, in jax 0.10.2, with the squares of a gradient that is clipped first:

  * XLA:CPU hands sums over axes to a library, YNNPACK, which reads its operand from memory: 4 bytes
    of temporaries per parameter of a leaf, and 17 ms and not 3 for one of 2048 x 4096.
  * XLA:GPU stores them for the means of columns: 4 bytes of temporaries per parameter, and a step
    of AdamW passes 32 bytes and not 24.6.

A reduction of two arrays at once both of them fuse with what makes the arrays, and 16 elements of
it are code without branches. So sums of 16 elements come first, 0.3 bytes of temporaries per
parameter, and beside them whether one is NaN. That is read, as XLA deletes what nobody reads.
XLA:TPU fuses the mean as it is.

Delete it when tests/xla/test_means.py finds that a mean takes no temporaries: `jnp.mean` is then
enough.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax._types import PyTree

AT_A_TIME = 16


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def mean(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The mean over some axes, which are kept with the size 1.

    Args:
      x: a real array.
      axes: counted from the last, -1.
    """
    axis, group = max(((axis, _group(x.shape[axis])) for axis in axes), key=lambda pair: pair[1])
    if group == 1:
        return _as_it_is(x, axes)

    def in_groups(x: jax.Array) -> jax.Array:
        position = axis % x.ndim
        before, after = x.shape[:position], x.shape[position + 1 :]
        groups = jnp.reshape(x, (*before, x.shape[axis] // group, group, *after))
        start = x.dtype.type(0), np.False_
        sums, missing = jax.lax.reduce((groups, jnp.isnan(groups)), start, _both, (position + 1,))
        sums, missing = jnp.sum(sums, axes, keepdims=True), jnp.any(missing, axes, keepdims=True)
        return jnp.where(missing, jnp.nan, sums * (sums.size / x.size))

    as_it_is = functools.partial(_as_it_is, axes=axes)
    # XLA:GPU fuses means along the last axis as they are.
    on_gpu = as_it_is if -1 in axes else in_groups
    return jax.lax.platform_dependent(x, cpu=in_groups, cuda=on_gpu, rocm=on_gpu, default=as_it_is)


@mean.defjvp
def _mean_jvp(axes: tuple[int, ...], primals: tuple[Any], tangents: tuple[Any]) -> PyTree:
    return mean(*primals, axes), _as_it_is(*tangents, axes)


def _as_it_is(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.mean(x, axes, keepdims=True)


def _group(size: int) -> int:
    """How many elements of an axis are summed first; of one that is split, all on one device."""
    devices = jax.device_count()
    divides = (n for n in range(AT_A_TIME, 1, -1) if size % (n * devices) == 0)
    return next(divides, 1)


def _both(xs: PyTree, ys: PyTree) -> PyTree:
    return xs[0] + ys[0], xs[1] | ys[1]
