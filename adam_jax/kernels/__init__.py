"""The program of a leaf as one kernel on TPUs: everything that knows of tiles.

XLA:TPU measures 8-bit moments in one pass and encodes them in another. `Member.plan` imports this
folder, for leaves that a kernel may step.
"""

import dataclasses
from typing import Any

import jax

from adam_jax._types import Function, PyTree
from adam_jax.kernels.pallas import Kernel, KernelOfParts
from adam_jax.kernels.tpus import Kernels, on_tpus


def by_kernel(step: Function, by_xla: Function, plan: PyTree, args: tuple[Any, ...]) -> PyTree:
    """The step of a leaf by a kernel on TPUs, and by XLA elsewhere.

    Args:
      step: `leaf_step`, for a tile.
      by_xla: the step of the whole leaf.
      plan: the `Plan` of the leaf, with tiles.
      args: the numbers of the rules, the arrays, whether the step is taken, sums over the leaf.
    """
    kernel = Kernel(
        step, plan._replace(kernel="", parts=None), plan.kernel, jax.tree.structure(args)
    )
    interpreted = dataclasses.replace(kernel, interpret=True) if plan.kernel.everywhere else None
    parts = None
    if plan.parts is not None:
        tiles, sharding = plan.parts
        whole = dataclasses.replace(kernel, tiles=tiles, whole=args[1].g.shape)
        parts = KernelOfParts(whole, sharding)
    kernels = Kernels(kernel, parts, interpreted)
    return on_tpus(lambda *args: by_xla(*args[:3]), kernels, *args)
