"""Codes of 8 or 4 bits, with one float32 scale for each block along the last axis."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from adam_jax._types import DType, Function, Leaf, PyTree
from adam_jax.formats.base import (
    READ_AS_SAVED,
    Format,
    Refusal,
    SlotPolicy,
    exported_form,
    filled,
    sharding_by_type,
    whole_along,
)
from adam_jax.formats.dense import AT_LEAST_FLOAT32, in_range
from adam_jax.slots import Slot
from adam_jax.validation import check_integer
from adam_jax.xla.maxima import InBlocks, each_by_its_block, largest
from adam_jax.xla.mosaic import (
    divisor,
    fourth_root,
    quotient,
    signed_square_root,
    square_root,
    with_sign,
)


@dataclasses.dataclass(frozen=True)
class Power:
    """A number in [-1, 1] to a code of few bits and back, at equal steps of one of its roots.

    Signed, for averages of gradients: c = round(127·sign(y)·√|y|), y = (c/127)·|c/127|.

    Unsigned, for averages of squares: c = round(256·y^(1/4)) - 1, y = ((c+1)/256)⁴. There is no
    zero; the smallest value is 2.3e-10 of the block's largest. A second moment rounded to zero (the
    "zero-point problem" of Li et al. 2023, https://arxiv.org/abs/2309.01507) makes an update of
    arbitrary size.

    Stochastic rounding of signed numbers is unbiased in y. Unsigned, it is unbiased in 1/y (8 bits)
    or 1/√y (4 bits), because updates are divided by √y. With 4 bits, rounding that is unbiased in y
    makes updates 17 to 27 % too large where the gradient is 0.3 of the block's largest; unbiased in
    1/√y, 5 to 7 % too small. Unbiased in 1/y costs little with 8 bits (1 %), and gives fewer large
    updates.
    """

    signed: bool  # Numbers of both signs and zero; else only numbers above zero.
    bits: int = 8  # Of a code, 8 or 4. Two 4-bit codes share a byte on every platform (int4).

    @property
    def dtype(self) -> np.dtype:
        """Of the codes."""
        return jnp.dtype({8: jnp.int8 if self.signed else jnp.uint8, 4: jnp.int4}[self.bits])

    @property
    def form(self) -> str:
        """A name for the meaning of the codes: codes of one form decode alike."""
        return f"int{self.bits}_power2" if self.signed else f"uint{self.bits}_power4"

    @property
    def steps(self) -> int:
        """The number of steps from zero to one."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits

    # As few operations as possible: with a few more, XLA:GPU stores the float32 moment in one
    # kernel and reads it in another, instead of computing it in both.

    def code(self, y: jax.Array, noise: jax.Array | None) -> jax.Array:
        """The codes of float32 numbers in [-1, 1].

        16 random bits per element, in the upper half, choose one of the two neighbouring codes;
        without them it is the nearest code.
        """
        last = np.float32(self.steps)
        if self.signed and noise is None:
            return self._nearest(signed_square_root(y, last))
        level = (square_root(jnp.abs(y)) if self.signed else fourth_root(y)) * last
        if noise is not None:
            either = self._unbiased if self.signed else self._unbiased_inverse
            # Through int32, which TPUs convert in one operation.
            upper = jax.lax.convert_element_type(noise >> np.uint32(16), jnp.int32)
            level = either(level, jax.lax.convert_element_type(upper, jnp.float32))
        # Clipped to the last code. Division on TPUs is approximate, so the quotient of a block's
        # largest may exceed 1, and the code above the last would wrap to another number.
        if self.signed:
            return self._nearest(with_sign(jnp.minimum(level, last), y))
        return self._nearest(jnp.clip(level, 1, last), less=1 + self._lowest)

    def _nearest(self, level: jax.Array, less: int = 0) -> jax.Array:
        """The nearest codes of |level| < 2²², less a constant; not for NaN.

        Near 1.5·2²³, float32 numbers are 1 apart, so their lower bits count. XLA:CPU's own
        conversion checks for NaN and out-of-range values, a fifth of the encoding time.
        """
        bits = jax.lax.bitcast_convert_type(level + np.float32(1.5 * 2**23 - less), jnp.int32)
        return jax.lax.convert_element_type(bits, self.dtype)

    def _unbiased(self, level: jax.Array, n: jax.Array) -> jax.Array:
        """The level k below y or h = k+1 above; above with the probability (y² - k²) / (h² - k²).

        n are random integers below 2¹⁶. Differences are computed as products, because y ≈ k.
        """
        below = jnp.floor(level)
        above = below + 1
        part = (level - below) * np.float32(2**16) * (level + below)
        return jnp.where(n * (above + below) < part, above, below)

    def _unbiased_inverse(self, level: jax.Array, n: jax.Array) -> jax.Array:
        """As `_unbiased`, with the probability (1 - (k/y)ᵖ) / (1 - (k/h)ᵖ), which is 1 for k = 0.

        p is 4 for 8 bits and 2 for 4, because y⁴ is the stored number. Differences of powers are
        off by 2⁻¹⁵ of a step at most, as is the level itself. Each power is used twice: XLA:CPU
        then makes no fused multiply-add of it, so all programs have the same bits.
        """
        below = jnp.floor(level)
        above = below + 1
        x, low, high = level, below, above
        for _ in range(self.bits // 4):
            x, low, high = x * x, low * low, high * high
        part, whole = (x - low) * np.float32(2**16), (high - low) * x
        return jnp.where(n * whole < part * high, above, below)

    def value(self, code: jax.Array) -> jax.Array:
        """Decodes to float32."""
        level = jax.lax.convert_element_type(code, jnp.float32)
        level = level if self.signed else level + (1 + self._lowest)
        # Some platforms turn a division by a constant into this product anyway. 127·(1/127) is 1 in
        # float32, so a block's largest decodes to its scale.
        y = level * np.float32(1 / self.steps)
        if self.signed:
            return y * jnp.abs(y)
        y = y * y
        return y * y

    @property
    def _lowest(self) -> int:
        """The lowest 4-bit code, negated. Codes are int4: Orbax does not save uint4 arrays."""
        return 8 if self.bits == 4 else 0


@exported_form
@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Blocks:
    """The stored form of `Blockwise`: codes, and the largest magnitude of each block in float32.

    The key of the codes names their form, `codes_int8_power2_block128`: a checkpoint by paths saves
    nothing else of `format`, and codes of another form would be read as numbers of this one.
    """

    codes: jax.Array
    scale: jax.Array
    format: "Blockwise"

    def tree_flatten(self) -> tuple[tuple[PyTree, PyTree], "Blockwise"]:
        return (self.codes, self.scale), self.format

    def tree_flatten_with_keys(self) -> tuple[tuple[PyTree, PyTree], "Blockwise"]:
        codes, scale = map(jax.tree_util.GetAttrKey, (f"codes_{self.format.form}", "scale"))
        return ((codes, self.codes), (scale, self.scale)), self.format

    @classmethod
    def tree_unflatten(cls, fmt: "Blockwise", arrays: tuple[PyTree, PyTree]) -> "Blocks":
        return cls(*arrays, fmt)


@dataclasses.dataclass(frozen=True)
class Blockwise(Format):
    """Each block is divided by its largest magnitude, and a codec encodes the quotients.

    The largest magnitudes are measured before any element is encoded: `measured` is the input of
    `xla.maxima.largest`, which measures all slots of a leaf together, and `code` gets the result.
    Blocks run along the last axis: those of a flattened leaf would cost an all-gather in each step.

    A block of zeros has scale 0 and decodes to zeros. A NaN or infinity leaves no finite number in
    its block, so it stays visible.
    """

    codec: Power
    block: int  # Elements that share a scale; divides the last axis.
    stochastic: bool = False  # Round to one of the two neighbouring codes, unbiased.
    along: int | None = None  # For a tile, the axis that is one block.
    measures = True

    def __str__(self) -> str:
        how = ", stochastic" * self.stochastic
        return f"{self.codec.dtype.name} in blocks of {self.block}{how}"

    @property
    def form(self) -> str:
        """A name for the meaning of codes and scales, saved with them; without the rounding."""
        return f"{self.codec.form}_block{self.block}"

    @property
    def unit(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.block

    def refuses(self, slot: Slot) -> Refusal | None:
        if not slot.maximum or self.codec.bits == 8:
            return None
        return Refusal(
            "4 bits where a maximum over the steps is taken of it: the largest of many coarsely"
            " rounded values is too large, and updates are up to 27 % too small",
            instead="jnp.int8",
        )

    def init(self, param: jax.Array, start: float) -> Blocks:
        code = self.codec.code(jnp.sign(jnp.asarray(start, jnp.float32)), None)
        codes = jnp.full_like(param, code, dtype=self.codec.dtype)
        shape = self._scale_shape(param.shape)
        part_of = functools.partial(self._in_whole_blocks, param.shape)
        return Blocks(codes, filled(shape, jnp.abs(start), jnp.float32, param, part_of), self)

    def shape(self, stored: Blocks) -> tuple[int, ...]:
        shape, scale = np.shape(stored.codes), np.shape(stored.scale)
        dtype = jnp.dtype(stored.codes.dtype)
        if dtype != self.codec.dtype or scale != self._scale_shape(shape):
            raise ValueError(
                f"the state has codes of {dtype.name}{list(shape)} with scales of shape {scale},"
                f" which are not of its form, {self.form}. If it is from a checkpoint,"
                f" {READ_AS_SAVED}"
            )
        return shape

    def _scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], shape[-1] // self.block)

    def measured(self, x: jax.Array) -> InBlocks:
        return InBlocks(_as_float32(x), self.block, self.along)

    def encode(self, x: jax.Array, noise: jax.Array | None = None) -> Blocks:
        [measure] = largest([self.measured(x)])
        return self.code(x, noise, measure)

    def code(self, x: jax.Array, noise: jax.Array | None, measure: jax.Array) -> Blocks:
        def coded(scale: jax.Array, x: jax.Array, noise: jax.Array | None = None) -> jax.Array:
            return self.codec.code(quotient(x, scale), noise)

        arrays = [_as_float32(x)] if noise is None else [_as_float32(x), noise]
        # NaN becomes some code, which decoding multiplies by the scale 0.
        codes = self._each(coded, divisor(measure), *arrays)
        # The stored form of a tile is part of the stored form of the array.
        whole = self if self.along is None else dataclasses.replace(self, along=None)
        return Blocks(codes, measure, whole)

    def decode(self, stored: Blocks, dtype: DType) -> jax.Array:
        def decoded(scale: jax.Array, codes: jax.Array) -> jax.Array:
            return self.codec.value(codes) * scale

        x = self._each(decoded, stored.scale, stored.codes)
        return jax.lax.convert_element_type(x, dtype)

    def of_tiles(self, along: int) -> "Blockwise":
        """The format of tiles whose axis `along` is one block; measures keep that axis."""
        return dataclasses.replace(self, along=along)

    def shardings(self, stored: Blocks, sharding: NamedSharding) -> PyTree:
        sharding = self._in_whole_blocks(self.shape(stored), sharding)
        return jax.tree.map(lambda _: sharding, stored)

    def _in_whole_blocks(self, shape: tuple[int, ...], sharding: NamedSharding) -> NamedSharding:
        """A sharding that splits the last axis only if every device gets whole blocks."""
        if sharding.shard_shape(shape)[-1] % self.block:
            return whole_along((-1,), sharding, len(shape))
        return sharding

    def _each(self, f: Function, scale: jax.Array, *arrays: jax.Array) -> jax.Array:
        """f of the scale of each element's block and the element."""
        if self.along is not None:
            return f(scale, *arrays)
        return each_by_its_block(f, self.block, scale, *arrays)


def _as_float32(x: jax.Array) -> jax.Array:
    """x in float32, its finite elements clipped to its range."""
    return jax.lax.convert_element_type(in_range(x, jnp.float32), jnp.float32)


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
        moments rounded to nearest would stop changing: for decay rates above 0.969 with 8 bits;
        with 4 bits above 0.5 for second moments and 0.43 for first ones. A rate that is unknown
        when the state is made, as under `with_hyperparams`, counts as 0.999 or 0.9.
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
        size = check_integer("min_size", self.min_size, 0, instead=usual)
        object.__setattr__(self, "min_size", size)

    def resolve(self, param: Leaf, slot: Slot, path: str) -> Format:
        shape, sharding = np.shape(param), sharding_by_type(param)
        part = shape if sharding is None else sharding.shard_shape(shape)
        block = fitting_block(part[-1], self.block) if shape else None
        if block is None or math.prod(shape) < max(self.min_size, 1):
            return AT_LEAST_FLOAT32.resolve(param, slot, path)
        dtype = jnp.dtype(getattr(param, "dtype", np.float32))
        if jnp.issubdtype(dtype, jnp.complexfloating) and not slot.magnitude:
            raise ValueError(
                f"the parameter is {dtype.name}, and codes have no imaginary part: leave mu_dtype"
                f" out for it, by path with by_path."
            )
        bits = 4 if self.codes == "int4" else 8
        codec = Power(signed=not slot.magnitude, bits=bits)
        stochastic = self.stochastic
        if stochastic is None:
            usual = 0.001 if slot.magnitude else 0.1  # Where the rate is unknown.
            stochastic = not _resolved(codec, slot.rate if type(slot.rate) is float else usual)
        return Blockwise(codec, block, stochastic)


def _resolved(codec: Power, rate: float) -> bool:
    """Whether an average with this weight of a new term still moves when rounded to nearest.

    Without gradients it falls by the fraction `rate` per step. It must fall by half the distance of
    two codes, 1 / level signed and 2 / level unsigned, down to a quarter of the levels. With 8 bits
    these are moments of a sixteenth and of a 256th of the block's largest.
    """
    return rate >= 4 * (1 if codec.signed else 2) / codec.steps


def fitting_block(size: int, largest: int = Quantized.block) -> int | None:
    """The largest divisor of `size` that can be a block; None if there is none."""
    candidates = range(min(largest, size), SMALLEST_BLOCK - 1, -1)
    return next((b for b in candidates if size % b == 0), None)
