"""Decay rates and weight decay by the data that they average over, in tokens or steps.

Marek et al. 2025, Small Batch Size Training for Language Models, https://arxiv.org/abs/2507.07101
Wang & Aitchison 2024, How to set AdamW's weight decay as you scale model and dataset size,
https://arxiv.org/abs/2405.13698
Bergsma et al. 2025, Power Lines: Scaling Laws for Weight Decay and Batch Size in LLM Pre-training,
https://arxiv.org/abs/2505.13738
"""

import math

from adam_jax.validation import check_number


def half_life_of_decay_rate(decay_rate: float, batch_size: float = 1.0) -> float:
    """After how much data half of an average is newer: B·log ½ / log b.

    Args:
      decay_rate: b, per optimizer step, 0 ≤ b < 1.
      batch_size: B, > 0, in examples or tokens; 1 for a half-life in optimizer steps.

    Returns:
      The half-life in the unit of `batch_size`.

    Raises:
      ValueError: a number outside its range.

    Reference: Marek et al. 2025, who keep the half-life of nu in tokens where the batch changes.
    """
    instead = "usual rates are 0.9 to 0.9999"
    b = float(check_number("decay_rate", decay_rate, 0.0, 1.0, instead=instead))
    return _positive("batch_size", batch_size) * (math.log(0.5) / math.log(b) if b > 0 else 0.0)


def decay_rate_of_half_life(half_life: float, batch_size: float = 1.0) -> float:
    """The decay rate of an average with this half-life: b = 2^(-B / half-life).

    Of two batch sizes the larger has b^k, for k times the batch; `scale_batch` has 1 - k·(1-b),
    which is the same to first order in k·(1-b), and is zero where this is still 1/e.

    Args:
      half_life: in the unit of `batch_size`, > 0.
      batch_size: B, > 0, in examples or tokens; 1 for a half-life in optimizer steps.

    Returns:
      b, per optimizer step.

    Raises:
      ValueError: a number outside its range, or a half-life of so many steps that b is 1.

    Example:
      >>> from adam_jax.transfer import decay_rate_of_half_life, half_life_of_decay_rate
      >>> tokens = half_life_of_decay_rate(0.95, batch_size=512 * 1024)
      >>> print(round(tokens), round(decay_rate_of_half_life(tokens, batch_size=1024), 6))
      7084917 0.9999

    Reference: Marek et al. 2025.
    """
    steps = _positive("half_life", half_life) / _positive("batch_size", batch_size)
    b = math.exp2(-1 / steps)
    if b == 1.0:
        raise ValueError(
            f"half_life must be at most 6e15 optimizer steps, got {steps:g}: a decay rate that"
            f" differs from 1 by less is none."
        )
    return b


def time_scale_of_weight_decay(
    weight_decay: float, learning_rate: float, batch_size: float = 1.0
) -> float:
    """Over how much data AdamW averages its updates: τ = B / (α·λ).

    Decoupled weight decay makes of the weights an exponential moving average of the updates, in
    which those of a time scale ago count 1/e.

    Args:
      weight_decay: λ, > 0, which the learning rate multiplies.
      learning_rate: α, > 0; of a schedule its peak.
      batch_size: B, > 0, in examples or tokens; 1 for a time scale in optimizer steps.

    Returns:
      τ, in the unit of `batch_size`. Divided by the length of the run it is τ_EMA of Power Lines.

    Raises:
      ValueError: a number outside its range.

    Reference: Wang & Aitchison 2024 (τ_iter = 1/(α·λ)); Bergsma et al. 2025 (τ_EMA = B/(α·λ·D), for
    a run of D tokens).
    """
    rate = _positive("learning_rate", learning_rate) * _positive("weight_decay", weight_decay)
    return _positive("batch_size", batch_size) / rate


def weight_decay_of_time_scale(
    time_scale: float, learning_rate: float, batch_size: float = 1.0
) -> float:
    """The weight decay with which AdamW averages its updates over so much data: λ = B / (α·τ).

    Keep τ, in examples or tokens, where the batch or the learning rate changes. For another length
    of the run Wang & Aitchison 2024 keep its share of the run; Bergsma et al. 2025 find that the
    best share falls as a power of the tokens per parameter.

    Args:
      time_scale: τ, > 0, in the unit of `batch_size`.
      learning_rate: α, > 0; of a schedule its peak.
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
    rate = _positive("learning_rate", learning_rate) * _positive("time_scale", time_scale)
    return _positive("batch_size", batch_size) / rate


def _positive(argument: str, value: float) -> float:
    return float(check_number(argument, value, 1e-30, instead="write a number above zero"))
