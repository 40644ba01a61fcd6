"""Barriers: XLA must not find out that two arrays are the same.

What it does otherwise, in jax 0.10.2:

  * XLA:GPU computes once what a moment of 8 bits is measured by in one kernel and made codes of in
    another. For that it stores the float32 moments: 8 bytes of temporaries per parameter of a leaf
    of 4096 x 4096, and with `computed_again` 0.13.
  * What the body of a loop passes on unchanged, XLA computes with ahead of the loop, and keeps the
    results: telemetry around AdamW is 13.8 bytes of temporaries per parameter of small leaves on a
    CPU, and with `kept_apart` 1.8.
  * XLA:TPU (libtpu 0.0.52) makes weights of 16 bits and their rests of 8 in two passes, both from
    the moments: 37 bytes per parameter of a leaf of 8192 x 8192, and a copy of the rests. With
    `stored_on_tpus` it stores the float32 weights between the two: 32, and no copy.

Delete one of them when its test in tests/xla/test_barrier.py finds that a program without barriers
takes no more temporaries, or passes no more bytes.
"""

from typing import Any

import jax

from adam_jax._compat import cast_to_varying, varying_axes
from adam_jax._types import Leaf, PyTree, Result


def varying(tree: PyTree) -> frozenset[str]:
    """The axes of `shard_map` along which any of these arrays differs from device to device."""
    return frozenset().union(*map(varying_axes, jax.tree.leaves(tree)))


def as_varying(tree: PyTree, axes: frozenset[str]) -> PyTree:
    """The same arrays, of a type that says that they may differ along these axes too."""

    def cast(x: Leaf) -> Leaf:
        missing = tuple(sorted(axes - varying(x)))
        return cast_to_varying(x, missing) if missing else x

    return jax.tree.map(cast, tree) if axes else tree


@jax.custom_jvp
def kept_apart(tree: PyTree) -> PyTree:
    """The same arrays, without XLA's knowing that they are the same."""
    leaves, treedef = jax.tree.flatten(tree)
    # A barrier makes arrays alike that do not differ along the same axes.
    together: dict[frozenset[str], list[int]] = {}
    for i, x in enumerate(leaves):
        together.setdefault(varying(x), []).append(i)
    for indices in together.values():
        apart = jax.lax.optimization_barrier([leaves[i] for i in indices])
        for i, x in zip(indices, apart, strict=True):
            leaves[i] = x
    return jax.tree.unflatten(treedef, leaves)


@kept_apart.defjvp
def _kept_apart_jvp(primals: tuple[Any], tangents: tuple[Any]) -> Result:
    # jax 0.12 cannot transpose a barrier over arrays of which some have no derivative.
    return kept_apart(*primals), tangents[0]


def computed_again(tree: PyTree) -> PyTree:
    """`kept_apart`, but on CPUs: what XLA:CPU would otherwise compute twice it does not fuse."""
    tree = as_varying(tree, varying(tree))  # Of the type that the barrier may return.
    return jax.lax.platform_dependent(tree, cpu=lambda x: x, default=kept_apart)


def stored_on_tpus(x: jax.Array) -> jax.Array:
    """`kept_apart` on TPUs: there an array in memory, which one pass makes and another reads."""
    return jax.lax.platform_dependent(x, tpu=kept_apart, default=lambda x: x)
