"""Bytes of parameters, gradients and state: predicted before any allocation."""

import collections
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax._types import Function, Leaf, Params, PyTree, State, Updates
from adam_jax.core import transformation
from adam_jax.core.leaf import Plan
from adam_jax.core.states import owners
from adam_jax.core.step import Step, zeros_for
from adam_jax.core.transformation import body_of
from adam_jax.core.trees import is_stored, leaf_paths
from adam_jax.formats.dense import is_floating
from adam_jax.inspect.tables import aligned
from adam_jax.sharding import like_params, without_sharding
from adam_jax.validation import printed
from adam_jax.wrap.chain import inner_body
from adam_jax.wrap.telemetry import telemetry

SHARED = "(shared)"
"""The group of arrays without a parameter: counts, hyperparameters."""


class PerParameter(NamedTuple):
    """Bytes per element of the parameters."""

    parameters: float
    gradients: float
    state: float
    total: float


@dataclasses.dataclass(frozen=True)
class Bytes:
    """The memory of a model, or of a group of its leaves; it prints as a table.

    Arrays that are replicated over devices count once.

    Attributes:
      size: elements of the parameters.
      parameters: bytes of the parameters.
      gradients: bytes of the gradients.
      state: bytes of the optimizer's state.
      groups: the same for each group, by name; they add up to this. Arrays of the state that belong
        to no parameter are in "(shared)".
      lost_codes: paths of parameters whose moments stay float32 although codes were requested,
        since no block of 32 or more fits into one device's part of them.
    """

    size: int
    parameters: int
    gradients: int
    state: int
    groups: Mapping[str, "Bytes"] = dataclasses.field(default_factory=dict)
    lost_codes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Bytes of all three."""
        return self.parameters + self.gradients + self.state

    @property
    def per_parameter(self) -> PerParameter:
        """Each of them and their total, per element; 0 if there are no elements."""
        parts = (self.parameters, self.gradients, self.state, self.total)
        return PerParameter(*(part / self.size if self.size else 0.0 for part in parts))

    def __str__(self) -> str:
        rows = [["", "size", *PerParameter._fields, "bytes"]]
        for name, x in (*self.groups.items(), ("all", self)):
            parts = [f"{part:.2f}" if x.size else "" for part in x.per_parameter]
            rows.append([name, f"{x.size:,}", *parts, _readable(x.total)])
        text = f"bytes per parameter\n{aligned(rows)}"
        if self.lost_codes:
            paths = ", ".join(self.lost_codes)
            text += f"\nfloat32, as no block of codes fits into a device's part: {paths}"
        return text


@dataclasses.dataclass(frozen=True)
class Report:
    """The memory of a model and of one step; it prints as two tables.

    Attributes:
      model: parameters, gradients, state.
      platform: the step is compiled for it: "cpu", "gpu" or "tpu".
      arguments: bytes of the step's arguments. These and the following are on each device.
      results: bytes of results that do not reuse the memory of donated arguments. More than a
        pointer for each array is a copy (see `adam_jax.step`).
      temporaries: bytes that are allocated only while the step runs.
      on_tpus: for each leaf that is stepped, by path: "one kernel", or "XLA: ..." with the reason.
    """

    model: Bytes
    platform: str
    arguments: int
    results: int
    temporaries: int
    on_tpus: dict[str, str]

    @property
    def peak(self) -> int:
        """Bytes on each device while the step runs."""
        return self.arguments + self.results + self.temporaries

    def __str__(self) -> str:
        rows = [["", "per parameter", "bytes"]]
        for name in ("arguments", "results", "temporaries", "peak"):
            value = getattr(self, name)
            rows.append([name, f"{value / max(self.model.size, 1):.2f}", _readable(value)])
        tables = f"{self.model}\n\na step, on each device ({self.platform})\n{aligned(rows)}"
        ways = collections.Counter(self.on_tpus.values())
        leaves = [["", "leaves"], *([way, str(n)] for way, n in ways.most_common())]
        return f"{tables}\n\nstepped on TPUs by\n{aligned(leaves)}" if ways else tables


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
      Bytes, in total and by group. An array of the state whose path ends in that of a parameter,
      `mu/head/kernel`, belongs to this parameter.

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

    Parameters and state are donated to the step, and returned in this order.

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
    """
    if args is not None and step is None:
        raise ValueError("args must come with the step that takes them: pass step=.")
    params, grads, state = planned(params, tx, grads)

    def own_step(params: Params, state: State, grads: Updates) -> PyTree:
        def given(g: Leaf, p: Leaf) -> Leaf:  # Optax counts with integers too.
            return zeros_for(g, p) if g is None and not is_floating(p) else g

        grads = jax.tree.map(given, grads, params, is_leaf=lambda x: x is None)
        return transformation.step(tx, grads, state, params)

    # Arguments that the step does not read occupy memory too.
    jitted = jax.jit(step or own_step, donate_argnums=(0, 1), keep_unused=True)
    given = (grads,) if args is None else args
    with warnings.catch_warnings():  # The report shows these as results.
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")
        compiled = jitted.lower(params, state, *given).compile()
    memory: Any = compiled.memory_analysis()
    return Report(
        model=_bytes(params, grads, state, tx, patterns),
        platform=jax.default_backend(),
        arguments=memory.argument_size_in_bytes,
        results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        on_tpus={path: plan.way for path, plan in plans_of(params, tx, grads, state).items()},
    )


def plans_of(
    params: Params, tx: optax.GradientTransformation, grads: Updates, state: State
) -> dict[str, Plan]:
    """The plan of each leaf that this package steps, by path; its `rules` are the rules."""
    body, plans = inner_body("tx", tx), {}

    def run(params: Params, state: State, grads: Updates) -> State:
        step = Step.of(grads, params, True, {}).but(plans=plans)
        return body.run(step, state)[1]

    jax.eval_shape(run, params, state, grads)
    return plans


def bytes_of(x: Leaf) -> int:
    """Bytes of an array or its description; two 4-bit codes are one byte, as in memory."""
    is_integer = jnp.issubdtype(x.dtype, jnp.integer)
    bits = jnp.iinfo(x.dtype).bits if is_integer else 8 * x.dtype.itemsize
    return -(-x.size * bits // 8)


def _readable(n: int) -> str:
    power = min((len(str(n)) - 1) // 3, 4)
    return f"{n / 1000**power:.2f} {'kMGT'[power - 1]}B" if power else f"{n} B"


def planned(
    params: Params, tx: optax.GradientTransformation, grads: Updates
) -> tuple[Params, Updates, State]:
    """A run's arrays as `jax.ShapeDtypeStruct`s, with shardings if they are on a mesh."""
    body_of("tx", tx)
    params = _described("params", params)
    leaves, treedef = jax.tree.flatten(params)
    if not leaves:
        raise ValueError(
            f"params must have arrays or jax.ShapeDtypeStructs in it, got {printed(params)}: pass"
            f" the parameters, or jax.eval_shape(model.init, ...)."
        )
    if grads is None:
        grads = jax.tree.map(lambda p: p if is_floating(p) else None, params)
    grads = _described("grads", grads)
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
    for path, x in zip(leaf_paths(tree, none_is_leaf=False), jax.tree.leaves(tree), strict=True):
        if not hasattr(x, "dtype") and not isinstance(x, int | float | complex):
            raise ValueError(
                f"{argument} must be a tree of arrays or jax.ShapeDtypeStructs, got"
                f" {type(x).__name__} at {path!r}: put None there."
            )

    def described(x: Leaf, seen: Any) -> Leaf:
        sharding = getattr(x, "sharding", None)
        if not isinstance(sharding, jax.sharding.NamedSharding):
            sharding = None  # That of a single device is only JAX's default.
        return jax.ShapeDtypeStruct(seen.shape, seen.dtype, sharding=sharding)

    return jax.tree.map(described, tree, jax.eval_shape(lambda t: t, tree))


def _state(params: Params, tx: optax.GradientTransformation) -> PyTree:
    """The state, sharded as `tx.init` makes it outside jit for such parameters."""
    meshes = {x.sharding.mesh for x in jax.tree.leaves(params) if x.sharding is not None}
    if len(meshes) != 1:
        return jax.eval_shape(tx.init, params)
    [mesh] = meshes
    if not mesh.are_all_axes_explicit and without_sharding(tx) == tx:
        state = jax.eval_shape(tx.init, params)
        return jax.tree.map(lambda x, s: x.update(sharding=s), state, like_params(state, params))
    # Traced arrays have shardings only on a mesh with explicit axes.
    explicit = (jax.sharding.AxisType.Explicit,) * len(mesh.axis_names)
    described = mesh.abstract_mesh.update(axis_types=explicit)

    def on(mesh: PyTree, x: Leaf) -> Leaf:
        if x.sharding is None:
            return x
        return x.update(sharding=jax.sharding.NamedSharding(mesh, x.sharding.spec))

    with jax.sharding.use_abstract_mesh(described):
        state = jax.eval_shape(tx.init, jax.tree.map(lambda x: on(described, x), params))
    return jax.tree.map(lambda x: on(mesh, x), state)


def _lost_codes(params: Params, tx: optax.GradientTransformation, state: State) -> tuple[str, ...]:
    """The parameters that have no codes in this state, but would if nothing were split."""
    params = jax.tree.map(lambda p: p.update(sharding=None), params)
    whole = jax.eval_shape(without_sharding(tx).init, params)
    pairs = zip(owners(state, params), owners(whole, params), strict=True)
    lost = [i for (kept, i), (coded, _) in pairs if is_stored(coded) and not is_stored(kept)]
    paths = leaf_paths(params, none_is_leaf=False)
    return tuple(dict.fromkeys(SHARED if i is None else paths[i] for i in lost))
