"""Optimization barriers that hide from XLA that two arrays are equal.

Without them, in jax 0.10.2:

  * XLA:GPU measures the scale of an 8-bit moment in one kernel and encodes it in another. It stores
    the shared float32 moments in between: 8 bytes of temporaries per parameter of a leaf of 4096 x
    4096. With `computed_again` it is 0.13.
  * XLA hoists computations on loop-invariant values out of the loop, and keeps the results. On a
    CPU, telemetry around AdamW takes 13.8 bytes of temporaries per parameter of small leaves, and
    1.8 with `kept_apart`.
  * XLA:GPU deletes a rounding to float16 and back, so `ema_params` would average other numbers than
    the parameters. With `kept_apart` a second kernel reads them, 2 bytes per parameter.
  * XLA:TPU (libtpu 0.0.52) computes 16-bit weights and their 8-bit rests in two passes, both from
    the moments: 37 bytes per parameter of a leaf of 8192 x 8192, and a copy of the rests. With
    `stored_on_tpus` it stores the float32 weights between the passes: 32 bytes, and no copy.

Delete a function when its test in tests/xla/test_barrier.py finds that a program without the
barrier takes no more temporaries, or moves no more bytes.
"""

import jax

from adam_jax._compat import cast_to_varying, varying_axes
from adam_jax._types import Leaf, PyTree, Result


def varying(tree: PyTree) -> frozenset[str]:
    """The axes of `shard_map` along which any of these arrays varies between devices."""
    return frozenset().union(*map(varying_axes, jax.tree.leaves(tree)))


def as_varying(tree: PyTree, axes: frozenset[str]) -> PyTree:
    """The same arrays, with types that also vary along these axes."""

    def cast(x: Leaf) -> Leaf:
        missing = tuple(sorted(axes - varying(x)))
        return cast_to_varying(x, missing) if missing else x

    return jax.tree.map(cast, tree) if axes else tree


@jax.custom_jvp
def kept_apart(tree: PyTree) -> PyTree:
    """The same arrays, behind a barrier that hides from XLA that they are the same."""
    leaves, treedef = jax.tree.flatten(tree)
    # A barrier gives all its arrays the same varying axes.
    together: dict[frozenset[str], list[int]] = {}
    for i, x in enumerate(leaves):
        together.setdefault(varying(x), []).append(i)
    for indices in together.values():
        apart = jax.lax.optimization_barrier([leaves[i] for i in indices])
        for i, x in zip(indices, apart, strict=True):
            leaves[i] = x
    return jax.tree.unflatten(treedef, leaves)


@kept_apart.defjvp
def _kept_apart_jvp(primals: PyTree, tangents: PyTree) -> Result:
    # jax 0.12 cannot transpose a barrier if some of its arrays have no derivative.
    return kept_apart(*primals), tangents[0]


def computed_again(tree: PyTree) -> PyTree:
    """`kept_apart`, except on CPUs: XLA:CPU does not fuse a computation that it would duplicate."""
    tree = as_varying(tree, varying(tree))  # The barrier may return this type.
    return jax.lax.platform_dependent(tree, cpu=lambda x: x, default=kept_apart)


def stored_on_tpus(x: jax.Array) -> jax.Array:
    """`kept_apart` on TPUs: one pass writes the array to memory, and another reads it."""
    return jax.lax.platform_dependent(x, tpu=kept_apart, default=lambda x: x)
