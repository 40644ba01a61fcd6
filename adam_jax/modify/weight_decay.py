"""Modifiers of decoupled weight decay."""

import functools

import jax

from adam_jax._types import Leaf, Number
from adam_jax.engine.pipeline import Pipeline
from adam_jax.modify.modifiers import Modifiable, changed, member_of, modified
from adam_jax.rules.hyperparameters import Relative
from adam_jax.rules.units import Unit, numbers_of, units_of, with_numbers
from adam_jax.validation import check_number


def cautious_weight_decay(tx: Modifiable) -> Modifiable:
    """Decays a weight only if the update moves it towards zero too: λ·1[u·θ ≥ 0]·θ.

    Args:
      tx: a transformation of this package with decoupled weight decay, or a function that makes
        one.

    Raises:
      ValueError: `tx` has no weight decay.

    Reference: Chen et al. 2025, Cautious Weight Decay (https://arxiv.org/abs/2510.12402),
    algorithm 1.
    """
    return modified(cautious_weight_decay, tx, _with_cautious_decay)


def corrected_weight_decay(tx: Modifiable, peak_learning_rate: jax.typing.ArrayLike) -> Modifiable:
    r"""Keeps the norm of normalized layers constant while the learning rate falls (AdamC).

        λ_t ← λ_t·α_t/α_max

    For weights followed by a normalization, so that the loss does not depend on their norm. A step
    adds about α_t²·‖u‖² to ‖θ‖², since u is nearly orthogonal to θ, and decay subtracts
    2·α_t·λ·‖θ‖². With a constant λ the norm settles near √(α_t/2λ)·‖u‖ and falls with α_t. The
    gradient is inversely proportional to the norm, so it grows near the end of training. With the
    correction the norm stays near √(α_max/2λ)·‖u‖.

    Args:
      tx: a transformation of this package with decoupled weight decay and a learning rate that
        multiplies it, or a function that makes one.
      peak_learning_rate: α_max, the largest learning rate of `tx`, > 0. For
        `transfer.scale_batch(...)` it is the peak of the scaled schedule, for `transfer.mup(...)`
        the peak of the schedule without factors.

    Returns:
      The same transformation, with the same state. A constant learning rate of α_max leaves the
      decay unchanged.

    Raises:
      ValueError: `tx` has no weight decay; the learning rate does not multiply the decay
        (scale_decay=False); the peak is not positive.

    Example:
      The paper applies plain decay to the output layer, which no normalization follows. A function
      passed to `groups` does the same:

      >>> import adam_jax, jax.numpy as jnp, optax
      >>> schedule = optax.cosine_decay_schedule(3e-3, 1000)
      >>> def adamc(learning_rate, peak=3e-3):
      ...     tx = adam_jax.adamw(learning_rate, weight_decay=0.1)
      ...     return adam_jax.corrected_weight_decay(tx, peak) if peak else tx
      >>> tx = adam_jax.groups(adamc, {"head/.*": dict(peak=None)}, learning_rate=schedule)
      >>> params = {"head": {"kernel": jnp.ones(2)}, "block": {"kernel": jnp.ones(2)}}
      >>> state = tx.init(params)

    Differs from timm (`corrected_weight_decay=True`) in: α_max is an argument. In timm it is the
    learning rate at which the optimizer is created.

    Reference: Defazio 2025, Why Gradients Rapidly Increase Near the End of Training
    (https://arxiv.org/abs/2506.02285).
    """
    peak = check_number(
        "peak_learning_rate",
        peak_learning_rate,
        1e-30,
        instead="write the schedule's largest value",
    )
    edit = functools.partial(_corrected, peak=peak)
    return modified(corrected_weight_decay, tx, edit, peak_learning_rate=peak)


def _decay_of(pipeline: Pipeline, modifier: str) -> int:
    """The index of the stage with decoupled weight decay."""
    for i in range(member_of(pipeline) + 1, len(pipeline.stages)):
        if Unit.WEIGHT_DECAY in units_of(pipeline.stages[i].rule):
            return i
    raise ValueError(f"tx must have decoupled weight decay, as {modifier}(adamw(...)).")


def _with_cautious_decay(pipeline: Pipeline) -> Pipeline:
    decay = _decay_of(pipeline, "cautious_weight_decay")
    return changed(pipeline, decay, lambda rule: rule.cautious_decay())


def _corrected(pipeline: Pipeline, peak: Number) -> Pipeline:
    decay = _decay_of(pipeline, "corrected_weight_decay")
    numbers = [x for stage in pipeline.stages[decay + 1 :] for x in numbers_of(stage.rule)]
    rates = [number for unit, number in numbers if unit is Unit.LEARNING_RATE]
    if not rates:
        raise ValueError(
            "tx must have a learning rate that multiplies its weight decay: use an alias such as"
            " adamw(1e-3), with scale_decay=True."
        )

    def correct(unit: Unit, number: Leaf) -> Leaf:
        return Relative(number, rates[0], peak) if unit is Unit.WEIGHT_DECAY else number

    return changed(pipeline, decay, lambda rule: with_numbers(rule, correct))
