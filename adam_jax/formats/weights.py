"""How weights are stored in 16 bits so that small updates are not lost: with a rest, or by chance.

bfloat16 numbers are 0.4 to 0.8 % apart: an update under half of that, rounded to the nearest, moves
nothing. Each form here takes float32 weights apart into what the model computes with and a rest
that the optimizer keeps, and joins them again before the next step.
"""

import abc
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax._types import DType, Leaf
from adam_jax.formats.noise import LEAVES, Positions, random_bits
from adam_jax.formats.rounding import rounded_stochastically, rounded_to_nearest
from adam_jax.xla.barrier import stored_on_tpus


class WeightFormat(abc.ABC):
    """A frozen dataclass of static fields, and never callable, as a `Format`.

    Invariant: `split(join(p, rest))` is `(p, rest)`, so that a step that moves nothing changes
    nothing (the sign of a float16 zero apart). Derivatives through the bits of `Residual`, and
    through rounding by chance, are 0.

    Attributes:
      dtypes: the dtypes of the weights that it is for, by name; others are left alone.
      stochastic: whether `split` rounds by noise.
    """

    dtypes: tuple[str, ...] = ("bfloat16",)
    stochastic: bool = False

    def applies(self, p: Leaf) -> bool:
        """Whether it is for this weight."""
        return getattr(getattr(p, "dtype", None), "name", None) in self.dtypes

    def widened(self, p: Leaf) -> Leaf:
        """The weight as float32, if it is for it; else as it is."""
        return jax.lax.convert_element_type(p, jnp.float32) if self.applies(p) else p

    @abc.abstractmethod
    def rest_dtype(self, p: Leaf) -> Leaf:
        """The dtype of the rest of these weights; None if this form keeps none."""

    def check(self, p: Leaf, rest: Leaf) -> None:
        """Checks that a state has the rest of this weight in this form; None if it has none.

        Raises:
          ValueError: it has another; the caller knows the path.
        """
        expected = self.rest_dtype(p) if self.applies(p) else None
        expected = None if expected is None else (jnp.dtype(expected).name, jnp.shape(p))
        found = None if rest is None else (jnp.dtype(rest.dtype).name, jnp.shape(rest))
        if found != expected:
            raise ValueError(
                f"the state keeps {_described(found)} beside the weight, this transformation"
                f" {_described(expected)}: go on with the one that made the state, on weights of"
                f" that shape and dtype, or call init again."
            )

    @abc.abstractmethod
    def join(self, p: jax.Array, rest: Leaf) -> jax.Array:
        """The float32 weights."""

    @abc.abstractmethod
    def split(self, x: jax.Array, dtype: DType, noise: Leaf) -> tuple[jax.Array, Leaf]:
        """The opposite: the stored weights, and the rest.

        Args:
          x: float32.
          dtype: of the stored weights.
          noise: 32 random bits each, if the form is `stochastic`.
        """


@dataclasses.dataclass(frozen=True)
class RoundedStochastically(WeightFormat):
    """No rest: up or down by chance, so that the mean is right."""

    dtypes = ("bfloat16", "float16")
    stochastic = True

    def rest_dtype(self, p: Leaf) -> None:
        return None

    def join(self, p: jax.Array, rest: Leaf) -> jax.Array:
        return jax.lax.convert_element_type(p, jnp.float32)

    def split(self, x: jax.Array, dtype: DType, noise: Leaf) -> tuple[jax.Array, Leaf]:
        return rounded_stochastically(x, jnp.dtype(dtype), noise), None


@dataclasses.dataclass(frozen=True)
class Compensated(WeightFormat):
    """The rest is what rounding lost, in the dtype of the weights (Kahan 1965)."""

    dtypes = ("bfloat16", "float16")

    def rest_dtype(self, p: Leaf) -> Leaf:
        return p.dtype

    def join(self, p: jax.Array, rest: Leaf) -> jax.Array:
        p, rest = (jax.lax.convert_element_type(x, jnp.float32) for x in (p, rest))
        return p + rest

    def split(self, x: jax.Array, dtype: DType, noise: Leaf) -> tuple[jax.Array, Leaf]:
        rounded = rounded_to_nearest(x, jnp.dtype(dtype))
        # Past the largest number, or infinite already, there is nothing to compensate.
        rest = jnp.where(jnp.isfinite(rounded), x - rounded, 0)
        return jax.lax.convert_element_type(rounded, dtype), jax.lax.convert_element_type(
            rest, dtype
        )


@dataclasses.dataclass(frozen=True)
class Residual(WeightFormat):
    """The rest is the lower bits: bfloat16 and 16 of them are exactly the float32 weights.

    With 8 of them the weights are floating-point numbers of 24 bits, one of the two beside the
    float32 number by chance, so that the mean is right.

    The weight is the nearest bfloat16, halves rounded away from zero. In integers: of the 32 bits
    the upper half is the bfloat16 below, and the lower half, with a sign, is added to it.

    Attributes:
      bits: 16 or 8.
    """

    bits: int

    @property
    def stochastic(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """8 bits are rounded."""
        return self.bits < 16

    def rest_dtype(self, p: Leaf) -> Leaf:
        return jnp.int16 if self.bits == 16 else jnp.int8

    def join(self, p: jax.Array, rest: Leaf) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(p, jnp.uint16)
        upper = jax.lax.convert_element_type(bits, jnp.uint32) << np.uint32(16)
        lower = jax.lax.convert_element_type(rest, jnp.int32) << np.int32(16 - self.bits)
        lower = jax.lax.bitcast_convert_type(lower, jnp.uint32)
        joined = jax.lax.bitcast_convert_type(upper + lower, jnp.float32)
        # A weight that was set to zero from outside, or to infinity, has no rest: 0 less a bit
        # would be NaN.
        alone = (bits << np.uint16(1) == 0) & (rest < 0) | (_size(bits) >= INFINITE)
        return jnp.where(alone, jax.lax.convert_element_type(p, jnp.float32), joined)

    def split(self, x: jax.Array, dtype: DType, noise: Leaf) -> tuple[jax.Array, Leaf]:
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
        dropped = 16 - self.bits
        if dropped:
            # By chance: to the nearest, an update under 2⁻¹⁷ of its weight would move nothing.
            bits = (bits + (noise >> np.uint32(32 - dropped))) >> np.uint32(dropped)
        half = np.uint32(1 << self.bits - 1)
        upper = (bits + half) >> np.uint32(self.bits)
        lower = bits - (upper << np.uint32(self.bits))
        lower = jax.lax.bitcast_convert_type(lower, jnp.int32)
        p = jax.lax.bitcast_convert_type(upper << np.uint32(16), jnp.float32)
        # Past the largest number, infinite or NaN: the rest would make another number of it.
        finite = jnp.isfinite(p) & jnp.isfinite(x)
        # Chosen before they are narrowed: of a choice of 16 bits XLA:TPU makes a pass of its own.
        p, rest = jnp.where(finite, p, x), jnp.where(finite, lower, 0)
        return (
            jax.lax.convert_element_type(p, jnp.bfloat16),
            jax.lax.convert_element_type(rest, self.rest_dtype(x)),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Split:
    """Float32 weights as they are stored, for who joins them in the loop that reads them.

    Attributes:
      stored: what the model computes with.
      rest: what belongs to it; None if the form keeps nothing.
      salt: uint32, of this leaf and this step.
      form: which joins them.
      layers: how many axes of layers the leaf has.
      stride: how many leaves later the next layer comes, for its salt.
    """

    stored: jax.Array
    rest: jax.Array | None
    salt: jax.Array
    form: WeightFormat = dataclasses.field(metadata={"static": True})
    layers: int = dataclasses.field(default=0, metadata={"static": True})
    stride: int = dataclasses.field(default=0, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weights."""
        return jnp.shape(self.stored)

    @property
    def dtype(self) -> np.dtype:
        """Of the weights, joined."""
        return np.dtype(np.float32)

    def further(self, number: jax.Array) -> "Split":
        """With the salt of the leaf which comes so many leaves later; uint32."""
        return dataclasses.replace(self, salt=self.salt + number * LEAVES)

    def joined(self) -> jax.Array:
        """The weights."""
        return self.form.join(self.stored, self.rest)

    def renewed(self, x: jax.Array, where: tuple[int, ...] | Positions) -> "Split":
        """Other weights, stored in this form.

        Args:
          x: the weights, float32.
          where: the shape of the leaf, or the positions of its elements.
        """
        noise = random_bits(where, self.salt) if self.form.stochastic else None
        stored, rest = self.form.split(x, self.stored.dtype, noise)
        if rest is not None and not isinstance(where, Positions):
            # Else, of weights and rests of 8 bits, XLA:TPU would compute both passes from moments.
            stored, _ = self.form.split(stored_on_tpus(x), self.stored.dtype, noise)
        return dataclasses.replace(self, stored=stored, rest=rest)

    def landed(self, new: "Split", apply: bool) -> "Landed":
        """The step to other weights: these are returned, or the update."""
        return Landed(new.stored if apply else difference(new.stored, self.stored), new.rest)


class Landed(NamedTuple):
    """What a step makes of a `Split`.

    Attributes:
      result: the new weights as they are stored, or the update, float32.
      rest: what belongs to the new weights.
    """

    result: jax.Array
    rest: jax.Array | None


def difference(q: jax.Array, p: jax.Array) -> jax.Array:
    """q - p in float32: the update with which `optax.apply_updates` lands on q."""
    q, p = (jax.lax.convert_element_type(x, jnp.float32) for x in (q, p))
    return q - p


def _described(kept: tuple[str, tuple[int, ...]] | None) -> str:
    return "nothing" if kept is None else f"{kept[0]} of shape {kept[1]}"


INFINITE = np.uint16(0x7F80)


def _size(bits: jax.Array) -> jax.Array:
    """Of a bfloat16, as its bits without the sign."""
    return bits & np.uint16(0x7FFF)
