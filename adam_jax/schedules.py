"""Schedules that Optax lacks, of learning rates and decay rates, by completed optimizer steps."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_jax.validation import check_number, check_positive

__all__ = [
    "half_life_schedule",
    "inverse_sqrt_schedule",
    "power_law_schedule",
    "warmup_stable_decay_schedule",
]


def inverse_sqrt_schedule(init_value: float) -> optax.Schedule:
    """The step size of the convergence theorem: α_t = α/√t, with t = 1 at the first step.

    Args:
      init_value: α, the learning rate of the first optimizer step.

    Raises:
      ValueError: init_value is infinite or NaN.

    Example:
      >>> schedule = inverse_sqrt_schedule(1e-2)
      >>> print([round(float(schedule(count)), 6) for count in (0, 3, 99)])
      [0.01, 0.005, 0.001]

    Reference: Kingma & Ba 2015, theorem 4.1 and section 6.1.
    """
    instead = "it is the first step's learning rate"
    return _InverseSqrt(float(check_number("init_value", init_value, -math.inf, instead=instead)))


def warmup_stable_decay_schedule(
    peak_value: float,
    warmup_steps: int,
    stable_steps: int,
    decay_steps: int,
    init_value: float = 0.0,
    end_value: float = 0.0,
) -> optax.Schedule:
    """Linear warmup, constant plateau, linear decay: the trapezoid, also called WSD.

    With values of 0.85, 0.95 and 0.85 it is a warm-up and cool-down of momentum, for b1.

    Args:
      peak_value: the learning rate of the plateau.
      warmup_steps: optimizer steps from `init_value` to `peak_value`; ≥ 0.
      stable_steps: optimizer steps at `peak_value`; ≥ 0.
      decay_steps: optimizer steps from `peak_value` to `end_value`; ≥ 0. The rate then stays there.
      init_value: the learning rate of the first step of the warmup.
      end_value: the learning rate after the decay.

    Raises:
      ValueError: a learning rate or number of steps is infinite or NaN, or a number of steps is
        negative.

    Example:
      >>> schedule = warmup_stable_decay_schedule(1.0, 2, 3, 4)
      >>> print([round(float(schedule(count)), 2) for count in range(10)])
      [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]

    Reference: Hu et al. 2024, MiniCPM, section 4.2, https://arxiv.org/abs/2404.06395 (there with an
    exponential decay); Hägele et al. 2024, https://arxiv.org/abs/2405.18392 (linear).
    """
    rates = {"peak_value": peak_value, "init_value": init_value, "end_value": end_value}
    steps = {"warmup_steps": warmup_steps, "stable_steps": stable_steps, "decay_steps": decay_steps}
    for argument, value in rates.items():
        check_number(argument, value, -math.inf, instead="it is a learning rate")
    for argument, value in steps.items():
        check_number(argument, value, instead="it is a number of steps")
    return _WarmupStableDecay(**rates, **steps)


def power_law_schedule(power: float = 0.8) -> optax.Schedule:
    """A decay rate for b2 that rises with the run: b_t = 1 - t⁻ᵖ, with t = 1 at the first step.

    The average then reaches back over a constant share of the run. b_1 is 0, so nu starts as the
    first squared gradient.

    Args:
      power: p, above 0.

    Raises:
      ValueError: power is not a number above 0.

    Example:
      >>> import adam_jax
      >>> schedule = power_law_schedule(0.8)
      >>> print([round(float(schedule(count)), 4) for count in (0, 9, 9999)])
      [0.0, 0.8415, 0.9994]
      >>> tx = adam_jax.adamw(1e-3, b2=schedule)

    Reference: Shazeer & Stern 2018, Adafactor, section 7.2, https://arxiv.org/abs/1804.04235;
    Chowdhery et al. 2022, PaLM, section 5, https://arxiv.org/abs/2204.02311.
    """
    return _PowerLaw(check_positive("power", power))


def half_life_schedule(
    half_life: float, batch_size: jax.typing.ArrayLike | optax.Schedule
) -> optax.Schedule:
    """A decay rate that forgets half in a number of tokens, at any batch size: b_t = 2^(-n_t / h).

    Args:
      half_life: h, in tokens or examples; above 0.
      batch_size: n_t, the tokens or examples of one optimizer step: a number, or a function of the
        completed optimizer steps, such as a ramp of batch sizes.

    Raises:
      ValueError: a number is not above 0.

    Example:
      b2 = 0.95 with batches of 0.5 million tokens has a half-life of 6.8 million:

      >>> ramp = optax.linear_schedule(0.5e6, 2e6, transition_steps=1000)
      >>> schedule = half_life_schedule(6.757e6, ramp)
      >>> print([round(float(schedule(count)), 3) for count in (0, 500, 1000)])
      [0.95, 0.88, 0.815]

    Reference: Marek et al. 2025, Small Batch Size Training for Language Models,
    https://arxiv.org/abs/2507.07101.
    """
    if not callable(batch_size):
        batch_size = check_positive("batch_size", batch_size)
    return _HalfLife(check_positive("half_life", half_life), batch_size)


# Classes, not closures, so that equal schedules make equal transformations.
@dataclasses.dataclass(frozen=True)
class _InverseSqrt:
    init_value: float

    def __call__(self, count: jax.typing.ArrayLike) -> jax.Array:
        return self.init_value / jnp.sqrt(jnp.asarray(count, jnp.result_type(float)) + 1)


@dataclasses.dataclass(frozen=True)
class _WarmupStableDecay:
    peak_value: float
    warmup_steps: int
    stable_steps: int
    decay_steps: int
    init_value: float
    end_value: float

    def __call__(self, count: jax.typing.ArrayLike) -> jax.Array:
        t = jnp.asarray(count, jnp.result_type(float))
        left = self.warmup_steps + self.stable_steps + self.decay_steps - t
        rise = self.init_value + (self.peak_value - self.init_value) * t / max(self.warmup_steps, 1)
        share = jnp.clip(left / max(self.decay_steps, 1), 0, 1)
        fall = self.end_value + (self.peak_value - self.end_value) * share
        return jnp.where(t < self.warmup_steps, rise, jnp.where(left > 0, fall, self.end_value))


@dataclasses.dataclass(frozen=True)
class _PowerLaw:
    power: float

    def __call__(self, count: jax.typing.ArrayLike) -> jax.Array:
        return 1 - (jnp.asarray(count, jnp.result_type(float)) + 1) ** -self.power


@dataclasses.dataclass(frozen=True)
class _HalfLife:
    half_life: float
    batch_size: Any

    def __call__(self, count: jax.typing.ArrayLike) -> jax.Array:
        size = self.batch_size(count) if callable(self.batch_size) else self.batch_size
        return 0.5 ** (jnp.asarray(size, jnp.result_type(float)) / self.half_life)
