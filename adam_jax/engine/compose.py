"""The stages that an alias adds to its member: weight decay and the learning rate."""

import math
from typing import Any

import jax
import optax

from adam_jax.engine.masks import Mask
from adam_jax.engine.stage import Stage
from adam_jax.engine.states import WeightDecaySchedule
from adam_jax.engine.transformation import Transformation
from adam_jax.rules.scaling import (
    AddDecayedWeights,
    Constant,
    Hyperparameter,
    Identity,
    ScaleByLearningRate,
    Schedule,
    hyperparameter,
)


def scale_by_learning_rate(
    learning_rate: optax.ScalarOrSchedule | None = None, *, flip_sign: bool = True
) -> Transformation:
    """Multiplies the updates by the learning rate, and turns them downhill: u ← -α_t·u.

    Args:
      learning_rate: α, per optimizer step: a number, below 0 for ascent, or a function of the
        number of optimizer steps completed so far (0 at the first). None leaves the updates as
        they are.
      flip_sign: False keeps the sign.

    Returns:
      A transformation with Optax's state: empty, or the count of a schedule.

    Raises:
      ValueError: a learning rate that is infinite, NaN, or not one number.

    Differs from Optax in: the product is formed in float32. Optax rounds a scheduled learning rate
    to the leaf's dtype first, which in bfloat16 makes 1e-3 into 9.9945e-4.
    """
    return Transformation.of(learning_rate_stage(learning_rate, flip_sign), chained=False)


def learning_rate_stage(
    learning_rate: jax.typing.ArrayLike | Schedule | Hyperparameter | None, flip_sign: bool = True
) -> Stage:
    """The last stage of an alias."""
    if learning_rate is None:
        return Stage(Identity(), optax.EmptyState)
    rate = hyperparameter("learning_rate", learning_rate, -math.inf, instead="1e-3 is usual")
    state_type = optax.EmptyState if isinstance(rate, Constant) else optax.ScaleByScheduleState
    return Stage(ScaleByLearningRate(rate, flip_sign), state_type)


def weight_decay_stage(
    argument: str,
    weight_decay: jax.typing.ArrayLike | Schedule,
    mask: Any = None,
    downhill: bool = False,
) -> Stage:
    """The stage that adds λθ, on the leaves that the mask names.

    Args:
      argument: the name of `weight_decay`, as the caller wrote it.
      weight_decay: λ, per optimizer step; below 0 weights grow.
      mask: as in `adamw`.
      downhill: it stands behind the learning rate.
    """
    wrapped = None if mask is None else Mask.of(mask)
    decay = hyperparameter(argument, weight_decay, -math.inf, instead="0.0 turns it off")
    rule = AddDecayedWeights(decay, downhill)
    if isinstance(decay, Constant):
        return Stage(rule, optax.EmptyState, mask=wrapped)
    return Stage(rule, WeightDecaySchedule, mask=wrapped)
