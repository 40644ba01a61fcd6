"""One number per element, in a floating-point dtype."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax.formats.base import Format


@dataclasses.dataclass(frozen=True)
class Dense(Format):
    """Each element rounded to the nearest number of `dtype`.

    The update is computed from the unrounded array: encoding is the last thing that happens to it,
    so there is no `x.astype(low).astype(high)` for XLA:GPU to delete.
    """

    dtype: np.dtype

    def init(self, param: jax.Array, start: float) -> jax.Array:
        return jnp.full_like(param, start, dtype=self.dtype)

    def encode(self, x: jax.Array) -> jax.Array:
        if jnp.iscomplexobj(x) and not jnp.issubdtype(self.dtype, jnp.complexfloating):
            raise ValueError(
                f"mu_dtype must be complex for a complex gradient, got {self.dtype.name}, which"
                f" would drop its imaginary part: write mu_dtype=jnp.complex64, or leave it out."
            )
        return jax.lax.convert_element_type(x, self.dtype)

    def decode(self, stored: jax.Array, dtype: Any) -> jax.Array:
        # Optax stores the squares of complex gradients in a complex array; its checkpoints do too.
        if jnp.iscomplexobj(stored) and not jnp.issubdtype(dtype, jnp.complexfloating):
            stored = jnp.real(stored)
        return jax.lax.convert_element_type(stored, dtype)

    def shape(self, stored: jax.Array) -> tuple[int, ...]:
        return np.shape(stored)
