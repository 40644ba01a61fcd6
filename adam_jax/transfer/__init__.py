"""Hyperparameters that hold when the model, the batch or the run grows."""

from adam_jax.transfer.batch import scale_batch
from adam_jax.transfer.factors import attention_scale, output_factor, residual_factor
from adam_jax.transfer.mup import mup, mup_init

__all__ = [
    "attention_scale",
    "mup",
    "mup_init",
    "output_factor",
    "residual_factor",
    "scale_batch",
]
