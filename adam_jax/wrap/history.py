"""Clips gradients and updates whose norm is far above that of the steps before."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax._types import Leaf, Named, Number, Params, PyTree, State
from adam_jax.core.stacked import Layers, layer_by_layer, over_layers
from adam_jax.core.states import only, register
from adam_jax.core.step import Body, Factor, Step, check_state, select
from adam_jax.core.transformation import Transformation
from adam_jax.core.trees import leaf_paths
from adam_jax.numerics import root, squared
from adam_jax.pytrees import frozen_pytree, static
from adam_jax.validation import check_integer, check_number
from adam_jax.wrap.chain import inner_body
from adam_jax.wrap.clip import added, in_rows
from adam_jax.wrap.skip import alarm


class HistoryState(NamedTuple):
    """State of `clip_by_history`: steps clipped in a row and in all, and histories by name.

    A history has the mean and variance of the norms as clipped, their number, and how many of them
    were clipped: an array [4], or [layers, 4] for stacked layers.
    """

    consecutive: jax.Array
    total: jax.Array
    gradients: Named | None
    updates: Named | None
    inner_state: State


register(HistoryState, inner=["inner_state"], others_matter=False)


@frozen_pytree
class ClipByHistory(Body):
    """The body of `clip_by_history`, with its arguments."""

    inner: Body
    gradients: Number
    updates: Number
    decay: Number
    sigmas: bool = static()
    per_leaf: bool = static()
    warmup: int = static()
    warn: int | None = static()
    layers: Layers = static(default=Layers())

    def init(self, params: Params) -> HistoryState:
        pairs = zip(leaf_paths(params, none_is_leaf=False), jax.tree.leaves(params), strict=True)
        shapes = {"all": ()}
        if self.per_leaf:
            shapes = {path: np.shape(p)[: self.layers.axes(path)] for path, p in pairs}

        def history(limit: Number) -> PyTree:
            # As in `telemetry`, one leaf stands for all in optax.tree.map_params.
            made = {name: jnp.zeros((*shape, 4), jnp.float32) for name, shape in shapes.items()}
            return None if limit is None else made or jnp.zeros(4, jnp.float32)

        none, total = jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32)
        limits, inner_state = (self.gradients, self.updates), self.inner.init(params)
        return HistoryState(none, total, *map(history, limits), inner_state=inner_state)

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        check_state(state, HistoryState, "a HistoryState")
        ok, gradients, updates, after = step.ok, state.gradients, state.updates, ()
        if gradients is not None:
            factor, gradients = self.compared(step, gradients, self.gradients)
            step = step.times(factor)
        if updates is not None:
            # Measured by a step of its own: to store its updates would take memory in every step.
            out, _ = self.inner.run(step.but(apply=False, last=False), state.inner_state)
            factor, updates = self.compared(out, updates, self.updates)
            after = (factor,)
            # Factors are never NaN. XLA does not know it, and so begins the step only after the
            # measurement, and computes nothing for both: it would store that, or copy moments.
            unknown = _any([jnp.isnan(f) for f in jax.tree.leaves(factor)])
            p = jax.tree.map(lambda x: jnp.where(unknown, 0, x), list(step.p))
            step = step.only_if(~unknown).but(p=p)
        if step.last:
            step = step.but(update_factors=(*step.update_factors, *after))
        out, inner_state = self.inner.run(step, state.inner_state)
        out = out.but(ok=ok) if step.last else out.but(ok=ok).times(*after)
        both = (gradients, updates), (state.gradients, state.updates)
        pairs = zip(*map(jax.tree.leaves, both), strict=True)
        spike = _any([x[..., -1] > y[..., -1] for x, y in pairs])
        old, more = (state.consecutive, state.total), jnp.where(spike, 1, 0)
        counts = select(ok, ((old[0] + 1) * more, old[1] + more), old)
        if self.warn is not None:
            alarm(counts[0], state.consecutive, self.warn, "clipped: their norms are spikes.")
        return out, HistoryState(counts[0], counts[1], gradients, updates, inner_state)

    def compared(self, step: Step, old: Named, limit: Number) -> tuple[Factor, Named]:
        """The factors of all leaves, and the histories with their norms."""
        names, stacks, factors, new = step.paths, step.stacks(self.layers), [], dict(old)
        sums = list(map(_sum_of_squares, step.values, [stack.axes for stack in stacks]))
        if not self.per_leaf:
            names, sums = ["all"], [sum(layer_by_layer(sums, stacks))] if sums else []
        for name, total, g in zip(names, sums, step.g, strict=False):
            x = 2 * root(total)
            mean, variance, seen, clipped = jnp.moveaxis(old[name], -1, 0)
            largest = limit * mean
            if self.sigmas:
                # Equal norms have no variance, and their mean is off by rounding.
                largest = mean + limit * jnp.maximum(root(variance), 1e-6 * mean)
            # Zero is the norm of a leaf that is not used yet, or without a learning rate.
            counts = (x > 0) & (x < jnp.inf) & (True if step.ok is None else step.ok)
            spike = counts & (seen >= self.warmup) & (x > largest)
            share = jnp.maximum(1 - self.decay, 1 / (seen + 1))
            moved, clipped = jnp.where(spike, largest, x) - mean, jnp.where(spike, 1, 0) + clipped
            variance = (1 - share) * (variance + share * moved**2)
            row = jnp.stack([mean + share * moved, variance, seen + 1, clipped], -1)
            new[name] = jnp.where(counts[..., None], row, old[name])
            f = jnp.where(spike, largest / jnp.where(spike, x, 1), 1)
            f = jnp.reshape(f, (*f.shape, *[1] * (g.ndim - f.ndim))) if f.ndim else f
            factors.append(f)
        return factors if self.per_leaf or not factors else factors[0], new


def _any(xs: list[jax.Array]) -> jax.Array:
    return jnp.any(jnp.stack([jnp.asarray(False), *map(jnp.any, xs)]))


def _sum_of_squares(x: jax.Array, axes: int) -> jax.Array:
    """Σ|x/2|² over a leaf, or each layer of it; XLA:CPU would share |x|² with nu, and store it."""

    def on_cpu(x: jax.Array) -> jax.Array:
        # Two sums in one reduction: XLA:CPU would store the operand of a single one.
        rows, along = in_rows(x.shape)
        x = jnp.reshape(x, rows)
        total, missing = added([x, jnp.isnan(x)], along)
        return jnp.sum(jnp.where(missing, jnp.nan, total))

    def of_layer(_: Leaf, x: jax.Array) -> jax.Array:
        total = jax.lax.platform_dependent(squared(x / 2), cpu=on_cpu, default=jnp.sum)
        return jax.lax.convert_element_type(total, jnp.float32)

    return over_layers(of_layer, axes, 1, x) if axes else of_layer(0, x)


def clip_by_history(
    inner: optax.GradientTransformation,
    gradients: jax.typing.ArrayLike | None = 4.0,
    updates: jax.typing.ArrayLike | None = None,
    *,
    sigmas: bool = False,
    per_leaf: bool = False,
    decay: jax.typing.ArrayLike = 0.97,
    warmup: int = 25,
    warn: int | None = None,
) -> Transformation:
    """Scales down a gradient, or an update, whose norm is far above those of the steps before.

        g ← g·min(1, limit / ‖g‖)       limit = k·mean, or mean + k·σ with `sigmas`

    mean and σ are averages, at the rate `decay`, of the norms as clipped, so that a new level is
    accepted after a while. Norms that are zero, NaN or infinite do not enter and pass unchanged:
    put `skip_nonfinite` around.

    Args:
      inner: any Optax transformation. `accumulate` goes around this one.
      gradients: k of the gradient, > 0; None leaves it alone.
      updates: k of the update, after the learning rate; None leaves it alone. To measure it reads
        gradient, moments and parameters once more, 12 to 16 bytes per parameter for `adamw`.
      sigmas: k counts standard deviations; 6 is usual.
      per_leaf: each leaf, and each layer that `with_layers` declares, has a history of its own.
      decay: of the averages, per optimizer step, 0 ≤ decay < 1.
      warmup: the number of norms at the start of a history that are not clipped.
      warn: warns from inside the program when so many steps in a row were clipped; its cost is
        that of `skip_nonfinite(warn=True)`.

    Returns:
      A transformation with the state `HistoryState`, which `clipped` reads. Gradients are
      multiplied where the step reads them, and updates where it adds them: neither is stored.

    Raises:
      ValueError: an argument outside its range, or both limits None.

    Differs from ZClip in: a spike is clipped to the limit. ZClip's norm falls below it, and stays
    at the old level for good if the level of the gradients rises.

    Reference: Kumar et al. 2025, ZClip (https://arxiv.org/abs/2504.02507), for the averages, 0.97
    and 25; AXLearn's `drop_norm_by_grad_norm_ema` for multiples of a mean; Levanter's
    `clip_update_by_historical_norm`, in Marin's 32B run, for updates.
    """
    if gradients is None and updates is None:
        raise ValueError("gradients or updates must be a number, got None for both: 4.0 is usual.")
    limits = [
        x if x is None else check_number(name, x, 1e-30, instead="None leaves it alone")
        for name, x in (("gradients", gradients), ("updates", updates))
    ]
    decay = check_number("decay", decay, 0.0, 1.0, instead="the usual value is 0.97")
    check_integer("warmup", warmup, 1, instead="the usual value is 25")
    if warn is not None:
        check_integer("warn", warn, 1, instead="None does not warn")
    body = inner_body("inner", inner)
    own = ClipByHistory(body, limits[0], limits[1], decay, sigmas, per_leaf, warmup, warn)
    return Transformation.around(own)


def clipped(state: State) -> Named:
    """How often `clip_by_history`, whose state may be nested anywhere in `state`, has clipped.

    Returns:
      `{"consecutive": 0, "gradients/all": 3, "total": 3}`: steps in a row up to now, in
      the whole run, and how often each norm was clipped; `"gradients/head/kernel"` per leaf. Lists
      for several models under vmap, and for layers.

    Raises:
      ValueError: `state` does not contain exactly one `clip_by_history`.
    """
    instead = "pass the state of clip_by_history(...), or of a transformation around it"
    own = only(state, lambda x: isinstance(x, HistoryState), "clip_by_history", instead)
    norms = jax.tree.map(lambda x: x[..., -1], {"gradients": own.gradients, "updates": own.updates})
    tree = {"consecutive": own.consecutive, "total": own.total} | norms
    pairs = zip(leaf_paths(tree, none_is_leaf=False), jax.tree.leaves(tree), strict=True)
    return {path: np.asarray(x).astype(int).tolist() for path, x in pairs}
