"""Bytes of parameters, gradients and state: predicted before any allocation, and live."""

import collections
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax._types import Function, Leaf, Params, PyTree, State, Updates
from adam_jax.engine import transformation
from adam_jax.engine.layers import looks_stacked
from adam_jax.engine.plan import Noted, steps_noted
from adam_jax.engine.states import owners
from adam_jax.engine.trees import is_stored, leaf_paths
from adam_jax.inspect.amounts import SHARED, Bytes, LiveBytes, Report, bytes_of
from adam_jax.modify.layers import layers_of
from adam_jax.sharding.shard import like_params, without_sharding
from adam_jax.wrap.telemetry import telemetry


def bytes_per_parameter(
    params: Params,
    tx: optax.GradientTransformation,
    *,
    grads: Updates = None,
    patterns: Mapping[str, str] | None = None,
) -> Bytes:
    """Predicts the bytes of parameters, gradients and state, by group; nothing is allocated.

    Args:
      params: arrays, or `jax.ShapeDtypeStruct`s of them, as from `jax.eval_shape(model.init, ...)`.
        Include the `NamedSharding`s of the run, if any: the length of blocks can depend on them.
      tx: any Optax transformation.
      grads: a tree like `params`, of arrays or structs, with None for a leaf that has no gradient.
        By default gradients have the dtypes of the parameters, and integers have none.
      patterns: names and regular expressions that match the whole path of a leaf, as in
        `telemetry`. The first match wins; leaves without a match are "other". None groups leaves by
        the first key of their path.

    Returns:
      Bytes, in total and by group. An array of the state whose path contains that of a parameter,
      with any prefix and suffix (`mu/head/kernel/codes`), belongs to this parameter.

    Raises:
      ValueError: no arrays in `params`, `grads` unlike them, an invalid `tx` or `patterns`.

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
    return _bytes(*planned(params, tx, grads), tx, patterns)


def report(
    params: Params,
    tx: optax.GradientTransformation,
    *,
    grads: Updates = None,
    patterns: Mapping[str, str] | None = None,
    step: Function | None = None,
    args: Sequence[Any] | None = None,
) -> Report:
    """Reports `bytes_per_parameter` and the memory of a step, which is compiled but not run.

    Nothing is allocated. Parameters and state are donated to the step, and returned in this order.

    Args:
      params: as in `bytes_per_parameter`, as are `tx`, `grads` and `patterns`.
      tx: any Optax transformation.
      grads: the gradients.
      patterns: names and regular expressions.
      step: the run's step, `step(params, state, *args)`, which returns the new parameters, the new
        state and anything else. Temporaries then include the activations. By default
        `adam_jax.step` alone.
      args: the other arguments of `step`, such as a batch: arrays or `jax.ShapeDtypeStruct`s. By
        default the gradients.

    Returns:
      A report to print. Temporaries are those of the platform of this process: XLA:CPU stores some
      arrays that XLA:GPU computes twice. On any platform the report shows which leaves a kernel
      steps on TPUs (see `with_kernel`).

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
    params, grads, state = planned(params, tx, grads)

    def own_step(params: Params, state: State, grads: Updates) -> PyTree:
        return transformation.step(tx, grads, state, params)

    # Arguments that the step does not read occupy memory too.
    jitted = jax.jit(step or own_step, donate_argnums=(0, 1), keep_unused=True)
    with warnings.catch_warnings():
        # The report shows these as results.
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")
        given = (grads,) if args is None else args
        with steps_noted() as steps:
            compiled = jitted.lower(params, state, *given).compile()
    memory: Any = compiled.memory_analysis()
    return Report(
        model=_bytes(params, grads, state, tx, patterns),
        platform=jax.default_backend(),
        arguments=memory.argument_size_in_bytes,
        results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        on_tpus={path: noted.way for path, noted in steps.items()},
        undeclared={} if layers_of(tx) else looks_stacked(params),
    )


def stepped_on(
    params: Params, tx: optax.GradientTransformation, grads: Updates, state: State
) -> dict[str, Noted]:
    """How each leaf of a `planned` run would be stepped, by path."""
    with steps_noted() as steps:
        jax.eval_shape(lambda *xs: transformation.step(tx, *xs), grads, state, params)
    return steps


def live_bytes(*trees: PyTree) -> LiveBytes:
    """The bytes that the arrays of these trees occupy on the devices of this process.

    An array that occurs twice, or shares its buffer with another, counts once. A donated array does
    not count, nor does an array that is on no device, such as NumPy's. Two 4-bit codes are one byte
    (`.nbytes` says two).

    Args:
      *trees: parameters, gradients, a state; by default all live arrays.

    Returns:
      Bytes, of all devices and of each. Replicated arrays are on each device.

    Raises:
      ValueError: no JAX arrays in `trees`; a call inside jit.

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
    per_device = collections.Counter()
    for (place, _), n in buffers.items():
        per_device[place] += n
    return LiveBytes(per_device.total(), dict(per_device))


def planned(
    params: Params, tx: optax.GradientTransformation, grads: Updates
) -> tuple[Params, Updates, State]:
    """Describes a run's arrays by `jax.ShapeDtypeStruct`s, with shardings if they are on a mesh.

    Args:
      params: the parameters.
      tx: the transformation.
      grads: the gradients; None if they are like their parameters.

    Raises:
      ValueError: they do not fit together.
    """
    transformation.body_of("tx", tx)
    params = _described("params", params)
    if not jax.tree.leaves(params):
        raise ValueError(
            f"params must have arrays or jax.ShapeDtypeStructs in it, got {params!r}: pass the"
            f" parameters, or jax.eval_shape(model.init, ...)."
        )
    if grads is None:
        grads = jax.tree.map(lambda p: p if jnp.issubdtype(p.dtype, jnp.inexact) else None, params)
    else:
        grads = _described("grads", grads)
        _check_gradients(params, grads)
    return params, grads, _state(params, tx)


def _bytes(
    params: Params,
    grads: Updates,
    state: State,
    tx: optax.GradientTransformation,
    patterns: Mapping[str, str] | None,
) -> Bytes:
    """The bytes of a planned run, by group."""
    group_of = telemetry(optax.identity(), patterns=patterns).body.group  # The same convention.
    names = [group_of(path) for path in leaf_paths(params, none_is_leaf=False)]
    leaves, treedef = jax.tree.flatten(params)
    sums: dict[str, Any] = collections.defaultdict(lambda: np.zeros(4, np.int64))
    for p, g, name in zip(leaves, treedef.flatten_up_to(grads), names, strict=True):
        sums[name] += [p.size, bytes_of(p), 0 if g is None else bytes_of(g), 0]
    for stored, i in owners(state, params):
        of_state = sum(map(bytes_of, jax.tree.leaves(stored)))
        sums[SHARED if i is None else names[i]] += [0, 0, 0, of_state]
    order = sorted(sums, key=lambda name: (name == SHARED, name))
    groups = {name: Bytes(*sums[name].tolist()) for name in order}
    every = np.sum(list(sums.values()), axis=0).tolist()
    return Bytes(*every, groups=groups, lost_codes=_lost_codes(params, tx, state))


def _described(argument: str, tree: PyTree) -> Any:
    leaves = jax.tree.leaves(tree)
    for path, x in zip(leaf_paths(tree, none_is_leaf=False), leaves, strict=True):
        if not hasattr(x, "dtype") and not isinstance(x, int | float | complex):
            raise ValueError(
                f"{argument} must be a tree of arrays or jax.ShapeDtypeStructs, got"
                f" {type(x).__name__} at {path!r}: put None there."
            )

    def described(x: Leaf, seen: Any) -> Leaf:
        sharding = getattr(x, "sharding", None)  # One of a single device is only JAX's default.
        sharding = sharding if isinstance(sharding, jax.sharding.NamedSharding) else None
        return jax.ShapeDtypeStruct(seen.shape, seen.dtype, sharding=sharding)

    return jax.tree.map(described, tree, jax.eval_shape(lambda t: t, tree))


def _check_gradients(params: Params, grads: Updates) -> None:
    leaves, treedef = jax.tree.flatten(params)
    try:
        own = treedef.flatten_up_to(grads)
    except ValueError:
        raise ValueError(
            f"grads must be a tree like params, with None for a leaf that has no gradient, got"
            f" {jax.tree.structure(grads)} for {treedef}."
        ) from None
    for path, p, g in zip(leaf_paths(params, none_is_leaf=False), leaves, own, strict=True):
        if g is not None and getattr(g, "shape", None) != p.shape:
            raise ValueError(
                f"grads must be like params, got {g} for the shape {p.shape} at {path!r}: pass the"
                f" gradients of these parameters."
            )


def _state(params: Params, tx: optax.GradientTransformation) -> PyTree:
    """The state, sharded as `tx.init` makes it outside jit for such parameters."""
    meshes = {x.sharding.mesh for x in jax.tree.leaves(params) if x.sharding is not None}
    if len(meshes) != 1:
        return jax.eval_shape(tx.init, params)
    # Traced arrays have shardings only on a mesh with explicit axes.
    [mesh] = meshes
    if not mesh.are_all_axes_explicit and without_sharding(tx) == tx:
        state = jax.eval_shape(tx.init, params)
        return jax.tree.map(lambda x, s: x.update(sharding=s), state, like_params(state, params))
    explicit = (jax.sharding.AxisType.Explicit,) * len(mesh.axis_names)
    described = mesh.abstract_mesh.update(axis_types=explicit)
    with jax.sharding.use_abstract_mesh(described):
        state = jax.eval_shape(tx.init, _on(described, params))
    return _on(mesh, state)


def _on(mesh: PyTree, tree: PyTree) -> PyTree:
    """The same shardings on another mesh with the same axes."""

    def moved(x: Leaf) -> Leaf:
        sharding = x.sharding and jax.sharding.NamedSharding(mesh, x.sharding.spec)
        return x.update(sharding=sharding)

    return jax.tree.map(moved, tree)


def _lost_codes(params: Params, tx: optax.GradientTransformation, state: State) -> tuple[str, ...]:
    """The parameters that have no codes in this state, but would if nothing were split."""
    params = jax.tree.map(lambda p: p.update(sharding=None), params)
    whole = jax.eval_shape(without_sharding(tx).init, params)
    paths = leaf_paths(params, none_is_leaf=False)
    flat = jax.tree.leaves_with_path(state, is_leaf=is_stored)
    kept = {keys: x for (keys, _), x in zip(flat, owners(state, params), strict=True)}
    lost = {}
    for keys, coded in jax.tree.leaves_with_path(whole, is_leaf=is_stored):
        stored, i = kept[keys]
        if is_stored(coded) and not is_stored(stored):
            lost[jax.tree_util.keystr(keys) if i is None else paths[i]] = None
    return tuple(lost)
