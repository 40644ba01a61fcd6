"""Codes of 8 or 4 bits, with one float32 scale for each block along the last axis."""

import abc
import dataclasses
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from adam_jax.formats.base import Format
from adam_jax.formats.codecs import Codec

LANES = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocks:
    """What `Blockwise` stores, and `FlatBlockwise` of bitsandbytes.

    Attributes:
      codes: with the parameter's shape, and so its sharding.
      scale: float32, one number per block: the largest magnitude in it.
      format: which says how to read them.
    """

    codes: jax.Array
    scale: jax.Array
    format: Format = dataclasses.field(metadata={"static": True})


class BlockFormat(Format):
    """Codes with the parameter's shape, and a scale per block, wherever the blocks lie.

    Attributes:
      codec: from a share to its code.
    """

    codec: Codec

    @abc.abstractmethod
    def filled_scale(self, param: jax.Array, x: Any) -> jax.Array:
        """The scale of an array like `param` whose elements are all x ≥ 0."""

    def init(self, param: jax.Array, start: float) -> Blocks:
        code = self.codec.code(jnp.sign(jnp.asarray(start, jnp.float32)), None)
        codes = jnp.full_like(param, code, dtype=self.codec.dtype)
        return Blocks(codes, self.filled_scale(param, jnp.abs(start)), self)

    def encode(self, x: jax.Array, noise: jax.Array | None = None) -> Blocks:
        return self.code(x, noise, self.measure(x))

    @property
    def measured_first(self) -> bool:
        return True

    def shape(self, stored: Blocks) -> tuple[int, ...]:
        return np.shape(stored.codes)


@dataclasses.dataclass(frozen=True)
class Blockwise(BlockFormat):
    """Each block is divided by its largest magnitude, and a codec makes codes of the shares.

    Blocks lie on the last axis, so that none straddles the heads of attention or the devices that a
    leaf is sharded over; a flattened leaf's would cost an all-gather in every step.

    The scale is float32: as bfloat16 it would stand still, as that does (see `AT_LEAST_FLOAT32`).
    A block of zeros has the scale 0, and is decoded to zeros. A NaN or an infinity leaves no finite
    number in its block, which is seen; `skip_nonfinite` keeps it out.

    Attributes:
      codec: from a share to its code.
      block: elements that share a scale; divides the last axis.
      stochastic: round to either of the two codes beside a number, so that the mean is right.
    """

    codec: Codec
    block: int
    stochastic: bool = False

    def filled_scale(self, param: jax.Array, x: Any) -> jax.Array:
        shape = (*param.shape[:-1], param.shape[-1] // self.block)
        return jnp.full(shape, x, jnp.float32, device=sharding_of(param))

    def measure(self, x: jax.Array) -> jax.Array:
        """The largest magnitude in each block."""
        sizes = self._blocks(magnitudes(x))
        if self.block % LANES == 0:
            # XLA:CPU goes through a last axis one by one, and through others many at a time (a
            # third of the time of a whole step). XLA:GPU makes one reduction of the two.
            sizes = jnp.max(jnp.reshape(sizes, (*sizes.shape[:-1], -1, LANES)), axis=-2)
        return jnp.max(sizes, axis=-1)

    def code(self, x: jax.Array, noise: jax.Array | None, measure: jax.Array) -> Blocks:
        blocks = self._blocks(jax.lax.convert_element_type(x, jnp.float32))
        shares = blocks / jnp.where(measure == 0, 1, measure)[..., None]
        codes = self.codec.code(shares, None if noise is None else self._blocks(noise))
        return Blocks(jnp.reshape(codes, x.shape), measure, self)

    def decode(self, stored: Blocks, dtype: Any) -> jax.Array:
        shares = self.codec.value(self._blocks(stored.codes))
        x = jnp.reshape(shares * stored.scale[..., None], stored.codes.shape)
        return jax.lax.convert_element_type(x, dtype)

    def _blocks(self, x: jax.Array) -> jax.Array:
        return jnp.reshape(x, (*x.shape[:-1], x.shape[-1] // self.block, self.block))


def magnitudes(x: jax.Array) -> jax.Array:
    """|x| in float32, infinite for NaN, which XLA:CPU's maximum may leave out."""
    x = jax.lax.convert_element_type(x, jnp.float32)
    return jnp.where(jnp.isnan(x), np.float32(np.inf), jnp.abs(x))


def check_real(param: Any, magnitude: bool) -> None:
    """Checks that a slot of this parameter has codes: it is real, or its magnitudes are wanted.

    Raises:
      ValueError: it has none.
    """
    dtype = getattr(param, "dtype", np.dtype(np.float32))
    if jnp.issubdtype(dtype, jnp.complexfloating) and not magnitude:
        raise ValueError(
            f"the parameter is {jnp.dtype(dtype).name}, and codes have no imaginary part: leave"
            f" mu_dtype out for it, by path with by_path."
        )


def sharding_of(param: Any) -> Any:
    """What lies on the same devices as a parameter is to be made with; None where JAX finds it."""
    if isinstance(param, jax.core.Tracer):
        sharding = jax.typeof(param).sharding
        return sharding if sharding.mesh.are_all_axes_explicit else None
    # One that may still go anywhere does not bind what belongs to it.
    return param.sharding if getattr(param, "committed", False) else None
