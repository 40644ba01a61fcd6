"""Transfers hyperparameters to larger models, batches and runs."""

from adam_jax.transfer.batch import scale_batch
from adam_jax.transfer.layer_decay import layer_decay
from adam_jax.transfer.mup import MupRow, MupTable, mup, mup_init, mup_table

__all__ = ["MupRow", "MupTable", "layer_decay", "mup", "mup_init", "mup_table", "scale_batch"]
