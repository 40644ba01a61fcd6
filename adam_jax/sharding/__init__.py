"""Optimizer state beyond one device: sharded over devices, or offloaded to host memory."""

from adam_jax.sharding.offload import offload
from adam_jax.sharding.shard import shard_state, state_shardings

__all__ = ["offload", "shard_state", "state_shardings"]
