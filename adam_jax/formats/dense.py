"""One number per element, in a floating-point dtype."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from adam_jax._types import DType, Leaf, PyTree
from adam_jax.formats.base import Format, Refusal, SlotPolicy, sharded_alike
from adam_jax.formats.dtypes import in_range, leaf_dtype, wider_dtype
from adam_jax.slots import Slot


@dataclasses.dataclass(frozen=True)
class Dense(Format):
    """Each element rounded to the nearest number of `dtype`.

    The update is computed from the unrounded array. Encoding is the last operation, so there is no
    `x.astype(low).astype(high)` for XLA:GPU to delete.
    """

    dtype: np.dtype
    unit = 1

    @property
    def rounds(self) -> bool:
        return self.dtype.itemsize < 4

    def refuses(self, slot: Slot) -> Refusal | None:
        return refused_in(self.dtype, slot)

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

    def decode(self, stored: jax.Array, dtype: DType) -> jax.Array:
        # Optax and its checkpoints store the squares of complex gradients in a complex array.
        if jnp.iscomplexobj(stored) and not jnp.issubdtype(dtype, jnp.complexfloating):
            stored = jnp.real(stored)
        return jax.lax.convert_element_type(stored, dtype)

    def shape(self, stored: jax.Array) -> tuple[int, ...]:
        return np.shape(stored)

    def shardings(self, stored: jax.Array, sharding: NamedSharding) -> PyTree:
        return sharded_alike(stored, self.shape(stored), sharding)


def refused_in(dtype: np.dtype, slot: Slot) -> Refusal | None:
    """Why this slot cannot be stored in a floating-point dtype; None if it can."""
    return FLOAT16_IS_NARROW if slot.magnitude and dtype == jnp.float16 else None


FLOAT16_IS_NARROW = Refusal(
    "float16, whose smallest number, 6e-8, is the square of a gradient of 2e-4, so that updates can"
    " be of any size",
    instead="jnp.float32",
    besides=", or adam_jax.stochastic(jnp.bfloat16) for 2 bytes",
)


@dataclasses.dataclass(frozen=True)
class AtLeastFloat32(SlotPolicy):
    """See `AT_LEAST_FLOAT32`."""

    def resolve(self, param: Leaf, slot: Slot, path: str) -> Format:
        del path
        dtype = wider_dtype(jnp.dtype(leaf_dtype(param)), jnp.dtype(jnp.float32))
        return Dense(jnp.finfo(dtype).dtype if slot.magnitude else dtype)

    def __repr__(self) -> str:
        return "AT_LEAST_FLOAT32"


AT_LEAST_FLOAT32 = AtLeastFloat32()
"""The parameter's own dtype, or float32 for 16-bit parameters: the default of every slot.

bfloat16 has 8 significant bits: an average that moves by 0.1 % of its value per step stops
changing. float16 has no numbers under 6e-8, the square of a gradient of 2e-4, so it stores no
magnitudes.
"""
