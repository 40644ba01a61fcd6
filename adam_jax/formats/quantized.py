"""Which leaves are stored in blocks of codes, and how."""

import dataclasses
import math

import numpy as np

from adam_jax._types import Leaf
from adam_jax.formats.base import Format, SlotPolicy
from adam_jax.formats.blockwise import Blockwise, check_real, sharding_by_type
from adam_jax.formats.codecs import Power
from adam_jax.formats.dense import AT_LEAST_FLOAT32
from adam_jax.slots import Slot
from adam_jax.validation import check_integer

SMALLEST_BLOCK = 32


@dataclasses.dataclass(frozen=True)
class Quantized(SlotPolicy):
    """Codes of 8 or 4 bits with a float32 scale per block: 1.03 or 0.53 bytes per parameter.

    `mu_dtype=` and `nu_dtype=` convert `jnp.int8` and `jnp.int4` to this. `Blockwise` describes the
    storage, `Power` the codes. Leaves with fewer than `min_size` elements, or whose last axis has
    no divisor of 32 or more for a block, stay float32.

    Attributes:
      codes: "int8" or "int4". Four bits are refused for nu of AMSGrad and Adamax, because the
        maximum of many coarsely rounded values is too large.
      block: largest number of elements per scale. The block is the largest divisor of the last axis
        up to this; if the type has a sharding, of one device's part of that axis.
      stochastic: round stochastically (see `Power`), not to the nearest code. None does so where
        moments rounded to nearest would stop changing: for second moments whose decay rate is above
        0.969 (8 bits) or 0.5 (4 bits), or unknown when the state is made, as under
        `with_hyperparams`; for first moments whose rate is above 0.992.
      min_size: leaves with fewer elements stay float32.
    """

    codes: str = "int8"
    block: int = 128
    stochastic: bool | None = None
    min_size: int = 4096

    def __post_init__(self) -> None:
        if self.codes not in ("int8", "int4"):
            raise ValueError(f"codes must be 'int8' or 'int4', got {self.codes!r}: write 'int8'.")
        usual = "128 is usual, and a scale per 16 elements would be a quarter of a byte for each"
        block = check_integer("block", self.block, SMALLEST_BLOCK, instead=usual)
        object.__setattr__(self, "block", block)
        usual = "4096 is usual, 0 leaves no leaf out"
        object.__setattr__(
            self, "min_size", check_integer("min_size", self.min_size, 0, instead=usual)
        )

    def resolve(self, param: Leaf, slot: Slot, path: str) -> Format:
        shape = np.shape(param)
        block = fitting_block(_last_axis(param), self.block) if shape else None
        if block is None or math.prod(shape) < max(self.min_size, 1):
            return AT_LEAST_FLOAT32.resolve(param, slot, path)
        check_real(param, slot.magnitude)
        codec = self._codec(slot.magnitude)
        stochastic = self.stochastic
        if stochastic is None:
            stochastic = not _resolved(codec, slot.rate if type(slot.rate) is float else None)
        return Blockwise(codec, block, stochastic)

    def _codec(self, magnitude: bool) -> Power:
        bits = 4 if self.codes == "int4" else 8
        return Power(4, signed=False, bits=bits) if magnitude else Power(2, signed=True, bits=bits)


def _resolved(codec: Power, rate: float | None) -> bool:
    """Whether an average with this weight of a new term still moves when rounded to nearest.

    Without gradients it falls by the fraction `rate` per step. It must fall by half the distance of
    two codes, which is the fraction power / (2·level), at the level of a code out of `steps`. A
    second moment must do so down to a quarter of the levels: with 8 bits, for gradients that are a
    sixteenth of the block's largest. A first moment is moved by gradients many times as large as
    itself.
    """
    if codec.signed:
        return rate is None or rate >= 1 / 128
    return rate is not None and rate >= 4 * codec.power / (2 * codec.steps)


def fitting_block(size: int, largest: int = Quantized.block) -> int | None:
    """The largest divisor of `size` that can be a block; None if there is none."""
    candidates = range(min(largest, size), SMALLEST_BLOCK - 1, -1)
    return next((b for b in candidates if size % b == 0), None)


def _last_axis(param: Leaf) -> int:
    """The length of the last axis on each device that holds a part of the parameter."""
    sharding, shape = sharding_by_type(param), np.shape(param)
    return shape[-1] if sharding is None else sharding.shard_shape(shape)[-1]
