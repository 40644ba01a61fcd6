"""Means over axes of arrays that are not in memory; on CPUs and GPUs without storing them.

Without it, in jax 0.10.2, for the squares of a gradient that is clipped first:

  * XLA:CPU calls a library, YNNPACK, for sums over axes. It reads its operand from memory: 4 bytes
    of temporaries per parameter of a leaf, and 17 ms instead of 3 for one of 2048 x 4096.
  * XLA:GPU stores the squares for the means of columns: 4 bytes of temporaries per parameter, and a
    step of AdamW moves 32 bytes instead of 24.6.

Both fuse a reduction of two arrays with their producers, and unroll a reduction of 16 elements. So
groups of 16 elements are reduced first, to a sum and a flag for NaN: 0.3 bytes of temporaries per
parameter. The flag has to be used, because XLA deletes unused results. XLA:TPU fuses a plain mean.

Delete it when tests/xla/test_means.py finds that a mean takes no temporaries: `jnp.mean` is then
enough.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax._types import Leaf, PyTree

AT_A_TIME = 16


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def mean(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The mean over some axes, which are kept with size 1.

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
        return jnp.where(missing, jnp.nan, sums * (sums.size / max(x.size, 1)))

    as_it_is = functools.partial(_as_it_is, axes=axes)
    # XLA:GPU fuses plain means along the last axis.
    on_gpu = as_it_is if -1 in axes else in_groups
    return jax.lax.platform_dependent(x, cpu=in_groups, cuda=on_gpu, rocm=on_gpu, default=as_it_is)


@mean.defjvp
def _mean_jvp(axes: tuple[int, ...], primals: tuple[Leaf], tangents: tuple[Leaf]) -> PyTree:
    return mean(*primals, axes), _as_it_is(*tangents, axes)


def _as_it_is(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.mean(x, axes, keepdims=True)


def _group(size: int) -> int:
    """How many elements of an axis are summed first; all of them on one device if it is sharded."""
    devices = jax.device_count()
    divides = (n for n in range(AT_A_TIME, 1, -1) if size % (n * devices) == 0)
    return next(divides, 1)


def _both(xs: PyTree, ys: PyTree) -> PyTree:
    return xs[0] + ys[0], xs[1] | ys[1]
