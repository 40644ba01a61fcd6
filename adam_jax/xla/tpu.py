"""Another program on TPUs, where each device runs its own.

What XLA:TPU does otherwise, with jax 0.10.2 and libtpu 0.0.52: it measures moments of 8 bits in one
pass and codes them in another. They pass 26 bytes per parameter through HBM (116 without tiles.py),
where a Pallas kernel passes 16.1.

The choice is made while a program is lowered: for which platform it is, and for how many devices,
is not known while it is traced. XLA cannot partition a kernel, so one runs where a program has one
device, and inside `shard_map` over all axes.

Delete it when tests/xla/test_tpu.py finds that XLA's own program passes no more bytes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from adam_jax._types import Function, Leaf, PyTree


def on_tpus(f: Callable[..., Any], kernel: Function, *args: PyTree) -> Any:
    """`f(*args)`; on TPUs what `kernel` makes of the leaves of `args`, the leaves of the same tree.

    Derivatives and `vmap` are those of `f`.

    Args:
      f: of arrays in its arguments alone.
      kernel: the same arithmetic, hashable.
      *args: pytrees of arrays.
    """
    closed, out = jax.make_jaxpr(f, return_shape=True)(*args)
    leaves = _on_tpus.bind(*jax.tree.leaves(args), otherwise=closed, kernel=kernel)
    return jax.tree.unflatten(jax.tree.structure(out), leaves)


_on_tpus = Primitive("on_tpus")
_on_tpus.multiple_results = True


def _otherwise(*args: Leaf, otherwise: ClosedJaxpr, kernel: Function) -> Sequence[Leaf]:
    del kernel
    return jaxpr_as_fun(otherwise)(*args)


def _kernel(*args: Leaf, otherwise: ClosedJaxpr, kernel: Function) -> Sequence[Leaf]:
    del otherwise
    return kernel(*args)


def _jvp(
    primals: Sequence[Leaf], tangents: Sequence[Leaf], *, otherwise: ClosedJaxpr, kernel: Function
) -> tuple[Sequence[Leaf], Sequence[Leaf]]:
    del kernel
    tangents = tuple(ad.instantiate_zeros(t) for t in tangents)
    return jax.jvp(jaxpr_as_fun(otherwise), tuple(primals), tangents)


def _batched(
    args: Sequence[Leaf], axes: Sequence[Any], *, otherwise: ClosedJaxpr, kernel: Function
) -> tuple[Sequence[Leaf], Sequence[int]]:
    del kernel
    results = jax.vmap(jaxpr_as_fun(otherwise), in_axes=tuple(axes))(*args)
    return results, [0] * len(results)


_lower_otherwise = mlir.lower_fun(_otherwise, multiple_results=True)
_lower_kernel = mlir.lower_fun(_kernel, multiple_results=True)


def _lower_on_tpu(ctx: mlir.LoweringRuleContext, *args: Any, **params: Any) -> Any:
    lower = _lower_kernel if _each_its_own(ctx.module_context.axis_context) else _lower_otherwise
    return lower(ctx, *args, **params)


def _each_its_own(context: mlir.AxisContext) -> bool:
    """Whether each device runs its own program, which XLA does not partition."""
    if isinstance(context, mlir.SPMDAxisContext):
        return context.manual_axes == frozenset(context.mesh.axis_names)
    return isinstance(context, mlir.ShardingContext) and context.num_devices == 1


_on_tpus.def_impl(_otherwise)
_on_tpus.def_abstract_eval(lambda *_, otherwise, kernel: otherwise.out_avals)
ad.primitive_jvps[_on_tpus] = _jvp
batching.primitive_batchers[_on_tpus] = _batched
mlir.register_lowering(_on_tpus, _lower_otherwise)
mlir.register_lowering(_on_tpus, _lower_on_tpu, platform="tpu")
