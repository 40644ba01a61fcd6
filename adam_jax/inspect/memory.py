"""What parameters, gradients and state take: before anything is allocated, and live."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import optax

from adam_jax._types import Function, Params, PyTree, State, Updates
from adam_jax.engine import transformation
from adam_jax.inspect.amounts import Bytes, LiveBytes, Report, bytes_of
from adam_jax.inspect.planned import Plan


def bytes_per_parameter(
    params: Params,
    tx: optax.GradientTransformation,
    *,
    grads: Updates = None,
    patterns: Mapping[str, str] | None = None,
) -> Bytes:
    """What parameters, gradients and state will take, by group; nothing is allocated.

    Args:
      params: arrays, or `jax.ShapeDtypeStruct`s of them, as from `jax.eval_shape(model.init, ...)`.
        With a `NamedSharding`, if the run's have one: how long blocks are can depend on it.
      tx: any Optax transformation.
      grads: a tree like `params`, of either, with None for a leaf that has no gradient. If left
        out, gradients have the dtypes of the parameters, and integers have none.
      patterns: names and regular expressions, matched with the whole path of a leaf, the first
        match before the others; what matches none is "other". None groups leaves by the first key
        of their path. As in `telemetry`.

    Returns:
      Bytes, all and by group. What the state has at a parameter's path, whatever stands before and
      behind it (`mu/head/kernel/codes`), belongs to this parameter.

    Raises:
      ValueError: no arrays in `params`, `grads` unlike them, a `tx` or `patterns` that are none.

    Example:
      >>> import adam_jax, jax, jax.numpy as jnp
      >>> params = {"head": jax.ShapeDtypeStruct((1024, 4096), jnp.bfloat16)}
      >>> tx = adam_jax.adamw(1e-3, mu_dtype=jnp.int8, nu_dtype=jnp.int8)
      >>> tx = adam_jax.master_residual(tx)
      >>> print(adam_jax.inspect.bytes_per_parameter(params, tx))
      bytes per parameter
                     size  parameters  gradients  state  total     bytes
      head      4,194,304        2.00       2.00   4.06   8.06  33.82 MB
      (shared)          0                                            8 B
      all       4,194,304        2.00       2.00   4.06   8.06  33.82 MB
    """
    return Plan.of(params, tx, grads).bytes(patterns)


def report(
    params: Params,
    tx: optax.GradientTransformation,
    *,
    grads: Updates = None,
    patterns: Mapping[str, str] | None = None,
    step: Function | None = None,
    args: Sequence[Any] | None = None,
) -> Report:
    """`bytes_per_parameter`, and what a step takes besides: compiled, not run, nothing allocated.

    Parameters and state are donated to the step, and returned in this order.

    Args:
      params: as in `bytes_per_parameter`, as are `tx`, `grads` and `patterns`.
      tx: any Optax transformation.
      grads: the gradients.
      patterns: names and regular expressions.
      step: the run's, `step(params, state, *args)`, which returns the new parameters, the new state
        and anything else; what is temporary then includes the activations. If left out,
        `adam_jax.step` alone.
      args: the other arguments of `step`, such as a batch: arrays or `jax.ShapeDtypeStruct`s. If
        left out, the gradients.

    Returns:
      A report to print. What is temporary is so on the platform of this process: XLA:CPU stores
      some of what XLA:GPU computes twice.

    Raises:
      ValueError: as in `bytes_per_parameter`; `args` without a `step`.

    Example:
      >>> import adam_jax, jax, jax.numpy as jnp
      >>> params = {"head": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}
      >>> report = adam_jax.inspect.report(params, adam_jax.adamw(1e-3))
      >>> print(f"{report.model.per_parameter.total:.2f}, {report.peak / 1e6:.1f} MB")
      16.00, 16.0 MB
    """
    if args is not None and step is None:
        raise ValueError(f"args must come with the step that takes them, got {args!r}: pass step=.")
    plan = Plan.of(params, tx, grads)

    def own_step(params: Params, state: State, grads: Updates) -> PyTree:
        return transformation.step(tx, grads, state, params)

    # What a step does not read is in memory all the same.
    jitted = jax.jit(step or own_step, donate_argnums=(0, 1), keep_unused=True)
    with warnings.catch_warnings():
        # What the report has as results.
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")
        given = (plan.grads,) if args is None else args
        compiled = jitted.lower(plan.params, plan.state, *given).compile()
    memory: Any = compiled.memory_analysis()
    return Report(
        model=plan.bytes(patterns),
        platform=jax.default_backend(),
        arguments=memory.argument_size_in_bytes,
        results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
    )


def live_bytes(*trees: PyTree) -> LiveBytes:
    """What the arrays of these trees really occupy, on the devices of this process.

    An array that is there twice, or has its buffer in common with another, counts once; one that
    was donated, not at all. Two codes of 4 bits are one byte (`.nbytes` says two). What lies on no
    device, as NumPy's arrays, does not count.

    Args:
      *trees: parameters, gradients, a state; if left out, all arrays that are alive.

    Returns:
      Bytes, of all devices and of each. What is replicated is on each device.

    Raises:
      ValueError: no JAX arrays in `trees`; inside of jit.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> params = {"w": jnp.ones((256, 1024))}
      >>> adam_jax.inspect.live_bytes(params, params).total
      1048576
    """
    arrays = [x for x in jax.tree.leaves(trees) if isinstance(x, jax.Array)]
    if trees and not arrays:
        raise ValueError(
            f"trees must have JAX arrays in them, got {trees!r}: pass params, grads, state, or"
            f" nothing for all arrays that are alive."
        )
    if any(isinstance(x, jax.core.Tracer) for x in arrays):
        raise ValueError(
            "trees must have arrays in them, got tracers, which have no memory yet: call live_bytes"
            " outside of jit, or bytes_per_parameter."
        )
    buffers: dict[tuple[str, int], int] = {}
    for x in arrays if trees else jax.live_arrays():
        if x.is_deleted():
            continue
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        for shard in x.addressable_shards:
            if n := bytes_of(shard.data):
                kind, own = x.sharding.memory_kind, shard.device.default_memory().kind
                place = f"{shard.device}, {kind}" if kind not in (None, own) else str(shard.device)
                buffer = place, shard.data.unsafe_buffer_pointer()
                buffers[buffer] = max(n, buffers.get(buffer, 0))
    per_device: dict[str, int] = {}
    for (place, _), n in buffers.items():
        per_device[place] = per_device.get(place, 0) + n
    return LiveBytes(sum(per_device.values()), per_device)
