"""How a number between -1 and 1, a share of its block's largest, becomes a code of few bits."""

import abc
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax._types import DType, PyTree
from adam_jax.formats.noise import in_unit_interval


class Codec(abc.ABC):
    """One number, one code; a frozen dataclass, and never callable, as a `Format`.

    Attributes:
      dtype: of the codes.
    """

    dtype: DType

    @property
    @abc.abstractmethod
    def form(self) -> str:
        """A word for what the codes mean: those of one form are read alike."""

    @abc.abstractmethod
    def code(self, y: jax.Array, noise: jax.Array | None) -> jax.Array:
        """The codes of float32 numbers in [-1, 1].

        Args:
          y: the numbers.
          noise: 16 random bits each, the upper ones, which choose one of the two codes beside a
            number; None for the nearest code.
        """

    @abc.abstractmethod
    def value(self, code: jax.Array) -> jax.Array:
        """The float32 numbers of codes."""


def nearest_integer(x: jax.Array) -> jax.Array:
    """The nearest whole numbers, |x| < 2²², as the lower bits of int32; anything for a NaN.

    Beside 1.5·2²³ float32 numbers are 1 apart, and their lower bits count. XLA:CPU's own conversion
    looks for NaN and for what is out of range, which takes a fifth of the time of coding.
    """
    return jax.lax.bitcast_convert_type(x + np.float32(1.5 * 2**23), jnp.int32)


def _with_sign(size: jax.Array, y: jax.Array) -> jax.Array:
    """A float32 number that is not negative with the sign of another, in two operations."""
    bits, sign = (jax.lax.bitcast_convert_type(x, jnp.uint32) for x in (size, y))
    return jax.lax.bitcast_convert_type(bits | (sign & np.uint32(1 << 31)), jnp.float32)


@dataclasses.dataclass(frozen=True)
class Power(Codec):
    """Steps that are equal in y^(1/power): close together where y is small.

    Signed, for averages of gradients: c = round(127·sign(y)·√|y|), y = (c/127)·|c/127|.

    Unsigned, for averages of squares: c = round(256·y^(1/4)) - 1, y = ((c+1)/256)⁴. There is no
    zero: the smallest is 2.3e-10 of the block's largest. A second moment that is rounded to zero
    (the "zero-point problem" of Li et al. 2023, https://arxiv.org/abs/2309.01507) makes an update
    of any size.

    Stochastic rounding of signed numbers keeps the mean of y. Unsigned, it keeps the mean of 1/y
    (8 bits) or 1/√y (4 bits), since updates are divided by √y: while y takes its random walk
    between codes, the mean of y kept makes updates of 4-bit codes 17 to 27 % too large where the
    gradient is 0.3 of the block's largest; the mean of 1/√y kept, 5 to 7 % too small. The mean of
    1/y kept leans to larger y, which 8 bits can afford (1 %), and so has fewer large updates.

    Attributes:
      power: 1, 2 or 4.
      signed: numbers of both signs, with a zero; else above zero only.
      bits: of a code, 8 or 4. Two of 4 bits are one byte, on every platform (int4).
    """

    power: int
    signed: bool
    bits: int = 8

    @property
    def dtype(self) -> PyTree:
        return jnp.dtype({8: jnp.int8 if self.signed else jnp.uint8, 4: jnp.int4}[self.bits])

    @property
    def form(self) -> str:
        return f"{'int' if self.signed else 'uint'}{self.bits}_power{self.power}"

    @property
    def steps(self) -> int:
        """From zero to one."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits

    # As few operations as can be: with a few more XLA:GPU finds it cheaper to store the float32
    # moment in one kernel and read it in another than to compute it in both.

    def code(self, y: jax.Array, noise: jax.Array | None) -> jax.Array:
        root = jnp.abs(y) if self.signed else y
        for _ in range(self._squarings):
            root = jnp.sqrt(root)
        level = root * np.float32(self.steps)
        # The last one at most: on TPUs, where division is an approximation, the share of a block's
        # largest may be more than 1, and the code above the last would be another number.
        last = np.float32(self.steps)
        if noise is not None:
            level = self._either(level, noise)
        if self.signed:
            level = level if noise is None else jnp.minimum(level, last)
            code = nearest_integer(_with_sign(level, y))
        else:
            code = nearest_integer(jnp.clip(level, 1, last)) - (1 + self._lowest)
        # The upper bits, those of 1.5·2²³, are dropped.
        return jax.lax.convert_element_type(code, self.dtype)

    def _either(self, level: jax.Array, noise: jax.Array) -> jax.Array:
        """The level below or the one above, by where the number lies between the two numbers.

        With h = k+1, the one above has the probability (yᵖ - kᵖ) / (hᵖ - kᵖ) if signed, and
        (1 - (k/y)ᵖ) / (1 - (k/h)ᵖ) if unsigned, 1 for k = 0. Differences are products, as y ≈ k.
        """
        below = jnp.floor(level)
        above = below + 1
        x, low, high = level, below, above
        part, sums = x - low, []
        # A half of p for 4 bits, as yᵖ is the number that is stored.
        for _ in range(self._squarings - (not self.signed and self.bits == 4)):
            part = part * (x + low)
            sums.append(high + low)
            x, low, high = x * x, low * low, high * high
        whole = functools.reduce(jnp.multiply, sums) if sums else jnp.ones_like(x)
        if not self.signed:
            part, whole = part * high, whole * x
        return jnp.where(in_unit_interval(noise) * whole < part, above, below)

    def value(self, code: jax.Array) -> jax.Array:
        level = jax.lax.convert_element_type(code, jnp.float32)
        level = level if self.signed else level + (1 + self._lowest)
        # What XLA makes of a division by a constant anyway, on some platforms. 127·(1/127) is 1 in
        # float32, so that a block's largest is its scale.
        y = level * np.float32(1 / self.steps)
        for turn in range(self._squarings):
            y = y * (jnp.abs(y) if self.signed and turn == 0 else y)
        return y

    @property
    def _lowest(self) -> int:
        """The lowest code of 4 bits, negated: Orbax saves int4 arrays, and no uint4 arrays."""
        return 8 if self.bits == 4 else 0

    @property
    def _squarings(self) -> int:
        return self.power.bit_length() - 1
