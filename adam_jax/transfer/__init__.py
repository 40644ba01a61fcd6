"""Transfers hyperparameters to larger models, batches and runs."""

from adam_jax.transfer.batch import (
    decay_rate_of_half_life,
    half_life_of_decay_rate,
    scale_batch,
    time_scale_of_weight_decay,
    weight_decay_of_time_scale,
)
from adam_jax.transfer.coordinates import CoordinateCheck, coordinate_check
from adam_jax.transfer.mup import (
    MupRow,
    MupTable,
    attention_scale,
    mup,
    mup_init,
    mup_table,
    output_factor,
    residual_factor,
)

__all__ = [
    "CoordinateCheck",
    "MupRow",
    "MupTable",
    "attention_scale",
    "coordinate_check",
    "decay_rate_of_half_life",
    "half_life_of_decay_rate",
    "mup",
    "mup_init",
    "mup_table",
    "output_factor",
    "residual_factor",
    "scale_batch",
    "time_scale_of_weight_decay",
    "weight_decay_of_time_scale",
]
