"""Schedule-free AdamW: Defazio et al. 2024, The Road Less Scheduled.

https://arxiv.org/abs/2405.15682
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import optax
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from optax import contrib

from adam_jax._types import Count, DType, Leaf, Number, Params, State
from adam_jax.core.foreign import Foreign
from adam_jax.core.member import Member
from adam_jax.core.states import register
from adam_jax.core.step import Body, Step, check_state
from adam_jax.core.transformation import Transformation, scale_by_rule
from adam_jax.family.alias import alias
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.numerics import DecayRate, DecayRateLike
from adam_jax.pytrees import frozen_pytree, static
from adam_jax.rules.adam import Ema, MomentRule, Root
from adam_jax.rules.base import View, at
from adam_jax.rules.hyperparameters import FixedNumber, Hyperparameter, Schedule, hyperparameter
from adam_jax.validation import as_number, check_number

# Optax exports the function that makes this state, but not its type.
RMS_STATE = type(jax.eval_shape(optax.scale_by_rms(bias_correction=True).init, ()))
register(RMS_STATE, slots={"nu": True}, counts=["count"])
# step_count belongs to the wrapper: it weights z, which a new state starts anew.
register(
    contrib.ScheduleFreeState,
    inner=["base_optimizer_state"],
    own=["b1", "weight_sum", "step_count", "max_lr", "z"],
    own_matters=True,
)


@frozen_pytree
class Newest:
    """The gradient itself: a first moment without an average or a slot."""

    slots = ()

    def __call__(self, leaf: View, term: Array) -> Array:
        return term


@frozen_pytree
class WarmedUp(Hyperparameter):
    """A learning rate that grows from 0 to its value over the given steps."""

    value: Leaf
    steps: int = static()

    def at(self, count: Count) -> Number:
        return optax.warmup_constant_schedule(0.0, self.value, self.steps)(count)


@frozen_pytree
class ScheduleFree(Body):
    """Optax's wrapper, with its arguments as fields; a closure neither compares nor pickles."""

    inner: Member
    learning_rate: Number
    b1: Number = static()
    weight_lr_power: Number = static()
    state_dtype: DType = static()

    @property
    def wrapped(self) -> optax.GradientTransformationExtraArgs:
        inner = Transformation.around(self.inner)
        # A function even if it is constant: only then does Optax keep the state's dtypes.
        numbers = (functools.partial(at, self.learning_rate), self.b1, self.weight_lr_power)
        return contrib.schedule_free(inner, *numbers, self.state_dtype)

    def init(self, params: Params) -> State:
        return self.wrapped.init(params)

    def run(self, step: Step, state: State) -> tuple[Step, State]:
        check_state(state, contrib.ScheduleFreeState, "a ScheduleFreeState")
        return Foreign(self.wrapped).run(step, state)

    def edited(self, edit: Callable[[Member], Member]) -> "ScheduleFree":
        return dataclasses.replace(self, inner=edit(self.inner))


def schedule_free_adamw(
    learning_rate: ArrayLike | Schedule = 0.0025,
    warmup_steps: int | None = None,
    b1: FixedNumber = 0.9,
    b2: DecayRateLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike | Schedule = 0.0,
    weight_lr_power: FixedNumber = 2.0,
    state_dtype: DTypeLike | None = None,
    *,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
) -> Transformation:
    """Schedule-free AdamW: Optax's schedule-free wrapper over AdamW without momentum.

        nu ← b2·nu + (1-b2)·|g(y)|²      nû = nu / (1 - b2ᵗ)
        z  ← z - α_t·(g(y) / (√nû + eps) + λ_t·y)
        x  ← (1 - c_t)·x + c_t·z         y = (1-b1)·z + b1·x
        c_t = w_t / (w_1 + … + w_t),  w_t = max(α_1, …, α_t)^weight_lr_power

    The parameters are y; evaluate at x, `optax.contrib.schedule_free_eval_params(state, params)`.
    The step of z is computed in float32 (float64 for float64 leaves). Optax's wrapper then computes
    x and z in the parameters' dtype.

    Args:
      learning_rate: α, per optimizer step: a number ≥ 0, or a schedule, a function of the number of
        completed optimizer steps (0 at the first).
      warmup_steps: the learning rate grows from 0 to α in this many optimizer steps. None or 0 is
        no warm-up.
      b1: weight of x in y, 0 < b1 < 1, at least 1e-6. Fixed during a run, because x is recovered
        from y and z with it.
      weight_decay: λ, the decay at y, as in `adamw`.
      weight_lr_power: z is weighted in x by this power of the largest learning rate so far; ≥ 0.
        Fixed during a run.
      state_dtype: dtype of z; None for the parameters' own.

    The other arguments and the errors are those of `adamw`.

    Returns:
      A transformation whose state is Optax's `ScheduleFreeState` around that of AdamW without mu.
      `update` needs `params`, and every parameter needs a gradient. `groups` accepts it only as one
      of several optimizers.

    Raises:
      ValueError: also on construction, for warm-up to a learning rate that is itself a schedule.

    Differs from Optax in: warmup_steps=0 is no warm-up (in Optax the learning rate stays 0); nu of
    16-bit parameters is float32.

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
    second = Ema("nu", DecayRate.of("b2", b2), magnitude=True)
    rule = MomentRule(Newest(), second, Root.of(eps))
    scaled = scale_by_rule(rule, RMS_STATE, None, nu_dtype, "schedule_free_adamw")
    inner = alias("schedule_free_adamw", lambda: scaled, rate, weight_decay=weight_decay)
    fixed = as_number(b1), as_number(power), state_dtype
    return Transformation.around(ScheduleFree(inner.body, rate, *fixed))
