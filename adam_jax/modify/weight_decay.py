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
    """Decays only the weights that the update moves towards zero too: λ·1[u·θ ≥ 0]·θ.

    Args:
      tx: a transformation of this package with decoupled weight decay, or a function that makes
        one.

    Raises:
      ValueError: nothing decays there.

    Reference: Chen et al. 2025, Cautious Weight Decay (https://arxiv.org/abs/2510.12402),
    algorithm 1.
    """
    return modified(cautious_weight_decay, tx, _with_cautious_decay)


def corrected_weight_decay(tx: Modifiable, peak_learning_rate: jax.typing.ArrayLike) -> Modifiable:
    r"""Keeps the norm of normalized layers where it is while the learning rate falls (AdamC).

        λ_t ← λ_t·α_t/α_max

    For weights that a normalization follows, so that the loss does not depend on their norm. A step
    adds about α_t²·‖u‖² to ‖θ‖², since u is nearly orthogonal to θ, and decay subtracts
    2·α_t·λ·‖θ‖². With a constant λ the norm settles near √(α_t/2λ)·‖u‖ and falls with α_t; the
    gradient, which is inverse to the norm, grows near the end of training. Corrected, the norm
    stays near √(α_max/2λ)·‖u‖.

    Args:
      tx: a transformation of this package with decoupled weight decay and a learning rate that
        multiplies it, or a function that makes one.
      peak_learning_rate: α_max, the largest value of the learning rate that `tx` is given, > 0. In
        `transfer.scale_batch(...)` it is that of the scaled schedule, in `transfer.mup(...)` that
        of the schedule without factors.

    Returns:
      The same transformation, with the same state. A learning rate that is always α_max leaves the
      decay as it is.

    Raises:
      ValueError: nothing decays there; the learning rate does not multiply the decay
        (scale_decay=False); a peak that is not positive.

    Example:
      The paper leaves the output layer, which no normalization follows, with plain decay. `groups`
      takes a function that says so:

      >>> import adam_jax, jax.numpy as jnp, optax
      >>> schedule = optax.cosine_decay_schedule(3e-3, 1000)
      >>> def adamc(learning_rate, peak=3e-3):
      ...     tx = adam_jax.adamw(learning_rate, weight_decay=0.1)
      ...     return adam_jax.corrected_weight_decay(tx, peak) if peak else tx
      >>> tx = adam_jax.groups(adamc, {"head/.*": dict(peak=None)}, learning_rate=schedule)
      >>> params = {"head": {"kernel": jnp.ones(2)}, "block": {"kernel": jnp.ones(2)}}
      >>> state = tx.init(params)

    Differs from timm (`corrected_weight_decay=True`) in: α_max is an argument. There it is the
    learning rate with which the optimizer is made.

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
    """Where decoupled weight decay is."""
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
            "tx must have a learning rate that multiplies its weight decay: write the alias, as"
            " adamw(1e-3), with scale_decay=True."
        )

    def correct(unit: Unit, number: Leaf) -> Leaf:
        return Relative(number, rates[0], peak) if unit is Unit.WEIGHT_DECAY else number

    return changed(pipeline, decay, lambda rule: with_numbers(rule, correct))
