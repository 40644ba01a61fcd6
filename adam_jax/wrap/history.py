"""Clips gradients and updates whose norm is far above that of the steps before."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax._types import Named, Number, Params, PyTree, State
from adam_jax.core.stacked import Layers
from adam_jax.core.states import only, register
from adam_jax.core.step import Body, Factor, Step, check_state
from adam_jax.core.transformation import Transformation
from adam_jax.core.trees import leaf_paths
from adam_jax.numerics import root, squared
from adam_jax.pytrees import frozen_pytree, static
from adam_jax.validation import check_integer, check_number
from adam_jax.wrap.chain import inner_body
from adam_jax.wrap.clip import Norm, global_norm, leaf_norms
from adam_jax.wrap.skip import alarm


class HistoryState(NamedTuple):
    """State of `clip_by_history`: steps clipped in a row and in all, and histories of norms.

    `norms["gradients"]["all"]`, or `["updates"]` and the path of a leaf, has the mean and variance
    of the norms as clipped, their number, and how many were clipped: [4], or [layers, 4].
    """

    consecutive: jax.Array
    total: jax.Array
    norms: PyTree
    inner_state: State


register(HistoryState, inner=["inner_state"], others_matter=False)


@frozen_pytree
class ClipByHistory(Body):
    """The body of `clip_by_history`, with its arguments."""

    inner: Body
    limits: dict[str, Number]
    decay: Number
    sigmas: bool = static()
    per_leaf: bool = static()
    warn: int | None = static()
    layers: Layers = static(default=Layers())

    def init(self, params: Params) -> HistoryState:
        paths, shapes = leaf_paths(params, none_is_leaf=False), {"all": (4,)}
        if self.per_leaf:
            pairs = zip(paths, jax.tree.leaves(params), strict=True)
            shapes = {path: (*np.shape(p)[: self.layers.axes(path)], 4) for path, p in pairs}

        def rows() -> PyTree:
            # As in `telemetry`, one array stands for all in optax.tree.map_params.
            made = {path: jnp.zeros(shape, jnp.float32) for path, shape in shapes.items()}
            return made or jnp.zeros(4, jnp.float32)

        none, total = jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32)
        norms = {name: rows() for name in self.limits}
        return HistoryState(none, total, norms, self.inner.init(params))

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        check_state(state, HistoryState)
        its, old, new = step, state.norms, {}
        if "gradients" in self.limits:
            factor, new["gradients"] = self.compared(step, old, "gradients")
            its = step.times(factor)
        after = ()
        if "updates" in self.limits:
            # Measured by a step of its own: to store its updates would take memory in every step.
            out, _ = self.inner.run(its.but(apply=False, last=False), state.inner_state)
            factor, new["updates"] = self.compared(out, old, "updates")
            after = (factor,)
            # Factors are never NaN. XLA does not know it, and so begins the step only after the
            # measurement, and computes nothing for both: it would store that, or copy moments.
            unknown = jnp.isnan(sum(map(jnp.sum, jax.tree.leaves(factor))))
            p = jax.tree.map(lambda x: jnp.where(unknown, 0, x), list(step.p))
            its = its.only_if(~unknown).but(p=p)
        if step.last:
            its = its.but(update_factors=(*step.update_factors, *after))
        out, inner_state = self.inner.run(its, state.inner_state)
        out = out.but(ok=step.ok) if step.last else out.but(ok=step.ok).times(*after)
        clipped = jax.tree.map(lambda x, y: jnp.sum(x[..., -1] - y[..., -1]), new, old)
        more = jnp.where(sum(jax.tree.leaves(clipped)) > 0, 1, 0)
        counts = (state.consecutive + 1) * more, state.total + more
        consecutive, total = step.taken(counts, (state.consecutive, state.total))
        if self.warn is not None:
            alarm(consecutive, state.consecutive, self.warn, "clipped: their norms are spikes.")
        return out, HistoryState(consecutive, total, new, inner_state)

    def compared(self, step: Step, norms: Named, which: str) -> tuple[Factor, Named]:
        """The factors of all leaves, and the histories with their norms."""
        limit, old, new = self.limits[which], norms[which], dict(norms[which])
        names, factors = step.paths if self.per_leaf else ["all"], []
        if which == "updates":
            found = _update_norms(step, self.layers, self.per_leaf)
        elif self.per_leaf:
            found = leaf_norms(step, self.layers)
        else:
            found = [global_norm(step, self.layers)]
        for n, (name, (value, unit)) in enumerate(zip(names, found, strict=True)):
            x = jnp.where(unit == 1, value, jnp.inf)
            x, taken = jnp.asarray(x, jnp.float32), True if step.ok is None else step.ok
            mean, variance, seen, clipped = jnp.moveaxis(old[name], -1, 0)
            largest = limit * mean
            if self.sigmas:
                # Equal norms have no variance, and their mean is off by rounding.
                largest = mean + limit * jnp.maximum(root(variance), 1e-6 * mean)
            full = seen * (1 - self.decay) >= 1
            spike = full & (x > largest) & (value < jnp.inf) & taken
            # Zero is the norm of a leaf that is not used yet, or without a learning rate.
            counts = spike | ((x > 0) & (x < jnp.inf) & taken)
            share = jnp.maximum(1 - self.decay, 1 / (seen + 1))
            moved, clipped = jnp.where(spike, largest, x) - mean, jnp.where(spike, 1, 0) + clipped
            variance = (1 - share) * (variance + share * moved**2)
            row = jnp.stack([mean + share * moved, variance, seen + 1, clipped], -1)
            new[name] = jnp.where(counts[..., None], row, old[name])
            over = jnp.asarray(largest, unit.dtype) / unit / jnp.where(spike, value, 1)
            f = jnp.where(spike, over, 1)
            shape = (*f.shape, *[1] * (step.g[n].ndim - f.ndim)) if f.ndim else ()
            factors.append(jnp.reshape(f, shape))
        if self.per_leaf:
            return dict(zip(step.here, factors, strict=True)), new
        return factors[0], new


def _update_norms(step: Step, layers: Layers, per_leaf: bool) -> list[Norm]:
    """‖u‖ of updates, as in `wrap/clip.py`, but their squares do not overflow.

    For sums in two units XLA:GPU would store them.
    """
    sums = []
    for x, stack in zip(step.values, step.stacks(layers), strict=True):
        total = jnp.sum(squared(x), range(stack.axes if per_leaf else 0, x.ndim))
        sums.append(jax.lax.convert_element_type(total, jnp.float32))
    totals = sums if per_leaf else [sum(sums, start=jnp.zeros([], jnp.float32))]
    return [Norm(root(x), jnp.ones([], jnp.float32)) for x in totals]


def clip_by_history(
    inner: optax.GradientTransformation,
    gradients: jax.typing.ArrayLike | None = 4.0,
    updates: jax.typing.ArrayLike | None = None,
    *,
    sigmas: bool = False,
    per_leaf: bool = False,
    decay: jax.typing.ArrayLike = 0.97,
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
        gradient, moments and parameters once more, 12 to 16 bytes per parameter for `adamw`; on CPU
        it also stores the update.
      sigmas: k counts standard deviations; 6 is usual.
      per_leaf: each leaf, and each layer that `with_layers` declares, has a history of its own.
      decay: of the averages, per optimizer step, 0 ≤ decay < 1. The first 1/(1 - decay) norms of a
        history are averaged equally, and not clipped.
      warn: warns from inside the program when so many steps in a row were clipped; its cost is
        that of `skip_nonfinite(warn=True)`.

    Returns:
      A transformation with the state `HistoryState`, which `clipped` reads.

    Raises:
      ValueError: an argument outside its range, or both limits None.

    Differs from ZClip in: a spike is clipped to the limit. ZClip's norm falls below it, and stays
    at the old level for good if the level of the gradients rises.

    Reference: Kumar et al. 2025, ZClip (https://arxiv.org/abs/2504.02507), for the averages and
    0.97; AXLearn's `drop_norm_by_grad_norm_ema` for multiples of a mean; Levanter's
    `clip_update_by_historical_norm`, in Marin's 32B run, for updates.
    """
    limits = {
        name: check_number(name, x, 1e-30, instead="None leaves it alone")
        for name, x in (("gradients", gradients), ("updates", updates))
        if x is not None
    }
    if not limits:
        raise ValueError("gradients or updates must be a number, got None for both: 4.0 is usual.")
    decay = check_number("decay", decay, 0.0, 1.0, instead="the usual value is 0.97")
    if warn is not None:
        check_integer("warn", warn, 1, instead="None does not warn")
    body = inner_body("inner", inner)
    return Transformation.around(ClipByHistory(body, limits, decay, sigmas, per_leaf, warn))


def clipped(state: State) -> Named:
    """How often `clip_by_history`, whose state may be nested anywhere in `state`, has clipped.

    Returns:
      `{"consecutive": 0, "total": 3, "gradients": {"all": 3}}`: steps in a row up to now, in the
      whole run, and how often each norm was clipped, by the paths of leaves with `per_leaf`. Lists
      for several models under vmap, and for layers.

    Raises:
      ValueError: `state` does not contain exactly one `clip_by_history`.
    """
    instead = "pass the state of clip_by_history(...), or of a transformation around it"
    own = only(state, lambda x: isinstance(x, HistoryState), "clip_by_history", instead)
    norms = jax.tree.map(lambda x: x[..., -1], own.norms)
    counts = {"consecutive": own.consecutive, "total": own.total, **norms}
    return jax.tree.map(lambda x: np.asarray(x).astype(int).tolist(), counts)
