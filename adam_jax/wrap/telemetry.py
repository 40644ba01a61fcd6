"""Statistics of what a step does to each group of parameters, measured periodically inside it."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax._types import Leaf, Named, Params, PyTree, State
from adam_jax.core.states import found, only, register
from adam_jax.core.step import Body, Step, applied, check_state, joined, scaled
from adam_jax.core.transformation import Transformation
from adam_jax.core.trees import align_params, leaf_paths
from adam_jax.formats.dense import is_floating
from adam_jax.numerics import squared
from adam_jax.pytrees import frozen_pytree, static
from adam_jax.validation import check_expression, check_integer
from adam_jax.wrap.chain import inner_body
from adam_jax.wrap.clip import added, in_rows
from adam_jax.wrap.history import HistoryState, clipped
from adam_jax.wrap.noise_scale import NoiseScaleState, noise_scale
from adam_jax.xla.barrier import as_varying, kept_apart, varying
from adam_jax.xla.once import if_due


class TelemetryState(NamedTuple):
    """State of `telemetry`: `groups` has float32 scalars of the last measured step, by name.

    Steps count from 1; before the first measurement `step` is 0.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    step: jax.Array
    groups: PyTree
    inner_state: State


register(TelemetryState, counts=["count"], inner=["inner_state"], others_matter=False)


@frozen_pytree
class Telemetry(Body):
    """The body of `telemetry`."""

    inner: Body
    every: int = static()
    patterns: tuple[tuple[str, str], ...] | None = static()

    def init(self, params: Params) -> TelemetryState:
        inner_state = self.inner.init(params)
        paths = leaf_paths(params, none_is_leaf=False)
        members = self.members(paths, [(p,) for p in jax.tree.leaves(params)])
        groups = {name: jax.eval_shape(_statistics, [0.0] * 7) for name in members}
        # optax.tree.map_params calls init with a tree without leaves. One leaf in that state
        # stands for the whole subtree of other states.
        groups = jax.tree.map(jnp.zeros_like, groups) or jnp.zeros([], jnp.float32)
        zero = jnp.zeros([], jnp.int32)
        return TelemetryState(zero, jnp.zeros([], jnp.int32), groups, inner_state)

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        check_state(state, TelemetryState)
        step.needed_params()
        count = step.counted(state.count)
        due = (count % self.every == 0) & (count != state.count)
        params = align_params(step.treedef, step.params, True, step.apply)

        def measured(carry: PyTree) -> PyTree:
            *given, nothing = carry
            # Excluded from differentiation: XLA's reduction of several arrays has no transpose.
            g, inner_state, p = jax.lax.stop_gradient(given)
            # Runs the step a second time: returning the updates would cost memory in every step.
            its = step.but(g=g, p=list(map(joined, p)), apply=False, last=False)
            out, _ = self.inner.run(its, inner_state)
            leaves: list[tuple[Leaf, ...]] = [(p, None, None, p) for p in params]
            for i, p, g, u in zip(step.here, its.p, its.values, out.values, strict=True):
                leaves[i] = p, g, u, applied(u, p)
            groups = {}
            own = [step.every_path[i] for i in step.own], [leaves[i] for i in step.own]
            for name, members in self.members(*own).items():
                sums = map(_sums_over_devices, members)
                groups[name] = _statistics([sum(column) for column in zip(*sums, strict=True)])
            return *kept_apart(given), groups or nothing

        # The step uses the measurement's outputs. Otherwise XLA could step first and would keep a
        # copy of all measured arrays.
        carry = (list(step.g), state.inner_state, list(step.p), state.groups)
        g, inner_state, p, groups = if_due(due, measured, carry)
        out, inner_state = self.inner.run(step.but(g=g, p=p), inner_state)
        return out, TelemetryState(count, jnp.where(due, count, state.step), groups, inner_state)

    def members(
        self, paths: Sequence[str], leaves: Sequence[tuple[Leaf, ...]]
    ) -> dict[str, list[tuple[Leaf, ...]]]:
        """The leaves of each group, by its name.

        A leaf begins with its parameter; integers, booleans and keys are in no group.
        """
        members: dict[str, list[tuple[Leaf, ...]]] = {}
        for path, leaf in zip(paths, leaves, strict=True):
            if leaf[0] is not None and is_floating(leaf[0]):
                members.setdefault(self.group(path), []).append(leaf)
        return members

    def group(self, path: str) -> str:
        """The name of the first expression that matches a leaf's path, or the path's first key."""
        if self.patterns is None:
            return path.split("/")[0]
        return next((name for name, e in self.patterns if re.fullmatch(e, path)), "other")


def _statistics(sums: list[Leaf]) -> dict[str, jax.Array]:
    """The statistics of a group, by name."""
    size, quarter, uu, pp, gu, moving, lost = (jnp.asarray(x, jnp.float32) for x in sums)
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


def _ratio(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y))


def _sums_over_devices(leaf: tuple[Leaf, ...]) -> list[Leaf]:
    """The size of a leaf and its sums, over all devices that hold a part of it."""
    mesh, size = jax.typeof(leaf[0]).sharding.mesh, np.size(leaf[0])
    sums: PyTree = _sums
    if mesh.explicit_axes:  # With automatic axes XLA may place the rows of a sum anywhere.
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        axes = mesh.explicit_axes
        sums = jax.sharding.auto_axes(sums, axes=axes, out_sharding=replicated)
    if not (axes := varying(leaf)):
        return [size, *sums(*leaf)]
    # Inside `shard_map`: replicated values are counted once per device, like varying ones.
    names = tuple(sorted(axes))
    return [size * jax.lax.axis_size(names), *jax.lax.psum(sums(*as_varying(leaf, axes)), names)]


def _sums(p: Leaf, g: Leaf, u: Leaf, moved: Leaf) -> list[jax.Array]:
    """All sums over one leaf in one reduction; with several, XLA would store shared terms."""
    if g is None:  # No update, but the leaf still counts in its group.
        g = u = jnp.zeros_like(p)
    # Once more: the inner step also has derivatives with respect to its own numbers.
    g, u, p, moved = jax.lax.stop_gradient((g, u, p, moved))
    moving = u != 0
    lost = moving & (moved == p)
    g, u, p = (scaled(x) for x in (g, u, p))
    # Not g² itself, which XLA:CPU would share with clipping and store.
    terms = [squared(g / 2), squared(u), squared(p), jnp.real(jnp.conj(g) * u), moving, lost]
    rows, axes = in_rows(g.shape)
    terms = [jnp.reshape(jax.lax.convert_element_type(x, jnp.float32), rows) for x in terms]
    return list(map(jnp.sum, added(terms, axes)))


def telemetry(
    inner: optax.GradientTransformation, every: int = 100, patterns: Mapping[str, str] | None = None
) -> Transformation:
    """Measures periodically, inside the program, what a step does to each group of parameters.

    Per group: `gradient_rms`, `update_rms` and `parameter_rms`; `update_to_parameter`, the ratio of
    their norms (1e-3 is healthy); `cosine` of update and gradient (-1 is downhill);
    `lost_to_rounding`, the share of nonzero updates that leave their element unchanged after
    rounding to its dtype.

    Args:
      inner: any Optax transformation.
      every: optimizer steps between measurements, which are in steps `every`, 2·`every`, ...
      patterns: names and regular expressions that match the whole path of a leaf (see `groups`).
        The first match wins; leaves without a match are "other". None groups leaves by the first
        key of their path.

    Returns:
      A transformation with the state `TelemetryState`, which `measured(state)` reads. The steps are
      those of `inner`. The names of the groups are part of the state's structure. In the other
      steps the cost is a branch not taken. Inside `shard_map` the statistics are those of the whole
      leaves. Integers, booleans and keys are not measured. `update` needs params.

    Raises:
      ValueError: `every` below 1, an invalid expression, params missing in `update`.
    """
    every = check_integer("every", every, 1, instead="100 is usual")
    for name, expression in (patterns or {}).items():
        check_expression(f"patterns[{name!r}]", expression)
    ordered = None if patterns is None else tuple(patterns.items())
    return Transformation.around(Telemetry(inner_body("inner", inner), every, ordered))


def measured(state: State) -> Named:
    """The last measurement of `telemetry`, whose state may be nested anywhere in `state`.

    Returns:
      `{"step": 200, "groups": {"head": {"gradient_rms": 0.01, ...}}}` with Python numbers (lists
      under vmap). Before the first measurement the step is 0 and there are no groups. With one
      `clip_by_history` or `estimate_noise_scale` in `state`, also "clipped" and "noise_scale".
      `adam_jax.inspect` writes and reads such records.

    Raises:
      ValueError: `state` does not contain exactly one `telemetry`.
    """
    instead = "pass the state of telemetry(...), or of a transformation around it"
    own = only(state, lambda x: isinstance(x, TelemetryState), "telemetry", instead)
    step = np.asarray(own.step).tolist()
    groups = jax.tree.map(lambda x: np.asarray(x).tolist(), own.groups)
    record = {"step": step, "groups": groups if np.any(step) and groups else {}}
    readers = ("clipped", HistoryState, clipped), ("noise_scale", NoiseScaleState, noise_scale)
    for name, kind, read in readers:
        if len(found(state, lambda x, kind=kind: isinstance(x, kind))) == 1:
            record[name] = read(state)
    return record
