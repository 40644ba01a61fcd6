"""A different program on TPUs, where each device runs its own.

With jax 0.10.2 and libtpu 0.0.52, XLA:TPU measures 8-bit moments in one pass and encodes them in
another. That moves 34 bytes per parameter through HBM (116 without its tiles). A kernel moves 16.1.

The choice is made during lowering, because tracing does not know the platform and the number of
devices. XLA cannot partition a kernel, so kernels run in programs for one device, and inside a
`shard_map` over all axes.

Delete it when tests/kernels/test_tpus.py finds that XLA's own program moves no more bytes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from adam_jax._types import Function, Leaf, PyTree


class Kernels(NamedTuple):
    """Functions from the leaves of the arguments to the leaves of the result; hashable.

    Attributes:
      alone: for devices that each run their own program; None for XLA's own.
      parts: for a program of several devices, or a mesh with explicit axes; None for XLA's own.
      elsewhere: the same two for other platforms than TPUs; None for XLA's own.
    """

    alone: Function | None
    parts: Function | None = None
    elsewhere: "Kernels | None" = None


def on_tpus(f: Callable[..., Any], kernels: Kernels, *args: PyTree) -> Any:
    """`f(*args)`; on TPUs by kernels with the same arithmetic.

    Derivatives and `vmap` are those of `f`.

    Args:
      f: a function of the arrays in its arguments only.
      kernels: functions of `args`.
      *args: pytrees of arrays.
    """
    closed, out = jax.make_jaxpr(f, return_shape=True)(*args)
    leaves = _on_tpus.bind(*jax.tree.leaves(args), otherwise=closed, kernels=kernels)
    return jax.tree.unflatten(jax.tree.structure(out), leaves)


_on_tpus = Primitive("on_tpus")
_on_tpus.multiple_results = True


def _lowered(choose: Callable[[Any, Kernels], Function | None]) -> Callable[..., Any]:
    """A lowering rule that uses the kernel chosen for the context, or `f` if that is None."""

    def rule(
        ctx: mlir.LoweringRuleContext, *args: Any, otherwise: ClosedJaxpr, kernels: Kernels
    ) -> Any:
        chosen = choose(ctx.module_context.axis_context, kernels)
        f = jaxpr_as_fun(otherwise) if chosen is None else chosen
        return mlir.lower_fun(f, multiple_results=True)(ctx, *args)

    return rule


def _chosen(context: mlir.AxisContext, kernels: Kernels | None) -> Function | None:
    if kernels is None:
        return None
    if isinstance(context, mlir.SPMDAxisContext):
        every = context.manual_axes == frozenset(context.mesh.axis_names)
        return kernels.alone if every else None
    alone = isinstance(context, mlir.ShardingContext) and context.num_devices == 1
    return kernels.parts or (kernels.alone if alone else None)


def _jvp(
    primals: Sequence[Leaf], tangents: Sequence[Leaf], *, otherwise: ClosedJaxpr, **_: Any
) -> tuple[Sequence[Leaf], Sequence[Leaf]]:
    tangents = tuple(ad.instantiate_zeros(t) for t in tangents)
    return jax.jvp(jaxpr_as_fun(otherwise), tuple(primals), tangents)


def _batched(
    args: Sequence[Leaf], axes: Sequence[Any], *, otherwise: ClosedJaxpr, **_: Any
) -> tuple[Sequence[Leaf], Sequence[int]]:
    results = jax.vmap(jaxpr_as_fun(otherwise), in_axes=tuple(axes))(*args)
    return results, [0] * len(results)


def _evaluated(*args: Leaf, otherwise: ClosedJaxpr, kernels: Kernels) -> Sequence[Leaf]:
    kernel = kernels.elsewhere and kernels.elsewhere.alone
    return (kernel or jaxpr_as_fun(otherwise))(*args)


_on_tpus.def_impl(_evaluated)
_on_tpus.def_abstract_eval(lambda *_, otherwise, **__: otherwise.out_avals)
ad.primitive_jvps[_on_tpus] = _jvp
batching.primitive_batchers[_on_tpus] = _batched
mlir.register_lowering(_on_tpus, _lowered(lambda at, kernels: _chosen(at, kernels.elsewhere)))
mlir.register_lowering(_on_tpus, _lowered(_chosen), platform="tpu")
