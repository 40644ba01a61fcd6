"""Adam and its family for JAX, as Optax transformations."""

from adam_jax import schedules
from adam_jax.compose import scale_by_learning_rate
from adam_jax.family.adam import (
    ScaleByBiasCorrectionState,
    adam,
    adamw,
    scale_by_adam,
    scale_by_bias_correction,
)
from adam_jax.family.amsgrad import amsgrad, scale_by_amsgrad
from adam_jax.formats.policy import AT_LEAST_FLOAT32
from adam_jax.transform import Transformation, step

__version__ = "0.1.0"

__all__ = [
    "AT_LEAST_FLOAT32",
    "ScaleByBiasCorrectionState",
    "Transformation",
    "adam",
    "adamw",
    "amsgrad",
    "scale_by_adam",
    "scale_by_amsgrad",
    "scale_by_bias_correction",
    "scale_by_learning_rate",
    "schedules",
    "step",
]
