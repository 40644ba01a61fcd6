"""Statistics of a group of leaves in one step, with one reduction per leaf."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax._types import Leaf, PyTree
from adam_jax.core.step import scaled
from adam_jax.numerics import squared
from adam_jax.xla.barrier import as_varying, varying


def statistics(leaves: list[tuple[Leaf, ...]], count: int | None) -> dict[str, jax.Array]:
    """The statistics of a group; with a `count` of layers, arrays with a value per layer."""
    measured = (_sums_over_devices(leaf, count) for leaf in leaves)
    sums = [sum(column) for column in zip(*measured, strict=True)]
    size, *sums = (jnp.asarray(x, jnp.float32) for x in sums)
    quarter, uu, pp, gu, moving, lost = sums
    size = jnp.maximum(size, 1)
    return {
        "gradient_rms": 2 * jnp.sqrt(quarter / size),
        "update_rms": jnp.sqrt(uu / size),
        "parameter_rms": jnp.sqrt(pp / size),
        "update_to_parameter": _ratio(jnp.sqrt(uu), jnp.sqrt(pp)),
        # By two roots in turn: the product of two small squares may underflow float32.
        "cosine": _ratio(_ratio(gu, 2 * jnp.sqrt(quarter)), jnp.sqrt(uu)),
        "lost_to_rounding": _ratio(lost, moving),
    }


def _sums_over_devices(leaf: tuple[Leaf, ...], count: int | None) -> list[Leaf]:
    """The size of a leaf and its sums, over all devices that hold a part of it."""
    mesh, size = jax.typeof(leaf[0]).sharding.mesh, np.size(leaf[0]) // (count or 1)
    sums: PyTree = _sums if count is None else functools.partial(_sums_by_layer, count)
    if mesh.explicit_axes:  # With automatic axes XLA may place the rows of a sum anywhere.
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        axes = mesh.explicit_axes
        sums = jax.sharding.auto_axes(sums, axes=axes, out_sharding=replicated)
    if not (axes := varying(leaf)):
        return [size, *sums(*leaf)]
    # Inside `shard_map`: replicated values are counted once per device, like varying ones.
    names = tuple(sorted(axes))
    return [size * jax.lax.axis_size(names), *jax.lax.psum(sums(*as_varying(leaf, axes)), names)]


def _sums_by_layer(count: int, *leaf: Leaf) -> list[jax.Array]:
    """The sums over each layer of a leaf."""
    flat = jax.tree.map(lambda x: jnp.reshape(x, (count, -1)), leaf)
    return jax.vmap(_sums)(*flat)


def _sums(p: Leaf, g: Leaf, u: Leaf, moved: Leaf) -> list[jax.Array]:
    """All sums over one leaf in one reduction; with several, XLA would store shared terms."""
    if g is None:  # No update, but the leaf still counts in its group.
        g = u = jnp.zeros_like(p)
    # Once more: the inner step also has derivatives with respect to its own numbers.
    g, u, p, moved = jax.lax.stop_gradient((g, u, p, moved))
    moving = u != 0
    lost = moving & (moved == p)
    g, u, p = (jnp.ravel(scaled(x)) for x in (g, u, p))
    # Not g² itself, which XLA:CPU would share with clipping and store.
    terms = [squared(g / 2), squared(u), squared(p), jnp.real(jnp.conj(g) * u)]
    flags = [jnp.ravel(x) for x in (moving, lost)]
    terms = [jax.lax.convert_element_type(x, jnp.float32) for x in [*terms, *flags]]
    # By rows: a sequential sum in float32 stops growing at 2²⁴ equal terms.
    rows = math.gcd(g.size, ROWS)
    terms = [jnp.reshape(x, (rows, -1)) for x in terms]
    zeros = [np.float32(0)] * len(terms)
    return [jnp.sum(x) for x in jax.lax.reduce(terms, zeros, _added, (1,))]


# Not a lambda: outside jit each new one would be compiled again.
def _added(xs: PyTree, ys: PyTree) -> list[jax.Array]:
    return [x + y for x, y in zip(xs, ys, strict=True)]


ROWS = 4096
NAMES = (
    "gradient_rms",
    "update_rms",
    "parameter_rms",
    "update_to_parameter",
    "cosine",
    "lost_to_rounding",
)


def _ratio(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y))
