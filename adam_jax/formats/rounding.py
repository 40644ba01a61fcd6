"""Stochastic rounding to 16 bits: up or down, so that the mean is the number itself.

An average that moves by 0.1 % a step stands still in bfloat16, whose numbers are 0.4 to 0.8 %
apart, if it is rounded to the nearest. Rounded like this it moves by one of them now and then.
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
    """What `Stochastic` stores.

    Attributes:
      values: bfloat16 or float16, with the parameter's shape.
      format: which says how they are rounded.
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
    """float32 to one of the two numbers of `dtype` beside it, which 16 random bits each choose.

    What `dtype` has a number for is that number, and NaN stays NaN.
    """
    if dtype == jnp.bfloat16:
        # In integers: XLA:GPU deletes roundings there and back, and the upper half is the number.
        # The lower half is dropped as float32: of numbers of 16 bits that are made otherwise, or
        # chosen from, XLA:TPU makes a pass of its own, 28 bytes per parameter and not 20.
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
        upper = (bits + (noise >> np.uint32(16))) & np.uint32(0xFFFF0000)
        rounded = jax.lax.bitcast_convert_type(upper, jnp.float32)
    else:
        rounded = _to_float16(x, noise)
    # An NVIDIA GPU's own NaN has all bits set, to which nothing can be added.
    rounded = jnp.where(jnp.isnan(x), np.float32(np.nan), rounded)
    return jax.lax.convert_element_type(rounded, dtype)


def rounded_to_nearest(x: jax.Array, dtype: np.dtype) -> jax.Array:
    """The nearest number of bfloat16 or float16, as float32.

    Not as `x.astype(dtype).astype(float32)`, which XLA:GPU takes for x.
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
    past = jnp.abs(x) >= np.float32(65520)  # Half a distance past the largest number, 65504.
    return jnp.where(past, jnp.sign(x) * np.float32(np.inf), rounded)


def _distance(x: jax.Array) -> jax.Array:
    """How far apart the numbers of float16 are around x, a power of two.

    It has 10 bits behind the leading one, and below 2⁻¹⁴ a fixed distance of 2⁻²⁴.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    power = jax.lax.bitcast_convert_type(bits & np.uint32(0x7F800000), jnp.float32)
    return jnp.maximum(power * np.float32(2**-10), np.float32(2**-24))


def _to_float16(x: jax.Array, noise: jax.Array) -> jax.Array:
    """A float32 that float16 has, but for numbers past its largest."""
    distance = _distance(x)
    part = jax.lax.convert_element_type(noise >> np.uint32(19), jnp.float32) * np.float32(2**-13)
    below = jnp.floor(x / distance + part) * distance
    return jnp.where(jnp.isinf(x), x, below)
