"""A member's aliases: its `scale_by_*` with weight decay and the learning rate around it."""

import math
from typing import Any

import optax
from jax.typing import ArrayLike

from adam_jax._types import Function
from adam_jax.core.masks import Mask, MaskLike
from adam_jax.core.member import Member, Stage
from adam_jax.core.states import WeightDecaySchedule
from adam_jax.core.transformation import Transformation
from adam_jax.rates import Schedule
from adam_jax.rules.adam import AddDecayedWeights, ScaleByLearningRate
from adam_jax.rules.hyperparameters import Hyperparameter, hyperparameter


def alias(
    name: str,
    scale_by: Function,
    learning_rate: ArrayLike | Schedule | Hyperparameter,
    *,
    l2: ArrayLike | Schedule | None = None,
    weight_decay: ArrayLike | Schedule | None = None,
    mask: MaskLike = None,
    weight_decay_mask: MaskLike = None,
    scale_decay: bool = True,
    before_learning_rate: tuple[Stage, ...] = (),
    **arguments: Any,
) -> Transformation:
    """The optimizer of a member, from all arguments of its alias by name: `locals()`.

    Args:
      name: of the alias, for `repr`.
      scale_by: the member's `scale_by_*`.
      learning_rate: α.
      l2: λ₂ of coupled weight decay, before the member; None for none.
      weight_decay: λ of decoupled weight decay, after the member; None for none.
      mask: the leaves that decay; None for all.
      weight_decay_mask: another name of the mask: Optax's aliases use one or the other, depending
        on version and member.
      scale_decay: whether the decay is multiplied by the learning rate.
      before_learning_rate: stages between weight decay and the learning rate.
      **arguments: those of `scale_by`.

    Raises:
      ValueError: both names of the mask are given.
    """
    if mask is not None and weight_decay_mask is not None:
        raise ValueError(
            "mask and weight_decay_mask are two names of one argument, got both: write mask alone."
        )
    coupled = [] if l2 is None else [_weight_decay("l2", l2)]
    behind = [*before_learning_rate, _learning_rate(learning_rate)]
    if weight_decay is not None:
        its_mask = weight_decay_mask if mask is None else mask
        stage = _weight_decay("weight_decay", weight_decay, its_mask, downhill=not scale_decay)
        behind = [stage, *behind] if scale_decay else [*behind, stage]
    stages = scale_by(**arguments).body.stages
    return Transformation.around(Member.of(*coupled, *stages, *behind, name=name))


def scale_by_learning_rate(
    learning_rate: optax.ScalarOrSchedule | None = None, *, flip_sign: bool = True
) -> Transformation:
    """Multiplies the updates by the learning rate and flips their sign: u ← -α_t·u.

    Args:
      learning_rate: α, per optimizer step: a number (negative for ascent), or a schedule, a
        function of the number of completed optimizer steps (0 at the first). None leaves the
        updates unchanged.
      flip_sign: False keeps the sign.

    Returns:
      A transformation with Optax's state: empty, or the count of a schedule.

    Raises:
      ValueError: a learning rate that is infinite, NaN, or not one number.

    Differs from Optax in: the product is computed in float32. Optax first rounds a scheduled
    learning rate to the leaf's dtype, which turns 1e-3 into 9.9945e-4 in bfloat16.
    """
    rate = (1.0, False) if learning_rate is None else (learning_rate, flip_sign)
    stage = _learning_rate(*rate)
    return Transformation.around(Member.of(stage, chained=False, name="scale_by_learning_rate"))


def _learning_rate(
    learning_rate: ArrayLike | Schedule | Hyperparameter, flip_sign: bool = True
) -> Stage:
    """The last stage of an alias."""
    rate = hyperparameter("learning_rate", learning_rate, -math.inf, instead="1e-3 is usual")
    scheduled = isinstance(rate, Hyperparameter)
    state_type = optax.ScaleByScheduleState if scheduled else optax.EmptyState
    return Stage(ScaleByLearningRate(rate, flip_sign), state_type)


def _weight_decay(
    argument: str, weight_decay: ArrayLike | Schedule, mask: MaskLike = None, downhill: bool = False
) -> Stage:
    """The stage that adds λθ on the leaves in the mask.

    Args:
      argument: the name of `weight_decay`, as the caller wrote it.
      weight_decay: λ, per optimizer step; negative values grow the weights.
      mask: the leaves that decay; None for all.
      downhill: the stage comes after the learning rate.
    """
    decay = hyperparameter(argument, weight_decay, -math.inf, instead="0.0 turns it off")
    state_type = WeightDecaySchedule if isinstance(decay, Hyperparameter) else optax.EmptyState
    wrapped = None if mask is None else Mask.of(mask)
    return Stage(AddDecayedWeights(decay, downhill), state_type, mask=wrapped)
