"""Codecs: a number in [-1, 1], relative to its block's largest, to a code of few bits and back."""

import abc
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax._types import DType, PyTree
from adam_jax.formats.noise import upper_half
from adam_jax.xla.mosaic import fourth_root, signed_square_root, square_root, with_sign


class Codec(abc.ABC):
    """One number, one code; a frozen dataclass, never callable, like a `Format`.

    Attributes:
      dtype: of the codes.
    """

    dtype: DType

    @property
    @abc.abstractmethod
    def form(self) -> str:
        """A name for the meaning of the codes: codes of one form decode alike."""

    @abc.abstractmethod
    def code(self, y: jax.Array, noise: jax.Array | None) -> jax.Array:
        """The codes of float32 numbers in [-1, 1].

        The `noise` of `Format.encode` chooses one of the two neighbouring codes, None the nearest.
        """

    @abc.abstractmethod
    def value(self, code: jax.Array) -> jax.Array:
        """Decodes to float32."""


def nearest_integer(x: jax.Array, less: int = 0) -> jax.Array:
    """The nearest integers of |x| < 2²², less a constant, in the lower bits of int32.

    Undefined for NaN.

    Near 1.5·2²³, float32 numbers are 1 apart, so their lower bits count. XLA:CPU's own conversion
    checks for NaN and out-of-range values, which takes a fifth of the encoding time.
    """
    return jax.lax.bitcast_convert_type(x + np.float32(1.5 * 2**23 - less), jnp.int32)


def _squared(x: jax.Array, times: int) -> list[jax.Array]:
    """x, x², x⁴ and so on."""
    powers = [x]
    for _ in range(times):
        powers.append(powers[-1] * powers[-1])
    return powers


def _signed(y: jax.Array, times: np.float32) -> jax.Array:
    return with_sign(jnp.abs(y) * times, y)


@dataclasses.dataclass(frozen=True)
class Power(Codec):
    """Codes at equal steps of y^(1/power): close together where y is small.

    Signed, for averages of gradients: c = round(127·sign(y)·√|y|), y = (c/127)·|c/127|.

    Unsigned, for averages of squares: c = round(256·y^(1/4)) - 1, y = ((c+1)/256)⁴. There is no
    zero; the smallest value is 2.3e-10 of the block's largest. A second moment rounded to zero (the
    "zero-point problem" of Li et al. 2023, https://arxiv.org/abs/2309.01507) makes an update of
    arbitrary size.

    Stochastic rounding of signed numbers is unbiased in y. Unsigned, it is unbiased in 1/y (8 bits)
    or 1/√y (4 bits), because updates are divided by √y. While y takes its random walk between
    codes, rounding that is unbiased in y makes updates of 4-bit codes 17 to 27 % too large where
    the gradient is 0.3 of the block's largest. Rounding that is unbiased in 1/√y makes them 5 to 7
    % too small. Rounding that is unbiased in 1/y leans to larger y, which costs little with 8 bits
    (1 %), and gives fewer large updates.

    Attributes:
      power: 1, 2 or 4.
      signed: numbers of both signs and zero; else only numbers above zero.
      bits: of a code, 8 or 4. Two 4-bit codes share a byte on every platform (int4).
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
        """The number of steps from zero to one."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits

    # As few operations as possible: with a few more, XLA:GPU stores the float32 moment in one
    # kernel and reads it in another, instead of computing it in both.

    def code(self, y: jax.Array, noise: jax.Array | None) -> jax.Array:
        last = np.float32(self.steps)
        if self.signed and noise is None:
            nearest = {1: _signed, 2: signed_square_root}[self.power](y, last)
            return self._narrowed(nearest_integer(nearest))
        root = {1: lambda x: x, 2: square_root, 4: fourth_root}[self.power]
        level = root(jnp.abs(y) if self.signed else y) * last
        if noise is not None:
            either = self._unbiased if self.signed else self._unbiased_inverse
            level = either(level, upper_half(noise))
        # Clipped to the last code. Division on TPUs is approximate, so the quotient of a block's
        # largest may exceed 1, and the code above the last would wrap to another number.
        if self.signed:
            return self._narrowed(nearest_integer(with_sign(jnp.minimum(level, last), y)))
        return self._narrowed(nearest_integer(jnp.clip(level, 1, last), less=1 + self._lowest))

    def _narrowed(self, code: jax.Array) -> jax.Array:
        """Drops the upper bits, those of 1.5·2²³."""
        return jax.lax.convert_element_type(code, self.dtype)

    def _unbiased(self, level: jax.Array, n: jax.Array) -> jax.Array:
        """The level k below or h = k+1 above; above with the probability (yᵖ - kᵖ) / (hᵖ - kᵖ).

        Differences are computed as products, because y ≈ k.

        Args:
          level: y.
          n: random integers below 2¹⁶.
        """
        below = jnp.floor(level)
        above = below + 1
        x, low, high = (_squared(z, self._squarings) for z in (level, below, above))
        part, whole = (level - below) * np.float32(2**16), jnp.ones_like(level)
        for i in range(self._squarings):
            part, whole = part * (x[i] + low[i]), whole * (high[i] + low[i])
        return jnp.where(n * whole < part, above, below)

    def _unbiased_inverse(self, level: jax.Array, n: jax.Array) -> jax.Array:
        """As `_unbiased`, with the probability (1 - (k/y)ᵖ) / (1 - (k/h)ᵖ), which is 1 for k = 0.

        p is half as large for 4 bits, because yᵖ is the stored number. Differences of powers are
        off by 2⁻¹⁵ of a step at most, as is the level itself. Each power is used twice: XLA:CPU
        then makes no fused multiply-add of it, so all programs have the same bits.
        """
        below = jnp.floor(level)
        above = below + 1
        squarings = self._squarings - (self.bits == 4)
        x, low, high = (_squared(z, squarings)[-1] for z in (level, below, above))
        part, whole = (x - low) * np.float32(2**16), (high - low) * x
        return jnp.where(n * whole < part * high, above, below)

    def value(self, code: jax.Array) -> jax.Array:
        level = jax.lax.convert_element_type(code, jnp.float32)
        level = level if self.signed else level + (1 + self._lowest)
        # Some platforms turn a division by a constant into this product anyway. 127·(1/127) is 1 in
        # float32, so a block's largest decodes to its scale.
        y = level * np.float32(1 / self.steps)
        for turn in range(self._squarings):
            y = y * (jnp.abs(y) if self.signed and turn == 0 else y)
        return y

    @property
    def _lowest(self) -> int:
        """The lowest 4-bit code, negated. Codes are int4: Orbax does not save uint4 arrays."""
        return 8 if self.bits == 4 else 0

    @property
    def _squarings(self) -> int:
        return self.power.bit_length() - 1
