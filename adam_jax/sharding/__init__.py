"""Past one device: the optimizer's state split over devices, or kept in the host's memory."""

from adam_jax.sharding.offload import offload
from adam_jax.sharding.shard import shard_state, state_shardings

__all__ = ["offload", "shard_state", "state_shardings"]
