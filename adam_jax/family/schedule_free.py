"""Schedule-free AdamW: Defazio et al. 2024, The Road Less Scheduled.

https://arxiv.org/abs/2405.15682
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from optax import contrib

from adam_jax._types import Count, DType, Leaf, Number, Params, State
from adam_jax.core.member import Member
from adam_jax.core.states import register
from adam_jax.core.step import Body, Step, check_state, joined, scaled
from adam_jax.core.transformation import Transformation, scale_by_rule
from adam_jax.family.alias import alias
from adam_jax.formats.dense import is_floating
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.numerics import exact
from adam_jax.pytrees import frozen_pytree, static
from adam_jax.rates import DecayRateLike, Schedule, decay_rate
from adam_jax.rules.adam import Ema, MomentRule, Root
from adam_jax.rules.base import View, at
from adam_jax.rules.hyperparameters import FixedNumber, Hyperparameter, hyperparameter
from adam_jax.validation import as_number, check_number, named_arguments

# Optax exports the function that makes this state, but not its type.
RMS_STATE = type(jax.eval_shape(optax.scale_by_rms(bias_correction=True).init, ()))
register(RMS_STATE, slots={"nu": True}, counts=["count"])
# step_count belongs to the wrapper: it weights z, which a new state starts anew.
register(contrib.ScheduleFreeState, inner=["base_optimizer_state"])


@frozen_pytree
class Newest:
    """The gradient itself: a first moment without an average or a slot."""

    slots = ()

    def __call__(self, leaf: View, term: Array) -> Array:
        return term


@frozen_pytree
class WarmedUp(Hyperparameter):
    """A learning rate that grows to its value in equal parts, one in each of the given steps."""

    value: Leaf
    steps: int = static()

    def at(self, count: Count) -> Number:
        t = jnp.asarray(count, jnp.result_type(float)) + 1
        return self.value * jnp.minimum(t / self.steps, 1)


@frozen_pytree
class ScheduleFree(Body):
    """Parameters y between an optimizer's points z and the average x of these."""

    inner: Member
    learning_rate: Number
    b1: Number = static()
    weight_lr_power: Number = static()
    state_dtype: DType = static()

    def init(self, params: Params) -> State:
        def start(p: Leaf) -> Leaf:
            own = self.state_dtype is None or not is_floating(p)
            return jnp.copy(p) if own else jnp.asarray(p, self.state_dtype, copy=True)

        b1, weights, largest = (jnp.asarray(x, jnp.result_type(float)) for x in (self.b1, 0.0, 0.0))
        count, z = jnp.ones([], jnp.int32), jax.tree.map(start, params)
        return contrib.ScheduleFreeState(b1, weights, count, largest, self.inner.init(params), z)

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        check_state(state, contrib.ScheduleFreeState)
        step.needed_params()
        dtype = jnp.result_type(float)  # Of the scalars, whatever dtype Optax gave them.
        sums, largest = (jnp.asarray(x, dtype) for x in (state.weight_sum, state.max_lr))
        # Optax counts from 1.
        rate = jnp.asarray(at(self.learning_rate, state.step_count - 1), dtype)
        new_largest = jnp.maximum(largest, rate)
        weight = new_largest**self.weight_lr_power
        new_sums = sums + weight
        c = jnp.where(new_sums > 0, weight / jnp.where(new_sums > 0, new_sums, 1), 0)
        its = step.but(last=False, apply=False)
        out, inner_state = self.inner.run(its, state.base_optimizer_state)
        z, updates = step.align(state.z), []
        of_step = 1 - self.b1 * (1 - c)
        values = out.times(*step.update_factors).values
        for i, u, p in zip(step.here, values, step.p, strict=True):
            y_step, moved = _averaged(c, of_step, u, joined(p), z[i])
            updates.append(step.taken(y_step, jnp.zeros_like(y_step)))
            z[i] = step.taken(moved, z[i])
        sums, largest = step.taken((new_sums, new_largest), (sums, largest))
        count, z = step.counted(state.step_count), step.back(state.z, z)
        state = contrib.ScheduleFreeState(state.b1, sums, count, largest, inner_state, z)
        return step.with_results(updates, step.dtypes, update_factors=()).widened(), state

    def edited(self, edit: Callable[[Member], Member]) -> "ScheduleFree":
        return dataclasses.replace(self, inner=edit(self.inner))


@functools.partial(jax.jit, inline=True)  # Traced once per shape.
def _averaged(c: Array, of_step: Array, u: Array, y: Leaf, z: Array) -> tuple[Array, Array]:
    """The step of y, c·(z - y) + (1 - b1·(1-c))·(z' - z), and the new z', z + u rounded.

    It is the authors' form, without x: x is (y - (1-b1)·z) / b1, and y is (1-b1)·z + b1·x again. It
    reads z' instead of u, which XLA:CPU would store for both.
    """
    c, of_step = (jax.lax.convert_element_type(x, jnp.finfo(u.dtype).dtype) for x in (c, of_step))
    old = scaled(z)
    with jax.numpy_dtype_promotion("standard"):  # Complex and real numbers mix.
        new = jax.lax.convert_element_type(old + u, z.dtype)
        return exact(c * (old - scaled(y))) + exact(of_step * (scaled(new) - old)), new


@named_arguments
def schedule_free_adamw(
    learning_rate: ArrayLike | Schedule = 0.0025,
    warmup_steps: int | None = None,
    b1: FixedNumber = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike | Schedule = 0.0,
    weight_lr_power: FixedNumber = 2.0,
    state_dtype: DTypeLike | None = None,
    *,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
) -> Transformation:
    """Schedule-free AdamW: an average of the points of AdamW without momentum.

        nu ← b2·nu + (1-b2)·|g(y)|²      nû = nu / (1 - b2ᵗ)
        z  ← z - α_t·(g(y) / (√nû + eps) + λ_t·y)
        x  ← (1 - c_t)·x + c_t·z         y = (1-b1)·z + b1·x
        c_t = w_t / (w_1 + … + w_t),  w_t = max(α_1, …, α_t)^weight_lr_power

    The parameters are y; evaluate at x, `optax.contrib.schedule_free_eval_params(state, params)`.

    Args:
      learning_rate: α, per optimizer step: a number ≥ 0, or a schedule, a function of the number of
        completed optimizer steps (0 at the first).
      warmup_steps: the learning rate of step t is α·t / warmup_steps until it is α. None or 0 is no
        warm-up.
      b1: weight of x in y, 0 < b1 < 1, at least 1e-6. Fixed during a run, because x is recovered
        from y and z with it.
      weight_decay: λ, the decay at y, as in `adamw`.
      weight_lr_power: z is weighted in x by this power of the largest learning rate so far; ≥ 0.
        Fixed during a run.
      state_dtype: dtype of z; None for the parameters' own.

    The other arguments and the errors are those of `adamw`.

    Returns:
      A transformation whose state is Optax's `ScheduleFreeState` around that of AdamW without mu.
      Its scalars are float32 (float64 under x64), whatever dtypes the parameters have. `update`
      needs `params`. `groups` accepts it only as one of several optimizers.

    Raises:
      ValueError: also on construction, for warm-up to a learning rate that is itself a schedule.

    Differs from Optax in: z and its weight w_t have the learning rate of the same step, as in the
    authors' code (Optax's weight has that of the next one), and the first step of a warm-up is not
    0; warmup_steps=0 is no warm-up (in Optax the learning rate stays 0); scalars of the state do
    not have the lowest dtype of the parameters; nu of 16-bit parameters is float32.

    Reference: Defazio et al. 2024, algorithm 1.
    """
    # Not 0: the wrapper divides by it.
    b1 = check_number("b1", b1, 1e-6, 1.0, instead="the usual value is 0.9; adamw has no x")
    power = check_number("weight_lr_power", weight_lr_power, instead="the usual value is 2.0")
    if warmup_steps is not None and (warmup_steps != int(warmup_steps) or warmup_steps < 0):
        raise ValueError(
            f"warmup_steps must be an integer ≥ 0 or None, got {warmup_steps!r}: 0 and None leave"
            f" warm-up out."
        )
    if warmup_steps:
        instead = "pass warmup_steps=None with a schedule that warms up"
        value = check_number("learning_rate", learning_rate, instead=instead)
        rate: Number = WarmedUp(value, int(warmup_steps))
    else:
        rate = hyperparameter("learning_rate", learning_rate, instead="the usual value is 0.0025")
    # Adam with b1 = 0, which needs no stored mu.
    second = Ema("nu", decay_rate("b2", b2), magnitude=True)
    rule = MomentRule(Newest(), second, Root.of(eps))
    scaled = scale_by_rule(rule, RMS_STATE, None, nu_dtype, "schedule_free_adamw")
    inner = alias("schedule_free_adamw", lambda: scaled, rate, weight_decay=weight_decay)
    fixed = as_number(b1), as_number(power), state_dtype
    return Transformation.around(ScheduleFree(inner.body, rate, *fixed))
