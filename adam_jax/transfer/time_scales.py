"""Decay rates and weight decay from the data that they average over, in tokens or steps.

Marek et al. 2025, Small Batch Size Training for Language Models, https://arxiv.org/abs/2507.07101
Wang & Aitchison 2024, How to set AdamW's weight decay as you scale model and dataset size,
https://arxiv.org/abs/2405.13698
Bergsma et al. 2025, Power Lines: Scaling Laws for Weight Decay and Batch Size in LLM Pre-training,
https://arxiv.org/abs/2505.13738
"""

import math

from adam_jax.validation import check_number, check_positive


def half_life_of_decay_rate(decay_rate: float, batch_size: float = 1.0) -> float:
    """The half-life of an average in examples, tokens or steps: B·log ½ / log b.

    Half of the weight of the average is on gradients newer than the half-life.

    Args:
      decay_rate: b, per optimizer step, 0 ≤ b < 1.
      batch_size: B, > 0, in examples or tokens; 1 for a half-life in optimizer steps.

    Returns:
      The half-life in the unit of `batch_size`.

    Raises:
      ValueError: a number outside its range.

    Reference: Marek et al. 2025, who keep the half-life of nu in tokens when the batch changes.
    """
    instead = "usual rates are 0.9 to 0.9999"
    b = float(check_number("decay_rate", decay_rate, 0.0, 1.0, instead=instead))
    steps = math.log(0.5) / math.log(b) if b > 0 else 0.0
    return check_positive("batch_size", batch_size) * steps


def decay_rate_of_half_life(half_life: float, batch_size: float = 1.0) -> float:
    """The decay rate of an average with this half-life: b = 2^(-B / half-life).

    For a batch k times as large this is b^k. `scale_batch` uses 1 - k·(1-b), which is equal to
    first order in k·(1-b).

    Args:
      half_life: in the unit of `batch_size`, > 0.
      batch_size: B, > 0, in examples or tokens; 1 for a half-life in optimizer steps.

    Returns:
      b, per optimizer step.

    Raises:
      ValueError: a number outside its range, or a half-life so long that b is rounded to 1.

    Example:
      >>> from adam_jax.transfer import decay_rate_of_half_life, half_life_of_decay_rate
      >>> tokens = half_life_of_decay_rate(0.95, batch_size=512 * 1024)
      >>> print(round(tokens), round(decay_rate_of_half_life(tokens, batch_size=1024), 6))
      7084917 0.9999

    Reference: Marek et al. 2025.
    """
    steps = check_positive("half_life", half_life) / check_positive("batch_size", batch_size)
    b = math.exp2(-1 / steps)
    if b == 1.0:
        raise ValueError(
            f"half_life must be at most 1e16 optimizer steps, got {steps:g}, for which the decay"
            f" rate is rounded to 1: write the half-life in the unit of batch_size."
        )
    return b


def time_scale_of_weight_decay(
    weight_decay: float, learning_rate: float, batch_size: float = 1.0
) -> float:
    """The time scale over which AdamW averages its updates: τ = B / (α·λ).

    With decoupled weight decay the weights are an exponential moving average of updates. An update
    made τ ago has 1/e of its initial weight.

    Args:
      weight_decay: λ, > 0, which is multiplied by the learning rate.
      learning_rate: α, > 0; for a schedule, its peak.
      batch_size: B, > 0, in examples or tokens; 1 for a time scale in optimizer steps.

    Returns:
      τ, in the unit of `batch_size`. Divided by the length of the run it is τ_EMA of Power Lines.

    Raises:
      ValueError: a number outside its range.

    Reference: Wang & Aitchison 2024 (τ_iter = 1/(α·λ)); Bergsma et al. 2025 (τ_EMA = B/(α·λ·D), for
    a run of D tokens).
    """
    rate = check_positive("learning_rate", learning_rate)
    rate *= check_positive("weight_decay", weight_decay)
    return check_positive("batch_size", batch_size) / rate


def weight_decay_of_time_scale(
    time_scale: float, learning_rate: float, batch_size: float = 1.0
) -> float:
    """The weight decay that gives AdamW this time scale: λ = B / (α·τ).

    Keep τ, in examples or tokens, when the batch or the learning rate changes. For more data Wang &
    Aitchison 2024 keep τ in epochs. For one epoch over D tokens Bergsma et al. 2025 find that the
    best τ/D falls as a power of the tokens per parameter.

    Args:
      time_scale: τ, > 0, in the unit of `batch_size`.
      learning_rate: α, > 0; for a schedule, its peak.
      batch_size: B, > 0, in examples or tokens; 1 for a time scale in optimizer steps.

    Returns:
      λ, the `weight_decay` of adamw.

    Raises:
      ValueError: a number outside its range.

    Example:
      >>> from adam_jax.transfer import weight_decay_of_time_scale
      >>> tokens, batch_size = 2.5e9, 512 * 1024
      >>> print(round(weight_decay_of_time_scale(0.2 * tokens, 3e-3, batch_size), 3))
      0.35

    Reference: Wang & Aitchison 2024; Bergsma et al. 2025.
    """
    rate = check_positive("learning_rate", learning_rate)
    rate *= check_positive("time_scale", time_scale)
    return check_positive("batch_size", batch_size) / rate
