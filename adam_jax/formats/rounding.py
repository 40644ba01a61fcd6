"""Stochastic rounding to 16 bits: up or down, so that the mean is the number itself.

bfloat16 numbers are 0.4 to 0.8 % apart. An average that moves by 0.1 % per step stops changing if
it is rounded to nearest. Rounded stochastically, it moves by one bfloat16 number now and then.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from adam_jax._types import DType, PyTree
from adam_jax.formats.base import Format, Refusal, sharded_alike
from adam_jax.formats.dense import refused_in
from adam_jax.formats.dtypes import in_range
from adam_jax.slots import Slot


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rounded:
    """The stored form of `Stochastic`.

    Attributes:
      values: bfloat16 or float16, with the parameter's shape.
      format: how they are rounded.
    """

    values: jax.Array
    format: Format = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Stochastic(Format):
    """Each element rounded up or down to bfloat16 or float16.

    Attributes:
      dtype: bfloat16 or float16.
    """

    dtype: np.dtype
    stochastic = True
    unit = 1

    @property
    def rounds(self) -> bool:
        return True

    def refuses(self, slot: Slot) -> Refusal | None:
        return refused_in(self.dtype, slot)

    def init(self, param: jax.Array, start: float) -> Rounded:
        return Rounded(jnp.full_like(param, start, dtype=self.dtype), self)

    def encode(self, x: jax.Array, noise: jax.Array | None = None) -> Rounded:
        if jnp.iscomplexobj(x):
            raise ValueError(
                f"mu_dtype must be complex for a complex gradient, got stochastic"
                f" {self.dtype.name}, which would drop its imaginary part: leave it out."
            )
        x = jax.lax.convert_element_type(in_range(x, self.dtype), jnp.float32)
        if noise is None:
            return Rounded(jax.lax.convert_element_type(x, self.dtype), self)
        return Rounded(rounded_stochastically(x, self.dtype, noise), self)

    def decode(self, stored: Rounded, dtype: DType) -> jax.Array:
        return jax.lax.convert_element_type(stored.values, dtype)

    def shape(self, stored: Rounded) -> tuple[int, ...]:
        return np.shape(stored.values)

    def shardings(self, stored: Rounded, sharding: NamedSharding) -> PyTree:
        return sharded_alike(stored, self.shape(stored), sharding)


def rounded_stochastically(x: jax.Array, dtype: np.dtype, noise: jax.Array) -> jax.Array:
    """float32 to one of the two neighbouring numbers of `dtype`, chosen by 16 random bits each.

    Numbers that `dtype` can represent are unchanged, and NaN stays NaN.
    """
    if dtype == jnp.bfloat16:
        # In integers: XLA:GPU deletes roundings to and fro, and the upper half of the bits is the
        # number. The lower half is dropped in float32: for 16-bit numbers that are made otherwise,
        # or selected from, XLA:TPU adds a pass, 28 bytes per parameter instead of 20.
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
        upper = (bits + (noise >> np.uint32(16))) & np.uint32(0xFFFF0000)
        rounded = jax.lax.bitcast_convert_type(upper, jnp.float32)
    else:
        rounded = _to_float16(x, noise)
    # The NaN of an NVIDIA GPU has all bits set, so adding to it would wrap.
    rounded = jnp.where(jnp.isnan(x), np.float32(np.nan), rounded)
    return jax.lax.convert_element_type(rounded, dtype)


def rounded_to_nearest(x: jax.Array, dtype: np.dtype) -> jax.Array:
    """Rounds to the nearest bfloat16 or float16, as float32.

    Not `x.astype(dtype).astype(float32)`, which XLA:GPU simplifies to x.
    """
    if dtype == jnp.bfloat16:
        # In integers: kernels have no reduce_precision.
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        nearest = (bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)
        nearest = jax.lax.bitcast_convert_type(nearest, jnp.float32)
        return jnp.where(jnp.isnan(x), x, nearest)
    distance = _distance(x)
    rounded = jnp.round(x / distance) * distance
    past = jnp.abs(x) >= np.float32(65520)  # Half a step past the largest number, 65504.
    return jnp.where(past, jnp.sign(x) * np.float32(np.inf), rounded)


def _distance(x: jax.Array) -> jax.Array:
    """The distance between float16 numbers around x, a power of two.

    float16 has 10 bits after the leading one, and a fixed distance of 2⁻²⁴ below 2⁻¹⁴.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    power = jax.lax.bitcast_convert_type(bits & np.uint32(0x7F800000), jnp.float32)
    return jnp.maximum(power * np.float32(2**-10), np.float32(2**-24))


def _to_float16(x: jax.Array, noise: jax.Array) -> jax.Array:
    """A float32 that float16 can represent, except for numbers past its largest."""
    distance = _distance(x)
    part = jax.lax.convert_element_type(noise >> np.uint32(19), jnp.float32) * np.float32(2**-13)
    below = jnp.floor(x / distance + part) * distance
    return jnp.where(jnp.isinf(x), x, below)
