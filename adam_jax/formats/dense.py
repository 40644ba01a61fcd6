"""One number per element, in a floating-point dtype."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax.formats.base import Format, SlotPolicy
from adam_jax.formats.dtypes import in_range, leaf_dtype, wider_dtype


@dataclasses.dataclass(frozen=True)
class Dense(Format):
    """Each element rounded to the nearest number of `dtype`.

    The update is computed from the unrounded array: encoding is the last thing that happens to it,
    so there is no `x.astype(low).astype(high)` for XLA:GPU to delete.
    """

    dtype: np.dtype

    @property
    def rounds(self) -> bool:
        return self.dtype.itemsize < 4

    @property
    def for_magnitudes(self) -> bool:
        return self.dtype != jnp.float16

    def init(self, param: jax.Array, start: float) -> jax.Array:
        return jax.lax.full_like(param, start, self.dtype)

    def encode(self, x: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        del noise
        if jnp.iscomplexobj(x) and not jnp.issubdtype(self.dtype, jnp.complexfloating):
            raise ValueError(
                f"mu_dtype must be complex for a complex gradient, got {self.dtype.name}, which"
                f" would drop its imaginary part: write mu_dtype=jnp.complex64, or leave it out."
            )
        return jax.lax.convert_element_type(in_range(x, self.dtype), self.dtype)

    def decode(self, stored: jax.Array, dtype: Any) -> jax.Array:
        # Optax stores the squares of complex gradients in a complex array; its checkpoints do too.
        if jnp.iscomplexobj(stored) and not jnp.issubdtype(dtype, jnp.complexfloating):
            stored = jnp.real(stored)
        return jax.lax.convert_element_type(stored, dtype)

    def shape(self, stored: jax.Array) -> tuple[int, ...]:
        return np.shape(stored)


@dataclasses.dataclass(frozen=True)
class AtLeastFloat32(SlotPolicy):
    """See `AT_LEAST_FLOAT32`."""

    def resolve(self, param: Any, magnitude: bool, path: str, rate: float | None = None) -> Format:
        del path, rate
        dtype = wider_dtype(jnp.dtype(leaf_dtype(param)), jnp.dtype(jnp.float32))
        return Dense(jnp.finfo(dtype).dtype if magnitude else dtype)

    def __repr__(self) -> str:
        return "AT_LEAST_FLOAT32"


AT_LEAST_FLOAT32 = AtLeastFloat32()
"""The parameter's own dtype, or float32 where that has 16 bits: the default of every slot.

bfloat16 keeps 8 bits: an average that moves by 0.1 % of its value a step stands still in it.
float16 has no numbers under 6e-8, the square of a gradient of 2e-4: no magnitude is stored in it.
"""
