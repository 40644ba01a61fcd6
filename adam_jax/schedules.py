"""Schedules that Optax lacks, of learning rates and decay rates, by completed optimizer steps."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_jax.validation import check_number, check_positive

__all__ = ["half_life_schedule", "inverse_sqrt_schedule", "power_law_schedule"]


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
