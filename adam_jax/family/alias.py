"""A member's aliases: its `scale_by_*` with weight decay and the learning rate around it."""

from typing import Any

from adam_jax._types import Function
from adam_jax.core.member import Stage
from adam_jax.core.transformation import Decay, Transformation, optimizer

DECAY = ("weight_decay", "mask", "weight_decay_mask", "scale_decay")


def alias(
    name: str,
    scale_by: Function,
    learning_rate: Any,
    l2: Any = None,
    before_learning_rate: tuple[Stage, ...] = (),
    **arguments: Any,
) -> Transformation:
    """The optimizer of a member, from all arguments of its alias by name: `locals()`.

    Args:
      name: of the alias, for `repr`.
      scale_by: the member's `scale_by_*`.
      learning_rate: α.
      l2: λ₂ of coupled weight decay; None for none.
      before_learning_rate: stages between weight decay and the learning rate.
      **arguments: those of `scale_by`, and those of `DECAY` if the alias has them.
    """
    decay = None
    if "weight_decay" in arguments:
        decay = Decay(*(arguments.pop(name) for name in DECAY))
    stages = before_learning_rate
    scaled = scale_by(**arguments)
    return optimizer(name, scaled, learning_rate, l2=l2, decay=decay, before_learning_rate=stages)
