"""Converts optimizer states, so that a run can start in one library and continue in another.

    state = convert.from_torch(optimizer.state_dict(), params, tx, names=names)

No function here opens a file or unpickles: the arguments are already loaded, by
`torch.load(file, weights_only=True)`, safetensors, `numpy.load` or Orbax. No other library is
imported; arrays pass through NumPy.
"""

from adam_jax.convert.moments import from_optax, to_optax
from adam_jax.convert.names import Layout, layer, params_from_named, params_to_named
from adam_jax.convert.pytorch import from_torch, to_torch
from adam_jax.convert.surgery import carry, reset

__all__ = [
    "Layout",
    "carry",
    "from_optax",
    "from_torch",
    "layer",
    "params_from_named",
    "params_to_named",
    "reset",
    "to_optax",
    "to_torch",
]
