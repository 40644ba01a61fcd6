"""Codecs of other libraries for Adam's moments, rewritten from their sources.

Each is a `Format` for `adam_jax.scale_by_adam`, so rows of a table differ only in the storage.
Unlike the package's formats they divide the flattened tensor into blocks. They are deliberately
independent of the codecs in `adam_jax.formats`.
"""

import abc
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax.formats.base import Format
from adam_jax.slots import Slot

BITSANDBYTES, FLASH, TORCHAO = "bitsandbytes 8-bit", "FlashOptim 8-bit", "torchao 4-bit"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Codes:
    """A stored array: codes with the parameter's shape, and a scale per block."""

    codes: jax.Array
    scale: jax.Array
    format: Format = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class FlatBlocks(Format):
    """Blocks of the flattened tensor, each divided by its largest magnitude; the last is padded."""

    block: int

    @abc.abstractmethod
    def split(self, blocks: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The codes of float32 [blocks, block], and the scales [blocks, 1]."""

    @abc.abstractmethod
    def join(self, codes: jax.Array, scale: jax.Array) -> jax.Array:
        """The opposite."""

    def init(self, param: jax.Array, start: float) -> Codes:
        """The stored form of an array filled with `start`."""
        return self.encode(jnp.full_like(param, start, dtype=jnp.float32))

    def encode(self, x: jax.Array, noise: jax.Array | None = None) -> Codes:
        """The stored form; all peers here round to nearest."""
        codes, scale = self.split(self._blocks(x.astype(jnp.float32)))
        return Codes(jnp.ravel(codes)[: x.size].reshape(x.shape), scale[:, 0], self)

    def decode(self, stored: Codes, dtype: Any) -> jax.Array:
        """The array."""
        x = self.join(self._blocks(stored.codes), stored.scale[:, None])
        return jnp.ravel(x)[: stored.codes.size].reshape(stored.codes.shape).astype(dtype)

    def shape(self, stored: Codes) -> tuple[int, ...]:
        """Of the array."""
        return np.shape(stored.codes)

    def refuses(self, slot: Slot) -> None:
        """No slot."""

    def shardings(self, stored: Codes, sharding: Any) -> Any:
        """Not sharded here."""
        return jax.tree.map(lambda _: sharding, stored)

    def _blocks(self, x: jax.Array) -> jax.Array:
        return jnp.pad(jnp.ravel(x), (0, -x.size % self.block)).reshape(-1, self.block)


def _edges(parts: int) -> np.ndarray:
    """`torch.linspace(0.1, 1, parts + 1)` to the last bit: from either end, rounded once."""
    first, last = np.float32(0.1), np.float32(1)
    i, step = np.arange(parts + 1), np.float64((last - first) / np.float32(parts))
    up, down = np.float64(first) + step * i, 1 - step * (parts - i)
    return np.where(i < (parts + 1) // 2, up, down).astype(np.float32)


def dynamic_map(signed: bool, exponents: int = 7, bits: int = 8) -> np.ndarray:
    """The values of bitsandbytes' codes, sorted: float32 [2**bits].

    `create_dynamic_map` of its functional.py. Each exponent is a decade; larger ones are divided
    into more parts, whose middles are the values. Then 0 and 1 are added, but not -1.
    """
    numbers = [np.zeros(1), np.ones(1)]
    for i in range(exponents):
        parts = 2 ** (i + bits - 1 - exponents + (not signed))
        edges = _edges(parts)
        middles = np.float32(10.0 ** (i - exponents + 1)) * ((edges[:-1] + edges[1:]) / 2)
        numbers += [middles, -middles] if signed else [middles]
    found = np.sort(np.concatenate(numbers)).astype(np.float32)
    assert len(found) == 2**bits
    return found


@dataclasses.dataclass(frozen=True)
class Table(FlatBlocks):
    """A code is the index of the nearest number in a table; ties go to the even index.

    Attributes:
      numbers: the table, sorted, 2**bits of them.
      keep_sign: negative numbers never become zero, as in bitsandbytes' kernel.
    """

    numbers: tuple[float, ...]
    keep_sign: bool = False

    @property
    def dtype(self) -> Any:
        """Of the codes."""
        return jnp.uint8 if len(self.numbers) == 256 else jnp.uint4

    def split(self, blocks: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The codes and the scales."""
        scale = jnp.max(jnp.abs(blocks), axis=1, keepdims=True)
        y = blocks / jnp.where(scale == 0, 1, scale)
        numbers = jnp.asarray(self.numbers, jnp.float32)
        middles = (numbers[:-1] + numbers[1:]) / 2
        code = jnp.zeros(y.shape, jnp.int32)
        step = len(self.numbers) // 2
        while step:  # Counts the middles below y.
            code = jnp.where(y > middles[code + step - 1], code + step, code)
            step //= 2
        last = len(middles) - 1
        half = (code % 2 == 1) & (y == middles[jnp.minimum(code, last)])
        code = jnp.where(half, jnp.minimum(code, last) + 1, code)
        if self.keep_sign:
            flipped = jnp.signbit(y) & ~jnp.signbit(numbers[code])
            code = jnp.where(flipped, code - 1, code)
        return code.astype(self.dtype), scale

    def join(self, codes: jax.Array, scale: jax.Array) -> jax.Array:
        """The numbers."""
        return jnp.asarray(self.numbers, jnp.float32)[codes.astype(jnp.int32)] * scale


@dataclasses.dataclass(frozen=True)
class Flash(FlatBlocks):
    """FlashOptim's (databricks/flashoptim, arXiv 2602.23349): 8 bits, scales in float16.

    Averages: 127·2y / (1 + |y|) rounded half up. Averages of squares: their roots, times 255.
    """

    signed: bool

    def split(self, blocks: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The codes and the scales; divides by the scale before the scale is rounded."""
        x = blocks if self.signed else jnp.sqrt(blocks)
        scale = jnp.maximum(jnp.max(jnp.abs(x), axis=1, keepdims=True), np.float32(1e-12))
        y = x / scale
        y = 2 * y / (1 + jnp.abs(y)) * 127 if self.signed else y * 255
        codes = jnp.floor(y + 0.5).astype(jnp.int8 if self.signed else jnp.uint8)
        return codes, scale.astype(jnp.float16)

    def join(self, codes: jax.Array, scale: jax.Array) -> jax.Array:
        """The numbers."""
        y = codes.astype(jnp.float32) / (127 if self.signed else 255)
        x = (y / (2 - jnp.abs(y)) if self.signed else y) * scale.astype(jnp.float32)
        return x if self.signed else x * x


def _table(block: int, numbers: np.ndarray, keep_sign: bool = False) -> Table:
    return Table(block, tuple(numbers.tolist()), keep_sign)


@functools.cache
def peers() -> dict[str, tuple[Format, Format]]:
    """By name: the formats of mu and nu."""
    return {
        BITSANDBYTES: (
            _table(256, dynamic_map(True), keep_sign=True),
            _table(256, dynamic_map(False)),
        ),
        FLASH: (Flash(32, True), Flash(32, False)),
        # nu has no zero, and equal steps (thu-ml/low-bit-optimizers' "power-1").
        TORCHAO: (
            _table(128, dynamic_map(True, 3, 4)),
            _table(128, np.linspace(0, 1, 17, dtype=np.float32)[1:]),
        ),
    }
