"""Codes of 8 or 4 bits, with one float32 scale for each block along the last axis."""

import dataclasses

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from adam_jax._compat import cast_to_varying, varying_axes
from adam_jax._types import DType, Function, Leaf, PyTree
from adam_jax.formats.base import READ_AS_SAVED, MeasuredFormat, Refusal
from adam_jax.formats.codecs import Codec
from adam_jax.formats.dtypes import in_range
from adam_jax.slots import Slot
from adam_jax.xla.maxima import InBlocks, each_by_its_block
from adam_jax.xla.mosaic import divisor, quotient


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Blocks:
    """The stored form of `Blockwise`.

    The key of the codes names their form, `codes_int8_power2_block128`. Libraries that save a state
    by the paths of its arrays save nothing else of `format`, and would otherwise read codes of
    another form as numbers of this one.

    Attributes:
      codes: with the parameter's shape, and so its sharding.
      scale: float32, one number per block: the largest magnitude in it.
      format: how to read them.
    """

    codes: jax.Array
    scale: jax.Array
    format: "Blockwise"

    def tree_flatten(self) -> tuple[tuple[PyTree, PyTree], "Blockwise"]:
        """As a pytree, it is its two arrays."""
        return (self.codes, self.scale), self.format

    def tree_flatten_with_keys(self) -> tuple[tuple[PyTree, PyTree], "Blockwise"]:
        """With the names of the two arrays."""
        codes, scale = map(jax.tree_util.GetAttrKey, (f"codes_{self.format.form}", "scale"))
        return ((codes, self.codes), (scale, self.scale)), self.format

    @classmethod
    def tree_unflatten(cls, fmt: "Blockwise", arrays: tuple[PyTree, PyTree]) -> "Blocks":
        """The opposite of `tree_flatten`."""
        return cls(*arrays, fmt)


FOUR_BITS_ARE_COARSE = Refusal(
    "4 bits where a maximum over the steps is taken of it: the largest of many coarsely rounded"
    " values is too large, and updates are up to 27 % too small",
    instead="jnp.int8",
)


@dataclasses.dataclass(frozen=True)
class Blockwise(MeasuredFormat):
    """Each block is divided by its largest magnitude, and a codec encodes the quotients.

    Blocks run along the last axis, so none straddles attention heads or the devices that a leaf is
    sharded over. Blocks of a flattened leaf would cost an all-gather in every step.

    The scale is float32; in bfloat16 it would stop changing (see `AT_LEAST_FLOAT32`). A block of
    zeros has scale 0 and decodes to zeros. A NaN or infinity leaves no finite number in its block,
    so it stays visible.

    Attributes:
      codec: encodes the quotients.
      block: elements that share a scale; divides the last axis.
      stochastic: round to one of the two neighbouring codes, unbiased.
      along: for a tile, the axis that is one block; None for a whole array.
    """

    codec: Codec
    block: int
    stochastic: bool = False
    along: int | None = None

    @property
    def form(self) -> str:
        """A name for the meaning of codes and scales, which is saved with them.

        It does not include the rounding: stochastically rounded codes decode like all others.
        """
        return f"{self.codec.form}_block{self.block}"

    @property
    def unit(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.block

    @property
    def rounds(self) -> bool:
        return True

    def refuses(self, slot: Slot) -> Refusal | None:
        coarse = slot.maximum and jnp.iinfo(self.codec.dtype).bits < 8
        return FOUR_BITS_ARE_COARSE if coarse else None

    def init(self, param: jax.Array, start: float) -> Blocks:
        code = self.codec.code(jnp.sign(jnp.asarray(start, jnp.float32)), None)
        codes = jnp.full_like(param, code, dtype=self.codec.dtype)
        shape, sharding = self._scale_shape(param.shape), sharding_of(param)
        if isinstance(sharding, NamedSharding) and not divides(sharding, shape):
            sharding = _last_axis_whole(sharding, len(shape))
        return Blocks(codes, filled(shape, jnp.abs(start), jnp.float32, param, sharding), self)

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
        return InBlocks(as_float32(x), self.block, self.along)

    def code(self, x: jax.Array, noise: jax.Array | None, measure: jax.Array) -> Blocks:
        def coded(scale: jax.Array, x: jax.Array, noise: jax.Array | None = None) -> jax.Array:
            return self.codec.code(quotient(x, scale), noise)

        arrays = [as_float32(x)] if noise is None else [as_float32(x), noise]
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
        return dataclasses.replace(self, along=along)

    def shardings(self, stored: Blocks, sharding: NamedSharding) -> PyTree:
        # Shard the last axis only if every device gets whole blocks.
        shape = self.shape(stored)
        if sharding.shard_shape(shape)[-1] % self.block:
            sharding = _last_axis_whole(sharding, len(shape))
        return jax.tree.map(lambda _: sharding, stored)

    def _each(self, f: Function, scale: jax.Array, *arrays: jax.Array) -> jax.Array:
        """f of the scale of each element's block and the element."""
        if self.along is not None:
            return f(scale, *arrays)
        return each_by_its_block(f, self.block, scale, *arrays)


def as_float32(x: jax.Array) -> jax.Array:
    """x in float32, its finite elements clipped to its range."""
    return jax.lax.convert_element_type(in_range(x, jnp.float32), jnp.float32)


def filled(
    shape: tuple[int, ...], x: Leaf, dtype: DType, param: jax.Array, sharding: Leaf
) -> jax.Array:
    """An array for a parameter, filled with x; inside `shard_map`, each device's part of it."""
    scale = jnp.full(shape, x, dtype, device=sharding)
    axes = tuple(varying_axes(param))
    return cast_to_varying(scale, axes) if axes else scale


def check_real(param: Leaf, magnitude: bool) -> None:
    """Checks that a slot of this parameter can be encoded: the parameter or the slot is real."""
    dtype = getattr(param, "dtype", np.dtype(np.float32))
    if jnp.issubdtype(dtype, jnp.complexfloating) and not magnitude:
        raise ValueError(
            f"the parameter is {jnp.dtype(dtype).name}, and codes have no imaginary part: leave"
            f" mu_dtype out for it, by path with by_path."
        )


def divides(sharding: NamedSharding, shape: tuple[int, ...]) -> bool:
    """Whether every axis of an array can be split by this sharding."""
    size = (*shape[:-1], shape[-1])
    try:
        sharding.shard_shape(size)
    except ValueError:
        return False
    return True


def _last_axis_whole(sharding: NamedSharding, ndim: int) -> NamedSharding:
    spec = PartitionSpec(*sharding.spec[: ndim - 1])
    return NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)


def sharding_by_type(param: Leaf) -> NamedSharding | None:
    """The sharding in the type of a parameter; None if the type has none.

    The storage depends only on this, so it is the same under `jax.jit`, `jax.eval_shape` and
    outside: on automatic axes only concrete arrays know their placement.
    """
    if isinstance(param, jax.ShapeDtypeStruct):
        return param.sharding if isinstance(param.sharding, NamedSharding) else None
    if not isinstance(param, jax.Array):
        return None
    sharding = jax.typeof(param).sharding
    return sharding if sharding.mesh.are_all_axes_explicit else None


def sharding_of(param: Leaf) -> Leaf:
    """The sharding for arrays on the same devices as a parameter; None if JAX is to choose."""
    if isinstance(param, jax.core.Tracer | jax.ShapeDtypeStruct):
        return sharding_by_type(param)
    # An uncommitted parameter does not constrain its slots.
    return param.sharding if getattr(param, "committed", False) else None
