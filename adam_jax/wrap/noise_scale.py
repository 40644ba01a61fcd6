"""The gradient noise scale: the batch size beyond which a larger one gains little."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax._types import Number, Params, PyTree, State
from adam_jax.core.states import only, register
from adam_jax.core.step import Body, Step, call_of, check_state
from adam_jax.core.transformation import Transformation
from adam_jax.formats.policy import stored_format
from adam_jax.numerics import squared
from adam_jax.pytrees import frozen_pytree, static
from adam_jax.validation import check_integer, check_number
from adam_jax.wrap.accumulate import Accumulate
from adam_jax.wrap.chain import inner_body
from adam_jax.xla.barrier import kept_apart
from adam_jax.xla.once import if_due

SPIKE = 100.0
"""Of the mean |g|²: a gradient above it counts little, see `estimate_noise_scale`."""


class NoiseScaleState(NamedTuple):
    """State of `estimate_noise_scale`: the count of optimizer steps, and five decaying sums.

    They are Σ1, Σw and Σw·|g|² over gradients, Σq and Σq·⟨g, g'⟩ over pairs of them.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    sums: jax.Array
    inner_state: State


register(NoiseScaleState, counts=["count"], inner=["inner_state"], others_matter=False)


@frozen_pytree
class EstimateNoiseScale(Body):
    """The body of `estimate_noise_scale`."""

    inner: Body
    decay: Number
    axis: str | tuple[str, ...] | None = static()
    every: int = static()

    def init(self, params: Params) -> NoiseScaleState:
        return NoiseScaleState(jnp.int32(0), jnp.zeros(5, jnp.float32), self.inner.init(params))

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        check_state(state, NoiseScaleState)
        its = state.inner_state
        if self.axis is None:
            g, acc, sums = self.measured(step, state, its.acc_grads)
            its = its._replace(acc_grads=acc)
        else:
            mean = [jax.lax.pmean(g, self.axis) for g in step.g]
            _, g, sums = self.measured(step, state, mean)
        out, its = self.inner.run(step.but(g=g), its)
        count = its.gradient_step if self.axis is None else step.counted(state.count)
        return out, NoiseScaleState(count, sums, its)

    def measured(self, step: Step, state: State, others: PyTree) -> PyTree:
        """The gradients, the others, and the sums; what follows reads these, so XLA copies none."""
        due = step.taken(state.count % self.every == 0, False)
        first = self.axis is not None or state.inner_state.mini_step == 0

        def added(carry: PyTree) -> PyTree:
            g, others, sums = carry
            w, gg, q, gh, hh = self.found(step.but(g=g), others, state.inner_state)
            size, limit = jnp.maximum(gg, jnp.where(q > 0, hh, 0)), SPIKE * sums[2] / sums[1]
            part = jnp.where(size > limit, squared(limit / size), 1)
            new = part * jnp.stack([jnp.float32(1), w, w * gg, q, jnp.where(q > 0, q * gh, 0)])
            new = jnp.where(jnp.all(jnp.isfinite(new)) & (size < jnp.inf), new, 0)
            return kept_apart(g), kept_apart(others), jnp.where(first, self.decay, 1) * sums + new

        return if_due(due, added, (list(step.g), others, state.sums))

    def found(self, step: Step, others: PyTree, inner_state: State) -> tuple[jax.Array, ...]:
        """w, |g|², q, ⟨g, h⟩ and |h|²: h, `others`, is the mean of the gradients paired with g.

        Of all devices, with g itself; this returns the product without it.
        """
        g = step.values
        if self.axis is None:
            entries = step.align(others)
            pairs = zip((entries[i] for i in step.here), g, strict=True)
            h = [stored_format(y).decode(y, x.dtype) for y, x in pairs]
        else:
            h = step.but(g=others).values
        gg, gh, hh = (_product(x, y) for x, y in ((g, g), (g, h), (h, h)))
        if self.axis is not None:
            n = jax.lax.axis_size(self.axis)
            gg, gh = jax.lax.pmean((gg, gh), self.axis)
            return jnp.float32(1), gg, jnp.float32(n - 1), (n * gh - gg) / max(n - 1, 1), gh
        w = jnp.asarray(step.extra.get("weight", 1.0), jnp.float32)
        w = jnp.where(w > 0, w, 0)  # As in `accumulate`.
        q = w * jnp.where(inner_state.mini_step == 0, 0, inner_state.weight)
        return w, gg, q, gh, hh


def _product(xs: list[jax.Array], ys: list[jax.Array]) -> jax.Array:
    """⟨x, y⟩ over all leaves."""
    sums = [jnp.sum(jnp.real(jnp.conj(x) * y)) for x, y in zip(xs, ys, strict=True)]
    return sum((jnp.asarray(x, jnp.float32) for x in sums), start=jnp.zeros([], jnp.float32))


def estimate_noise_scale(
    inner: optax.GradientTransformation,
    axis: str | tuple[str, ...] | None = None,
    *,
    decay: jax.typing.ArrayLike = 0.95,
    every: int = 20,
) -> Transformation:
    """Estimates the gradient noise scale: the batch size beyond which a larger one gains little.

        B = tr(Σ) / |G|²     |G|² from ⟨gᵢ, gⱼ⟩, tr(Σ) from |gᵢ|² - |G|², of micro-batches i ≠ j

    G is the gradient of all data, Σ the covariance of the gradient of an example. Both averages are
    unbiased, and decay. `noise_scale(state)` reads B.

    Args:
      inner: `accumulate(...)`, whose micro-batches are compared; or with `axis` any transformation.
      axis: of `shard_map`: `update` gets each device's own gradient, and `inner` their mean.
      decay: of both averages, per measured optimizer step.
      every: optimizer steps between those that are measured. Others cost a branch not taken; a
        measured micro-batch reads the gradient and the accumulator once more.

    Returns:
      A transformation with the state `NoiseScaleState`, with the steps of `inner`. A gradient whose
      norm is k > 10 times the mean counts (10/k)⁴, one whose square overflows not at all.

    Raises:
      ValueError: an argument outside its range; neither `accumulate` nor an axis.

    Reference: McCandlish et al. 2018, An empirical model of large-batch training
    (https://arxiv.org/abs/1812.06162), appendix A, where the estimates are written with |g|² of a
    small and a large batch.
    """
    body = inner_body("inner", inner)
    if axis is None and not isinstance(body, Accumulate):
        raise ValueError(
            f"inner must be accumulate(...) if axis is None, got {call_of(body)}: write"
            f" estimate_noise_scale(accumulate(...)), or axis, the name of an axis of shard_map."
        )
    decay = check_number("decay", decay, 0.0, 1.0, instead="0.95 is usual")
    every = check_integer("every", every, 1, instead="1 measures each optimizer step")
    return Transformation.around(EstimateNoiseScale(body, decay, axis, every))


def noise_scale(state: State) -> float | list[float]:
    """The estimate of `estimate_noise_scale`, whose state may be nested anywhere in `state`.

    Returns:
      B in units of what one gradient is the mean of: a micro-batch, or a device's batch. With
      `weight=` in units of the weight, such as tokens. NaN before two gradients are compared,
      infinity while the noise hides G. Lists under vmap.

    Raises:
      ValueError: `state` does not contain exactly one `estimate_noise_scale`.
    """
    instead = "pass the state of estimate_noise_scale(...), or of a transformation around it"
    own = only(state, lambda x: isinstance(x, NoiseScaleState), "estimate_noise_scale", instead)
    n, w, wgg, q, qgh = np.moveaxis(np.asarray(own.sums, np.float64), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        square = qgh / q
        return np.where(square <= 0, np.inf, (wgg - w * square) / n / square).tolist()
