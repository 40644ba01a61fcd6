"""Statistics of what a step does to each group of parameters, measured periodically inside it."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax._types import Leaf, Named, Params, PyTree, State
from adam_jax.core.stacked import Layers
from adam_jax.core.states import found, register
from adam_jax.core.step import Body, Step, applied, check_state, joined
from adam_jax.core.transformation import Transformation
from adam_jax.core.trees import align_params, leaf_paths
from adam_jax.formats.dense import is_floating
from adam_jax.pytrees import frozen_pytree, static
from adam_jax.validation import check_expression, check_integer
from adam_jax.wrap.chain import inner_body
from adam_jax.wrap.statistics import NAMES, statistics
from adam_jax.xla.barrier import kept_apart
from adam_jax.xla.once import if_due


class TelemetryState(NamedTuple):
    """State of `telemetry`.

    Attributes:
      count: optimizer steps completed.
      step: the last measured step, counted from 1; 0 before the first measurement.
      groups: float32 scalars, by group and by name; a zero if there are no parameters.
      inner_state: the state of the inner transformation.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    step: jax.Array
    groups: PyTree
    inner_state: State


register(
    TelemetryState,
    counts=["count"],
    inner=["inner_state"],
    own=["step", "groups"],
    own_matters=False,
)


@frozen_pytree
class Telemetry(Body):
    """The body of `telemetry`."""

    inner: Body
    every: int = static()
    patterns: tuple[tuple[str, str], ...] | None = static()
    by_layer: bool = static(default=False)
    layers: Layers = static(default=Layers())

    def init(self, params: Params) -> TelemetryState:
        """Zeros before the first measurement, which `measured` does not show."""
        inner_state = self.inner.init(params)
        groups = {}
        paths = leaf_paths(params, none_is_leaf=False)
        for (group, count), _ in self.members(paths, [(p,) for p in jax.tree.leaves(params)]):
            for its in self.names(group, count):
                groups[its] = {name: jnp.zeros([], jnp.float32) for name in NAMES}
        # optax.tree.map_params calls init with a tree without leaves. One leaf in that state
        # stands for the whole subtree of other states.
        groups = groups or jnp.zeros([], jnp.float32)
        zero = jnp.zeros([], jnp.int32)
        return TelemetryState(zero, jnp.zeros([], jnp.int32), groups, inner_state)

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        """One step, with a measurement if one is due."""
        check_state(state, TelemetryState, "a TelemetryState")
        if step.params is None:
            raise ValueError(
                "params must be given, got None: telemetry measures them. Write tx.update(grads,"
                " state, params)."
            )
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
            columns = zip(step.here, its.p, its.values, out.values, strict=True)
            for i, p, g, u in columns:
                leaves[i] = p, g, u, applied(u, p)
            groups = {}
            own = [step.every_path[i] for i in step.own], [leaves[i] for i in step.own]
            for (group, count), members in self.members(*own):
                its_values = statistics(members, count)
                for k, name in enumerate(self.names(group, count)):
                    one = its_values if count is None else {n: x[k] for n, x in its_values.items()}
                    groups[name] = one
            return *kept_apart(given), groups or nothing

        # The step uses the measurement's outputs. Otherwise XLA could step first and would keep a
        # copy of all measured arrays.
        carry = (list(step.g), state.inner_state, list(step.p), state.groups)
        g, inner_state, p, groups = if_due(due, measured, carry)
        out, inner_state = self.inner.run(step.but(g=g, p=p), inner_state)
        measured_at = jnp.where(due, count, state.step)
        return out, TelemetryState(count, measured_at, groups, inner_state)

    def members(
        self, paths: Sequence[str], leaves: Sequence[tuple[Leaf, ...]]
    ) -> list[tuple[tuple[str, int | None], list[tuple[Leaf, ...]]]]:
        """The leaves of each group; integers, booleans and keys are in none.

        A group's key is its name and its number of layers, which is None unless its leaves are
        measured layer by layer. Each leaf begins with its parameter.
        """
        members: dict[tuple[str, int | None], list[tuple[Leaf, ...]]] = {}
        for path, leaf in zip(paths, leaves, strict=True):
            if leaf[0] is not None and is_floating(leaf[0]):
                axes = self.layers.axes(path) if self.by_layer else 0
                count = math.prod(np.shape(leaf[0])[:axes]) if axes else None
                members.setdefault((self.group(path), count), []).append(leaf)
        return sorted(members.items(), key=lambda item: (item[0][0], item[0][1] or 0))

    def names(self, group: str, count: int | None) -> list[str]:
        """The names under which a group is measured: one per layer, or the group's own."""
        return [group] if count is None else [f"{group}/{k}" for k in range(count)]

    def group(self, path: str) -> str:
        """The name of the first expression that matches a leaf's path, or the path's first key."""
        if self.patterns is None:
            return path.split("/")[0]
        return next((name for name, e in self.patterns if re.fullmatch(e, path)), "other")


def telemetry(
    inner: optax.GradientTransformation,
    every: int = 100,
    patterns: Mapping[str, str] | None = None,
    *,
    by_layer: bool = False,
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
      by_layer: measures each layer of stacked leaves, as declared by `with_layers` around this, as
        a separate group: `blocks/0`, `blocks/1`, ...

    Returns:
      A transformation with the state `TelemetryState`, which `measured(state)` reads. The steps are
      those of `inner`. The names of the groups are part of the state's structure. In the other
      steps the cost is a branch not taken. Inside `accumulate` it measures optimizer steps. Inside
      `shard_map` the statistics are those of the whole leaves, the same on all devices. Integers,
      booleans and keys are not measured.
      `update` needs params.

    Raises:
      ValueError: `every` below 1, an invalid expression, params missing in `update`.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> tx = adam_jax.telemetry(adam_jax.adamw(1e-3), every=1)
      >>> params = {"head": jnp.ones(3)}
      >>> _, state = adam_jax.step(tx, params, tx.init(params), params)
      >>> print(f"{adam_jax.measured(state)['groups']['head']['cosine']:.2f}")
      -1.00
    """
    every = check_integer("every", every, 1, instead="100 is usual")
    for name, expression in (patterns or {}).items():
        check_expression(f"patterns[{name!r}]", expression)
    ordered = None if patterns is None else tuple(patterns.items())
    return Transformation.around(Telemetry(inner_body("inner", inner), every, ordered, by_layer))


def measured(state: State) -> Named:
    """The last measurement of `telemetry`, whose state may be nested anywhere in `state`.

    Returns:
      `{"step": 200, "groups": {"head": {"gradient_rms": 0.01, ...}}}` with Python numbers (lists
      under vmap). Before the first measurement the step is 0 and there are no groups.
      `adam_jax.inspect` writes and plots such records.

    Raises:
      ValueError: `state` does not contain exactly one `telemetry`.
    """
    states = found(state, lambda x: isinstance(x, TelemetryState))
    if len(states) != 1:
        raise ValueError(
            f"state must have one telemetry in it, got {len(states)}: pass the state of"
            f" telemetry(...), or of a transformation around it."
        )
    step = np.asarray(states[0].step).tolist()
    groups = jax.tree.map(lambda x: np.asarray(x).tolist(), states[0].groups)
    return {"step": step, "groups": groups if np.any(step) and groups else {}}
