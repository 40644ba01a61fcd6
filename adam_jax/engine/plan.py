"""How a Pallas kernel traverses a leaf on a TPU, or why XLA runs the leaf."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from adam_jax._compat import KERNELS
from adam_jax._types import Leaf, PyTree, Updates
from adam_jax.engine.trees import leaf_paths
from adam_jax.formats.base import Format, sharding_of
from adam_jax.formats.blockwise import Blockwise
from adam_jax.formats.rounding import Split
from adam_jax.rules.base import Rule
from adam_jax.xla.layout import order_on_tpus

LANES = 128
SMALLEST = 2**16
"""A kernel saves nothing measurable on leaves with fewer elements."""

DTYPES = {"float32", "bfloat16", "int4", "int8", "uint8", "int16"}
"""Dtypes of the arrays that kernels read and write."""

VMEM = 12 * 2**20
"""Bytes for the blocks that are read and written, and for the prefetched next blocks."""


class Plan(NamedTuple):
    """How a kernel traverses a leaf.

    Attributes:
      order: the axes of the leaf in memory order; the last one is along the lanes of a register.
      along: the axis of a tile, -1 or -2, that is one block of a format; None without blocks.
      vmem: rows and columns of one block in VMEM.
      tile: rows and columns that are stepped at once.
      everywhere: also on other platforms, interpreted.
    """

    order: tuple[int, ...]
    along: int | None
    vmem: tuple[int, int]
    tile: tuple[int, int]
    everywhere: bool = False


def plans_of(
    rules: Sequence[Rule],
    formats: Sequence[Format],
    leaf: PyTree,
    kernel: str,
    sharding: NamedSharding | None,
    layers: int,
) -> tuple[Plan | str, tuple[Plan, NamedSharding] | None]:
    """How a kernel traverses a leaf, or why none does; and how it traverses each device's part.

    Args:
      rules: that the leaf runs.
      formats: of all its slots.
      leaf: its arrays, the gradient in `g` and the parameter in `param`.
      kernel: see `with_kernel`.
      sharding: of the leaf; None if unknown.
      layers: its number of layer axes.
    """
    rests = isinstance(leaf.param, Split) and leaf.param.rest is not None
    fused = not (rests or any(isinstance(f, Blockwise) or f.stochastic for f in formats))
    if kernel == "xla" or (fused and kernel == "auto"):
        return ("in one pass" if fused else "the transformation asks for XLA"), None
    shape, arrays = np.shape(leaf.g), jax.tree.leaves(leaf)
    size = 2 * sum(jnp.dtype(x.dtype).itemsize for x in arrays if jnp.shape(x) == shape)

    def plan_of(part: tuple[int, ...]) -> Plan | str:
        if layers and any(rule.reduces for rule in rules):
            return "each of its layers has its own norms or means"
        plan = _refused(rules, formats, part, arrays) or _planned(part, formats, size, layers)
        return plan if isinstance(plan, str) else plan._replace(everywhere=kernel == "pallas")

    if sharding is None:
        return plan_of(shape), None
    part = plan_of(sharding.shard_shape(shape))
    if any(sharding.spec[:layers]):
        part = "its layers lie on several devices"
    return plan_of(shape), ((part, sharding) if isinstance(part, Plan) else None)


def explicit_sharding(g: Leaf) -> NamedSharding | None:
    """The sharding of a gradient, if the axes of its mesh are explicit."""
    sharding = sharding_of(g) if isinstance(g, jax.core.Tracer) else None
    if sharding is None or sharding.mesh.empty:
        return None
    return NamedSharding(sharding.mesh, sharding.spec)


def _refused(
    rules: Sequence[Rule],
    formats: Sequence[Format],
    shape: tuple[int, ...],
    arrays: Sequence[jax.Array],
) -> str | None:
    """Why no kernel can step this leaf in any memory layout, or why it is not worthwhile."""
    if not KERNELS:
        return "the kernels need jax 0.10"
    whole = [type(rule).__name__ for rule in rules if not rule.elementwise]
    whole += [type(fmt).__name__ for fmt in formats if fmt.unit is None]
    if whole:
        return f"{whole[0]} sees whole leaves"
    names = {jnp.dtype(x.dtype).name for x in arrays if jnp.ndim(x)}
    if unknown := sorted(names - DTYPES):
        return f"kernels know no {unknown[0]}"
    if jnp.result_type(float) != jnp.float32 or any(map(jnp.ndim, jax.tree.leaves(rules))):
        return "its hyperparameters are not single numbers of 32 bits"
    if len(shape) < 2 or math.prod(shape) < SMALLEST:
        return f"it is a vector, or has less than {SMALLEST} elements"
    return None


def _planned(
    shape: tuple[int, ...], formats: Sequence[Format], size: float, layers: int
) -> Plan | str:
    """The largest blocks that fit into VMEM, up to the size beyond which they are no faster."""
    order = order_on_tpus(shape)
    if min(order[-2:]) < layers:
        return "a register holds several layers"
    rows, columns = (shape[axis] for axis in order[-2:])
    along = order.index(len(shape) - 1) - len(shape)
    blocks = {fmt.unit for fmt in formats if fmt.unit is not None} - {1}
    if len(blocks) > 1:
        return f"it has blocks of {' and '.join(map(str, sorted(blocks)))} elements"
    block = blocks.pop() if blocks else None
    if block is not None and shape[-1] % block:
        return "a block lies on two devices"
    most = VMEM / (2 * size)
    if block is None:
        wide = min(1024, _multiple(columns, LANES))
        high = _largest((256, 128, 64, 32), _multiple(rows, 32), wide, most)
        return Plan(order, None, (high, wide), (high, LANES)) if high else TOO_LARGE
    if along == -1:
        if block % LANES:
            return f"blocks of {block} elements are not whole registers of {LANES}"
        wide = min(columns, 8 * block)
        high = rows if rows < 128 else _largest((256, 128), rows, wide, most)
        fits = high and high * wide <= most
        return Plan(order, -1, (high, wide), (high, block)) if fits else TOO_LARGE
    if along == -2:
        wide = columns if columns < LANES else _largest((512, 256, LANES), columns, rows, most)
        return Plan(order, -2, (rows, wide), (block, min(wide, LANES))) if wide else TOO_LARGE
    return "its blocks lie along neither of the axes that are in a register"


class Noted(NamedTuple):
    """How a leaf is stepped.

    Attributes:
      plan: of its TPU kernel, or the reason why it has none.
      rules: those that act on it, in order.
      formats: of each rule's slots.
    """

    plan: Plan | str
    rules: Sequence[Rule]
    formats: Sequence[Sequence[Format | None]]

    @property
    def way(self) -> str:
        """A description of how it is stepped on TPUs."""
        return f"XLA: {self.plan}" if isinstance(self.plan, str) else "one kernel"


_noted: ContextVar[dict[str, Noted] | None] = ContextVar("steps", default=None)


@contextlib.contextmanager
def steps_noted() -> Iterator[dict[str, Noted]]:
    """Records, by path, how each leaf is stepped inside the context; for reports."""
    found: dict[str, Noted] = {}
    token = _noted.set(found)
    try:
        yield found
    finally:
        _noted.reset(token)


def note(updates: Updates, indices: Sequence[int], noted: Noted) -> None:
    """Records how these leaves of the updates are stepped."""
    if (found := _noted.get()) is not None:
        paths = leaf_paths(updates)
        found |= {paths[i]: noted for i in indices}


TOO_LARGE = "the blocks needed in VMEM at once are too large"


def _largest(sizes: tuple[int, ...], limit: int, other: int, most: float) -> int:
    return next((n for n in sizes if n <= limit and n * other <= most), 0)


def _multiple(size: int, of: int) -> int:
    return -(-size // of) * of
