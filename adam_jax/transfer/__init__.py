"""Transfers hyperparameters to larger models, batches and runs."""

from adam_jax.transfer.batch import scale_batch
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
    "mup",
    "mup_init",
    "mup_table",
    "output_factor",
    "residual_factor",
    "scale_batch",
]
