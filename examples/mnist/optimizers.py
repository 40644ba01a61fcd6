"""The optimizers and the learning rate schedules of a run, by name."""

import functools
from collections.abc import Callable
from typing import Any

import optax

import adam_jax
from adam_jax import schedules

MEMBERS = ("adabelief", "adam", "adamax", "adamaxw", "adamw", "adan", "ademamix", "adopt")
MEMBERS += ("amsgrad", "lamb", "lion", "nadam", "nadamw", "radam", "yogi")
OPTIMIZERS = {name: getattr(adam_jax, name) for name in MEMBERS}
# Baselines, under the names of `examples.studies.compare`.
OPTIMIZERS |= {"sgd": optax.sgd, "momentum": functools.partial(optax.sgd, momentum=0.9)}

# Functions of the peak learning rate (after the warmup) and the number of steps.
SCHEDULES: dict[str, Callable[[float, int], Any]] = {
    "constant": lambda rate, steps: optax.constant_schedule(rate),
    "cosine": lambda rate, steps: optax.cosine_decay_schedule(rate, steps),
    "inverse-sqrt": lambda rate, steps: schedules.inverse_sqrt_schedule(rate),
    "warmup-stable-decay": lambda rate, steps: optax.join_schedules(
        [
            optax.linear_schedule(0.0, rate, steps // 20),
            optax.constant_schedule(rate),
            optax.linear_schedule(rate, 0.0, steps // 5),
        ],
        [steps // 20, steps - steps // 5],
    ),
}
ENDING = ("cosine", "warmup-stable-decay")  # Schedules that depend on the number of steps.
