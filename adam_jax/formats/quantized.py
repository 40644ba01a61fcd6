"""Which leaves are stored block by block, and how."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from adam_jax.formats.base import Format, SlotPolicy
from adam_jax.formats.blockwise import Blockwise, check_real, sharding_of
from adam_jax.formats.codecs import Codec, Float8, Power
from adam_jax.formats.dense import AT_LEAST_FLOAT32
from adam_jax.validation import check_integer

SMALLEST_BLOCK = 32
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")


@dataclasses.dataclass(frozen=True)
class Quantized(SlotPolicy):
    """Codes of 8 or 4 bits with a float32 scale per block: 1.03 or 0.53 bytes per parameter.

    What `mu_dtype=` and `nu_dtype=` make of `jnp.int8`, `jnp.int4` and the float8 dtypes; see
    `Blockwise` for how, `Power` and `Float8` for the codes. Leaves with fewer than `min_size`
    elements, or whose last axis no block of 32 or more divides, stay float32.

    Attributes:
      codes: "int8", "int4", "float8_e4m3fn" or "float8_e5m2".
      block: elements per scale, at most. Of the last axis (of what one device has of it) the
        largest divisor up to this is taken.
      stochastic: round so that the mean is right, and not to the nearest code.
      min_size: leaves with fewer elements stay float32.
    """

    codes: str = "int8"
    block: int = 128
    stochastic: bool = False
    min_size: int = 4096

    def __post_init__(self) -> None:
        if self.codes not in ("int8", "int4", *FLOAT8):
            raise ValueError(
                f"codes must be 'int8', 'int4', {' or '.join(map(repr, FLOAT8))}, got"
                f" {self.codes!r}: write 'int8'."
            )
        usual = "128 is usual, and a scale per 16 elements would be a quarter of a byte for each"
        block = check_integer("block", self.block, SMALLEST_BLOCK, instead=usual)
        object.__setattr__(self, "block", block)
        usual = "4096 is usual, 0 leaves no leaf out"
        object.__setattr__(
            self, "min_size", check_integer("min_size", self.min_size, 0, instead=usual)
        )
        if self.stochastic and self.codes in FLOAT8:
            raise ValueError(
                f"stochastic must be False for {self.codes}: write stochastic(jnp.int8), whose"
                f" codes lie closer."
            )

    def resolve(self, param: Any, magnitude: bool, path: str) -> Format:
        shape = np.shape(param)
        block = fitting_block(_last_axis(param), self.block) if shape else None
        if block is None or math.prod(shape) < max(self.min_size, 1):
            return AT_LEAST_FLOAT32.resolve(param, magnitude, path)
        check_real(param, magnitude)
        return Blockwise(self._codec(magnitude), block, self.stochastic)

    def _codec(self, magnitude: bool) -> Codec:
        if self.codes in FLOAT8:
            return Float8(self.codes)
        bits = 4 if self.codes == "int4" else 8
        return Power(4, signed=False, bits=bits) if magnitude else Power(2, signed=True, bits=bits)


def fitting_block(size: int, largest: int = Quantized.block) -> int | None:
    """The largest divisor of `size` that can be a block; None if there is none."""
    candidates = range(min(largest, size), SMALLEST_BLOCK - 1, -1)
    return next((b for b in candidates if size % b == 0), None)


def _last_axis(param: Any) -> int:
    """How long the last axis is on each device that has a part of the parameter."""
    sharding, shape = sharding_of(param), np.shape(param)
    if isinstance(sharding, jax.sharding.NamedSharding):
        return sharding.shard_shape(shape)[-1]
    return shape[-1]
