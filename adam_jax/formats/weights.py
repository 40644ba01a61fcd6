"""16-bit weights that do not lose small updates: stored with a rest, or rounded stochastically.

bfloat16 numbers are 0.4 to 0.8 % apart. An update under half of that, rounded to nearest, changes
nothing. Each form here splits float32 weights into weights for the model and a rest that the
optimizer keeps, and joins them again before the next step.
"""

import abc
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax._types import DType, Leaf
from adam_jax.formats.noise import LEAVES, Positions, bits_of_weights
from adam_jax.formats.rounding import rounded_stochastically, rounded_to_nearest
from adam_jax.xla.barrier import stored_on_tpus


class WeightFormat(abc.ABC):
    """A frozen dataclass of static fields, never callable, like a `Format`.

    Invariant: `split(join(p, rest))` is `(p, rest)`, so a step that moves nothing changes nothing
    (except the sign of a float16 zero). Derivatives through the bits of `Residual`, and through
    stochastic rounding, are 0.

    Attributes:
      dtypes: the names of the weight dtypes that it applies to; others are unchanged.
      stochastic: whether `split` rounds stochastically.
    """

    dtypes: tuple[str, ...] = ("bfloat16",)
    stochastic: bool = False

    def applies(self, p: Leaf) -> bool:
        """Whether it applies to this weight."""
        return getattr(getattr(p, "dtype", None), "name", None) in self.dtypes

    def widened(self, p: Leaf) -> Leaf:
        """The weight as float32, if the form applies to it; else unchanged."""
        return jax.lax.convert_element_type(p, jnp.float32) if self.applies(p) else p

    @abc.abstractmethod
    def rest_dtype(self, p: Leaf) -> Leaf:
        """The dtype of the rest of these weights; None if this form keeps none."""

    def check(self, p: Leaf, rest: Leaf) -> None:
        """Checks that a state has the rest of this weight in this form (None for no rest).

        The caller adds the path to the error.
        """
        expected = self.rest_dtype(p) if self.applies(p) else None
        expected = None if expected is None else (jnp.dtype(expected).name, jnp.shape(p))
        found = None if rest is None else (jnp.dtype(rest.dtype).name, jnp.shape(rest))
        if found != expected:
            raise ValueError(
                f"the state keeps {_described(found)} with the weight, this transformation keeps"
                f" {_described(expected)}: use the one that made the state, on weights of that"
                f" shape and dtype, or call init again."
            )

    @abc.abstractmethod
    def join(self, p: jax.Array, rest: Leaf) -> jax.Array:
        """The float32 weights."""

    @abc.abstractmethod
    def split(self, x: jax.Array, dtype: DType, noise: Leaf) -> tuple[jax.Array, Leaf]:
        """The inverse of `join`: `dtype` weights and the rest; `noise` as in `Format.encode`."""


@dataclasses.dataclass(frozen=True)
class RoundedStochastically(WeightFormat):
    """No rest: rounded up or down stochastically, unbiased."""

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
    """The rest is the rounding error, in the dtype of the weights (Kahan 1965)."""

    dtypes = ("bfloat16", "float16")

    def rest_dtype(self, p: Leaf) -> Leaf:
        return p.dtype

    def join(self, p: jax.Array, rest: Leaf) -> jax.Array:
        p, rest = (jax.lax.convert_element_type(x, jnp.float32) for x in (p, rest))
        return p + rest

    def split(self, x: jax.Array, dtype: DType, noise: Leaf) -> tuple[jax.Array, Leaf]:
        rounded = rounded_to_nearest(x, jnp.dtype(dtype))
        # On overflow, or for an infinite weight, there is nothing to compensate.
        rest = jnp.where(jnp.isfinite(rounded), x - rounded, 0)
        return jax.lax.convert_element_type(rounded, dtype), jax.lax.convert_element_type(
            rest, dtype
        )


@dataclasses.dataclass(frozen=True)
class Residual(WeightFormat):
    """The rest is the lower bits: a bfloat16 and 16 more bits are exactly the float32 weight.

    With 8 bits the weights are 24-bit floating-point numbers, rounded stochastically and unbiased.

    The weight is the nearest bfloat16; halves round away from zero. This is computed in integers:
    the upper half of the 32 bits is the bfloat16 below, and the lower half, with a sign, is added.

    Attributes:
      bits: 16 or 8.
    """

    bits: int

    @property
    def stochastic(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """With 8 bits, weights are rounded stochastically."""
        return self.bits < 16

    def rest_dtype(self, p: Leaf) -> Leaf:
        return jnp.int16 if self.bits == 16 else jnp.int8

    def join(self, p: jax.Array, rest: Leaf) -> jax.Array:
        p = jax.lax.convert_element_type(p, jnp.float32)
        upper = jax.lax.bitcast_convert_type(p, jnp.int32)
        lower = jax.lax.convert_element_type(rest, jnp.int32) << np.int32(16 - self.bits)
        joined = jax.lax.bitcast_convert_type(upper + lower, jnp.float32)
        # A weight that was set to zero or infinity from outside has no rest: 0 minus one bit would
        # be NaN.
        return jnp.where(self._has_rest(joined), joined, p)

    def split(self, x: jax.Array, dtype: DType, noise: Leaf) -> tuple[jax.Array, Leaf]:
        bits = jax.lax.bitcast_convert_type(x, jnp.int32)
        dropped = 16 - self.bits
        if dropped:
            # Stochastic: to nearest, an update under 2⁻¹⁷ of its weight would change nothing.
            noise = jax.lax.bitcast_convert_type(noise >> np.uint32(32 - dropped), jnp.int32)
            bits = bits + noise
        upper = (bits + np.int32(1 << 15)) & np.int32(-1 << 16)
        p = jax.lax.bitcast_convert_type(upper, jnp.float32)
        rest = bits >> np.int32(dropped)  # The upper bits are dropped below.
        # On overflow, infinity or NaN, the rest would turn the weight into another number.
        has_rest = self._has_rest(x)
        # Selected before narrowing: XLA:TPU adds a pass for a select of 16 bits.
        p, rest = jnp.where(has_rest, p, x), jnp.where(has_rest, rest, 0)
        return (
            jax.lax.convert_element_type(p, jnp.bfloat16),
            jax.lax.convert_element_type(rest, self.rest_dtype(x)),
        )

    def _has_rest(self, x: jax.Array) -> jax.Array:
        """Whether a float32 is not NaN, and not so large that its bfloat16 may be infinite."""
        largest = np.int32(0x7F7F8000 - 2 ** (16 - self.bits)).view(np.float32)
        return jnp.abs(x) <= largest


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Split:
    """Float32 weights in stored form, for consumers that join them in the loop that reads them.

    Attributes:
      stored: the weights of the model.
      rest: the rest of these weights; None if the form keeps none.
      salt: uint32, of this leaf and this step.
      form: joins them.
      layers: the leaf's number of layer axes.
      stride: the number of leaves from one layer to the next, for its salt.
    """

    stored: jax.Array
    rest: jax.Array | None
    salt: jax.Array
    form: WeightFormat = dataclasses.field(metadata={"static": True})
    layers: int = dataclasses.field(default=0, metadata={"static": True})
    stride: int = dataclasses.field(default=0, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weights."""
        return jnp.shape(self.stored)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the joined weights."""
        return np.dtype(np.float32)

    def further(self, number: jax.Array) -> "Split":
        """The same with the salt of the leaf that comes `number` (uint32) leaves later."""
        return dataclasses.replace(self, salt=self.salt + number * LEAVES)

    def joined(self) -> jax.Array:
        """The weights."""
        return self.form.join(self.stored, self.rest)

    def renewed(self, x: jax.Array, where: tuple[int, ...] | Positions) -> "Split":
        """New weights, from float32 ones; `where` is that of `random_bits`."""
        noise = bits_of_weights(where, self.salt) if self.form.stochastic else None
        stored, rest = self.form.split(x, self.stored.dtype, noise)
        if rest is not None and not isinstance(where, Positions):
            # Otherwise, with 8-bit rests, XLA:TPU would compute weights and rests in two passes
            # from the moments.
            stored, _ = self.form.split(stored_on_tpus(x), self.stored.dtype, noise)
        return dataclasses.replace(self, stored=stored, rest=rest)

    def landed(self, new: "Split", apply: bool) -> "Landed":
        """The step to new weights: returns these, or the update."""
        return Landed(new.stored if apply else difference(new.stored, self.stored), new.rest)


class Landed(NamedTuple):
    """The result of a step on a `Split`.

    Attributes:
      result: the new stored weights, or the float32 update.
      rest: the rest of the new weights.
    """

    result: jax.Array
    rest: jax.Array | None


def difference(q: jax.Array, p: jax.Array) -> jax.Array:
    """q - p in float32: the update with which `optax.apply_updates` gives exactly q."""
    q, p = (jax.lax.convert_element_type(x, jnp.float32) for x in (q, p))
    return q - p


def _described(kept: tuple[str, tuple[int, ...]] | None) -> str:
    return "nothing" if kept is None else f"{kept[0]} of shape {kept[1]}"
