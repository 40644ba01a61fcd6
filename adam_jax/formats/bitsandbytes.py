"""bitsandbytes' 8-bit moments, code for code, so that its checkpoints can be read and written."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from adam_jax.formats.base import Format, SlotPolicy
from adam_jax.formats.blockwise import (
    BlockFormat,
    Blocks,
    as_float32,
    check_real,
    filled,
    sharding_of,
)
from adam_jax.formats.codecs import Codec
from adam_jax.formats.dense import AT_LEAST_FLOAT32
from adam_jax.slots import Slot
from adam_jax.validation import check_integer
from adam_jax.xla.maxima import largest

BLOCK = 256


@dataclasses.dataclass(frozen=True)
class DynamicMap(Codec):
    """The 256 numbers of bitsandbytes' `create_dynamic_map(signed)`: a code is a place among them.

    Zero, one, and between them seven decades, each with twice the numbers of the one below it: the
    middles of equal parts of [0.1, 1], times a power of ten. With w that counts from zero upwards,
    and n = 2^⌊log₂ w⌋, the first w of a decade,

      y = (18·w + 9 - 16·n) / s,  s = 2^(t+1)·5^(t - log₂ n).

    Signed: t = 7 and w = |code - 127|; one, at w = 128, has no negative. Unsigned: t = 8 and
    w = code + 1; at w = 1 is zero.

    Encoding is to the nearest, but of negative numbers never to zero: as bitsandbytes on CUDA.

    Within a unit in the last place of the middle of two codes it may be either. bitsandbytes is no
    more certain: the last two places of its table depend on the CPU that made it, and its kernels
    (CUDA, Triton, PyTorch) divide by the scale, and break ties, each in its own way.

    Attributes:
      signed: for averages of gradients; else for averages of squares.
    """

    signed: bool

    @property
    def dtype(self) -> Any:
        return jnp.dtype(jnp.uint8)

    @property
    def form(self) -> str:
        return "dynamic8_signed" if self.signed else "dynamic8_unsigned"

    # A table would be a gather, and a search in it eight of them: 14 kernels of XLA:GPU for a step.
    # Sums are of integers only, so that a fused multiply-add, which is not in every loop, rounds as
    # the two operations do.

    def code(self, y: jax.Array, noise: jax.Array | None) -> jax.Array:
        if noise is not None:
            raise NotImplementedError
        size = jnp.abs(y)
        (lowest, finest), *decades, (one, _) = self._decades
        n, s = np.float32(lowest), np.float32(finest)
        for first, per_unit in decades:
            # Past the middle of the last of the decade below and the first of this one.
            past = size > np.float32((2 * first + 3.6) / per_unit)
            n = jnp.where(past, np.float32(first), n)
            s = jnp.where(past, np.float32(per_unit), s)
        w = jnp.floor((jnp.floor(size * s) + 16 * n + 0.5) * np.float32(1 / 18))
        w = jnp.minimum(w, 2 * n - 1)  # Up to the middle the last is nearest.
        w = jnp.where(size > np.float32(1 - 0.45 / one), np.float32(one), w)
        # NaN comes out as zero, and the scale, which is NaN, makes NaN of it again.
        zero = np.float32(0 if self.signed else 1)
        w = jnp.where(size > np.float32((lowest + 4.5) / finest), w, zero)
        if not self.signed:
            return jax.lax.convert_element_type(w - 1, self.dtype)
        code = jnp.where(y < 0, 127 - jnp.clip(w, 1, 127), 127 + w)
        return jax.lax.convert_element_type(code, self.dtype)

    def value(self, code: jax.Array) -> jax.Array:
        place = jax.lax.convert_element_type(code, jnp.float32)
        place = place - 127 if self.signed else place + 1
        w = jnp.abs(place)
        # The exponent of w without its mantissa.
        n = jax.lax.bitcast_convert_type(w, jnp.uint32) & np.uint32(0x7F800000)
        n = jax.lax.bitcast_convert_type(n, jnp.float32)
        unit = jnp.zeros_like(w)
        for first, per_unit in self._decades:
            unit = jnp.where(w >= np.float32(first), np.float32(1 / per_unit), unit)
        y = jnp.minimum((18 * w + 9 - 16 * n) * unit, 1)
        return jnp.where(place < 0, -y, y)

    @property
    def _decades(self) -> list[tuple[float, float]]:
        """n and s of each decade, upwards, and of the one above, whose first is taken for one."""
        t = 7 if self.signed else 8
        return [(2.0**e, 2.0 ** (t + 1) * 5.0 ** (t - e)) for e in range(t - 7, t + 1)]


@dataclasses.dataclass(frozen=True)
class FlatBlockwise(BlockFormat):
    """Blocks of 256 elements of the flattened leaf, the last with what is left.

    Each is divided by its largest magnitude, as in `Blockwise`. But blocks may lie across the
    devices that a leaf is sharded over, which then send each other parts of it in every step; not
    if it is sharded over its first axis alone, whole blocks on each device.

    A block of zeros has the scale 0, and is decoded to zeros. A NaN or an infinity in a block
    leaves nothing finite in it, which is seen; `skip_nonfinite` keeps it out.

    Attributes:
      codec: from a share to its code.
    """

    codec: Codec

    @property
    def form(self) -> str:
        return f"{self.codec.form}_flat{BLOCK}"

    def filled_scale(self, param: jax.Array, x: Any) -> jax.Array:
        sharding = _beside_blocks(sharding_of(param), param.shape)
        return filled(self.scale_shape(param.shape), x, jnp.float32, param, sharding)

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (math.ceil(math.prod(shape) / BLOCK),)

    def measure(self, x: jax.Array) -> jax.Array:
        """The largest magnitude in each block."""
        return largest(as_float32(x), _blocks)

    def code(self, x: jax.Array, noise: jax.Array | None, measure: jax.Array) -> Blocks:
        # Not by a selection, as in `Blockwise`: that would be one more kernel here.
        divisor = _each(jnp.maximum(measure, jnp.finfo(jnp.float32).tiny), x.shape)
        shares = jax.lax.convert_element_type(x, jnp.float32) / divisor
        return Blocks(self.codec.code(shares, noise), measure, self)

    def decode(self, stored: Blocks, dtype: Any) -> jax.Array:
        x = self.codec.value(stored.codes) * _each(stored.scale, stored.codes.shape)
        return jax.lax.convert_element_type(x, dtype)

    def shardings(self, stored: Blocks, sharding: NamedSharding) -> Any:
        # What would have blocks across devices is not split.
        if not _whole_on_devices(sharding, self.shape(stored)):
            sharding = NamedSharding(sharding.mesh, PartitionSpec())
        codes: Any = sharding
        scale: Any = _beside_blocks(sharding, self.shape(stored))
        return dataclasses.replace(stored, codes=codes, scale=scale)


def _blocks(x: jax.Array) -> jax.Array:
    """The flattened array in rows of a block, the last filled up with zeros."""
    flat, count = jnp.reshape(x, (x.size,)), math.ceil(x.size / BLOCK)
    missing = count * BLOCK - x.size
    return jnp.reshape(jnp.pad(flat, (0, missing)) if missing else flat, (count, BLOCK))


def _each(scale: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The scale of each element of an array of that shape."""
    flat = jnp.reshape(jnp.broadcast_to(scale[:, None], (scale.size, BLOCK)), (scale.size * BLOCK,))
    return jnp.reshape(flat[: math.prod(shape)], shape)


def _whole_on_devices(sharding: Any, shape: tuple[int, ...]) -> bool:
    """Whether no block lies across devices."""
    if not isinstance(sharding, NamedSharding):
        return True
    part = sharding.shard_shape(shape)
    return part == shape or (part[1:] == shape[1:] and math.prod(part) % BLOCK == 0)


def _beside_blocks(sharding: Any, shape: tuple[int, ...]) -> Any:
    """How to shard the scale: each number lies with its block, or if that cannot be everywhere."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    first = sharding.spec[:1] if _whole_on_devices(sharding, shape) else ()
    return NamedSharding(sharding.mesh, PartitionSpec(*first), memory_kind=sharding.memory_kind)


@dataclasses.dataclass(frozen=True)
class BitsAndBytes8(SlotPolicy):
    """bitsandbytes' 8-bit moments, code for code: 1.016 bytes per parameter each.

    For `mu_dtype=` and `nu_dtype=`, to go on with a run that an 8-bit optimizer of bitsandbytes
    began, or the other way round: codes (`state1`, `state2`), scales (`absmax1`, `absmax2`) and
    blocks of 256 elements of the flattened leaf are the same. (Before bitsandbytes 0.44 a block was
    2048 elements.) For a run of its own `jnp.int8` is faster, has blocks that can be sharded, and
    no second moments of zero.

    Attributes:
      min_size: leaves with fewer elements stay float32, as in bitsandbytes.

    Raises:
      ValueError: in `init`, for a leaf that is sharded so that blocks lie across devices.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> moments = adam_jax.BitsAndBytes8()
      >>> tx = adam_jax.adamw(1e-3, mu_dtype=moments, nu_dtype=moments)
      >>> mu = tx.init(jnp.ones((100, 50)))[0].mu
      >>> print(mu.codes.dtype, mu.codes.shape, mu.scale.shape)
      uint8 (100, 50) (20,)

    Reference: Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization, section 2,
    https://arxiv.org/abs/2110.02861
    """

    min_size: int = 4096

    def __post_init__(self) -> None:
        size = check_integer("min_size", self.min_size, 0, instead="bitsandbytes has 4096")
        object.__setattr__(self, "min_size", size)

    def resolve(self, param: Any, slot: Slot, path: str) -> Format:
        shape = np.shape(param)
        if math.prod(shape) < max(self.min_size, 1):
            return AT_LEAST_FLOAT32.resolve(param, slot, path)
        check_real(param, slot.magnitude)
        if not _whole_on_devices(sharding := sharding_of(param), shape):
            raise ValueError(
                f"the parameter has shape {shape} and is sharded by {sharding.spec}, so that blocks"
                f" of {BLOCK} elements of the flattened leaf lie across devices: shard its first"
                f" axis alone, or write jnp.int8 for BitsAndBytes8()."
            )
        return FlatBlockwise(DynamicMap(signed=not slot.magnitude))
