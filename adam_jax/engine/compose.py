"""The parts that an alias adds to its `scale_by_*` in the same pass: decay and learning rate."""

import math
from typing import NamedTuple

import optax
from jax.typing import ArrayLike

from adam_jax.engine.masks import Mask, MaskLike
from adam_jax.engine.stage import Stage
from adam_jax.engine.states import WeightDecaySchedule
from adam_jax.engine.transformation import Transformation
from adam_jax.rules.adam import AddDecayedWeights, ScaleByLearningRate
from adam_jax.rules.hyperparameters import Constant, Hyperparameter, Schedule, hyperparameter
from adam_jax.rules.variants import Identity


class Decay(NamedTuple):
    """Decoupled weight decay, from the arguments of an alias.

    Attributes:
      weight_decay: λ, per optimizer step: a number, or a function of the completed optimizer steps.
      mask: the leaves that decay; None for all.
      scaled: whether the decay is multiplied by the learning rate.
    """

    weight_decay: ArrayLike | Schedule
    mask: MaskLike = None
    scaled: bool = True

    @classmethod
    def of(
        cls,
        weight_decay: ArrayLike | Schedule,
        mask: MaskLike,
        weight_decay_mask: MaskLike,
        scaled: bool,
    ) -> "Decay":
        """Takes an alias's arguments, two of which are names of the mask.

        Optax's aliases use one name or the other, depending on version and member.

        Raises:
          ValueError: both names are given.
        """
        if mask is not None and weight_decay_mask is not None:
            raise ValueError(
                "mask and weight_decay_mask are two names of one argument, got both: write mask"
                " alone."
            )
        return cls(weight_decay, weight_decay_mask if mask is None else mask, scaled)


def optimizer(
    scaled: Transformation,
    learning_rate: ArrayLike | Schedule | Hyperparameter | None,
    *,
    l2: ArrayLike | Schedule | None = None,
    decay: Decay | None = None,
    before_learning_rate: tuple[Stage, ...] = (),
) -> Transformation:
    """The whole optimizer of a member: its `scale_by_*`, weight decay and the learning rate.

    Args:
      scaled: the result of the `scale_by_*`.
      learning_rate: α; None leaves the updates unchanged.
      l2: λ₂ of coupled weight decay, before the member; None for none.
      decay: decoupled weight decay, after the member; None for none.
      before_learning_rate: stages between weight decay and the learning rate.
    """
    coupled = [] if l2 is None else [weight_decay_stage("l2", l2)]
    behind = [*before_learning_rate, learning_rate_stage(learning_rate)]
    if decay is not None:
        # Without a learning rate the sign is not flipped, and neither is that of the decay.
        downhill = not decay.scaled and learning_rate is not None
        stage = weight_decay_stage("weight_decay", decay.weight_decay, decay.mask, downhill)
        behind = [stage, *behind] if decay.scaled else [*behind, stage]
    return Transformation.of(*coupled, *scaled.body.stages, *behind)


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
    return Transformation.of(learning_rate_stage(learning_rate, flip_sign), chained=False)


def learning_rate_stage(
    learning_rate: ArrayLike | Schedule | Hyperparameter | None, flip_sign: bool = True
) -> Stage:
    """The last stage of an alias."""
    if learning_rate is None:
        return Stage(Identity(), optax.EmptyState)
    rate = hyperparameter("learning_rate", learning_rate, -math.inf, instead="1e-3 is usual")
    state_type = optax.EmptyState if isinstance(rate, Constant) else optax.ScaleByScheduleState
    return Stage(ScaleByLearningRate(rate, flip_sign), state_type)


def weight_decay_stage(
    argument: str,
    weight_decay: ArrayLike | Schedule,
    mask: MaskLike = None,
    downhill: bool = False,
) -> Stage:
    """The stage that adds λθ on the leaves in the mask.

    Args:
      argument: the name of `weight_decay`, as the caller wrote it.
      weight_decay: λ, per optimizer step; negative values grow the weights.
      mask: the leaves that decay; None for all.
      downhill: the stage comes after the learning rate.
    """
    wrapped = None if mask is None else Mask.of(mask)
    decay = hyperparameter(argument, weight_decay, -math.inf, instead="0.0 turns it off")
    rule = AddDecayedWeights(decay, downhill)
    if isinstance(decay, Constant):
        return Stage(rule, optax.EmptyState, mask=wrapped)
    return Stage(rule, WeightDecaySchedule, mask=wrapped)
