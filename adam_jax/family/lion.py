"""Lion: Chen et al. 2023, Symbolic Discovery of Optimization Algorithms.

https://arxiv.org/abs/2302.06675
"""

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from adam_jax._types import Number
from adam_jax.core.masks import MaskLike
from adam_jax.core.transformation import Transformation, scale_by_rule
from adam_jax.family.alias import alias
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.numerics import sign
from adam_jax.pytrees import frozen_pytree, static
from adam_jax.rates import DecayRate, DecayRateLike, Schedule, decay_rate
from adam_jax.rules.base import IrregularRule, View
from adam_jax.slots import Slot
from adam_jax.validation import check_number, named_arguments


@frozen_pytree
class Lion(IrregularRule):
    """The sign of the average of mu and g, or the function that `mode` names instead."""

    elementwise = True
    squares = False

    b1: DecayRate
    b2: DecayRate
    smooth_beta: Number
    mode: str = static()

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("mu", rate=self.b2.complement),)

    def update(self, leaf: View) -> Array:
        x = self.b1.average(leaf.old["mu"], leaf.g)
        leaf.average("mu", self.b2, leaf.g)
        if self.mode == "hard":
            return sign(x)
        if self.mode == "smooth":
            return jnp.tanh(self.smooth_beta * x)
        if self.mode == "refined":
            return jnp.where(jnp.abs(x) < 1, x, sign(x))
        # Not checked at construction: Optax's own test expects the error here.
        modes = "'hard', 'smooth' or 'refined'"
        raise ValueError(f"mode must be {modes}, got {self.mode!r}: the paper's is 'hard'.")


def scale_by_lion(
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.99,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    *,
    mode: str = "hard",
    smooth_beta: ArrayLike | None = 1.0,
) -> Transformation:
    """Moves every parameter by the learning rate, in the direction of an average.

    u and the arguments are those of `lion`, which explains all else. The state is
    `optax.ScaleByLionState(count, mu)`.
    """
    beta = 1.0 if smooth_beta is None else smooth_beta
    beta = check_number("smooth_beta", beta, instead="the usual value is 1.0")
    # Nothing is divided by 1 - b, so it may be 0.
    rates = decay_rate("b1", b1, closed=True), decay_rate("b2", b2, closed=True)
    rule = Lion(*rates, beta, mode)
    return scale_by_rule(rule, optax.ScaleByLionState, mu_dtype, None, "scale_by_lion")


@named_arguments
def lion(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.99,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    weight_decay: ArrayLike | Schedule = 1e-3,
    mask: MaskLike = None,
    *,
    weight_decay_mask: MaskLike = None,
    mode: str = "hard",
    smooth_beta: ArrayLike | None = None,
    scale_decay: bool = True,
) -> Transformation:
    """Lion: moves every parameter by the learning rate, in the direction of an average.

        u = sign(b1·mu + (1-b1)·g)       mu ← b2·mu + (1-b2)·g
        θ ← θ - α_t·(u + λ_t·θ)

    Use a third to a tenth of Adam's learning rate, and more weight decay.

    Args:
      b1: weight of mu in the direction, 0 ≤ b1 ≤ 1: a number, or a schedule.
      b2: decay rate of mu, per optimizer step, 0 ≤ b2 ≤ 1, likewise. Nothing is corrected, so the
        state is the same with schedules.
      mode: how x = b1·mu + (1-b1)·g becomes the update: "hard", its sign; "smooth",
        tanh(smooth_beta·x); "refined", x where |x| < 1, else its sign.
      smooth_beta: the factor in "smooth", ≥ 0, per unit of the gradient. None is 1.0; it is
        the default of `lion`, because a number would appear in the state of
        `optax.inject_hyperparams`, where Optax's lion has none.

    The other arguments, the arithmetic, the errors and the differences from Optax are those of
    `adamw`. The state is that of `adamw`, but with `optax.ScaleByLionState`, as in Optax.

    Raises:
      ValueError: also in `update`, for an unknown mode.

    Reference: Chen et al. 2023, algorithm 2.
    """
    return alias("lion", scale_by_lion, **locals())
