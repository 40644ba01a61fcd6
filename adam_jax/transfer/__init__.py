"""Transfers hyperparameters to larger models, batches and runs."""

from adam_jax.transfer.batch import scale_batch
from adam_jax.transfer.layer_decay import layer_decay
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
    "MupRow",
    "MupTable",
    "attention_scale",
    "layer_decay",
    "mup",
    "mup_init",
    "mup_table",
    "output_factor",
    "residual_factor",
    "scale_batch",
]
