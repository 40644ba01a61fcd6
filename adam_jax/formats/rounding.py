"""bfloat16 moments and weights that do not lose small changes.

bfloat16 numbers are 0.4 to 0.8 % apart. An average that moves by 0.1 % per step, or a weight with
an update under half of the distance, stops changing if it is rounded to nearest. Moments are
rounded up or down at random, so that the mean is the number itself. Weights are too, or are split
into weights for the model and a rest that the optimizer keeps, and joined before each step.
"""

import abc
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from adam_jax._types import DType, Leaf, PyTree
from adam_jax.formats.base import Format, Refusal, exported_form
from adam_jax.formats.dense import in_range
from adam_jax.formats.noise import LEAVES, Positions, bits_of_weights
from adam_jax.slots import Slot
from adam_jax.xla.barrier import stored_on_tpus


@exported_form
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rounded:
    """The stored form of `Stochastic`: bfloat16 numbers in the parameter's shape."""

    values: jax.Array
    format: Format = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Stochastic(Format):
    """Each element rounded up or down to bfloat16."""

    stochastic = True
    unit = 1

    def refuses(self, slot: Slot) -> Refusal | None:
        return None

    def init(self, param: jax.Array, start: float) -> Rounded:
        return Rounded(jnp.full_like(param, start, dtype=jnp.bfloat16), self)

    def encode(self, x: jax.Array, noise: jax.Array | None = None) -> Rounded:
        if jnp.iscomplexobj(x):
            raise ValueError(
                "mu_dtype must be complex for a complex gradient, got stochastic bfloat16, which"
                " would drop its imaginary part: leave it out."
            )
        x = jax.lax.convert_element_type(in_range(x, jnp.bfloat16), jnp.float32)
        if noise is None:
            return Rounded(jax.lax.convert_element_type(x, jnp.bfloat16), self)
        return Rounded(rounded_stochastically(x, noise), self)

    def decode(self, stored: Rounded, dtype: DType) -> jax.Array:
        return jax.lax.convert_element_type(stored.values, dtype)

    def shape(self, stored: Rounded) -> tuple[int, ...]:
        return np.shape(stored.values)

    def shardings(self, stored: Rounded, sharding: NamedSharding) -> PyTree:
        return jax.tree.map(lambda _: sharding, stored)


def rounded_stochastically(x: jax.Array, noise: jax.Array) -> jax.Array:
    """float32 to one of the two neighbouring bfloat16 numbers, chosen by 16 random bits each.

    Numbers that bfloat16 can represent are unchanged, and NaN stays NaN.
    """
    # In integers: XLA:GPU deletes roundings to and fro, and the upper half of the bits is the
    # number. The lower half is dropped in float32: for 16-bit numbers that are made otherwise, or
    # selected from, XLA:TPU adds a pass, 28 bytes per parameter instead of 20.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    upper = (bits + (noise >> np.uint32(16))) & np.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(upper, jnp.float32)
    # The NaN of an NVIDIA GPU has all bits set, so adding to it would wrap.
    rounded = jnp.where(jnp.isnan(x), np.float32(np.nan), rounded)
    return jax.lax.convert_element_type(rounded, jnp.bfloat16)


def rounded_to_nearest(x: jax.Array) -> jax.Array:
    """Rounds to the nearest bfloat16, as float32.

    Not `x.astype(bfloat16).astype(float32)`, which XLA:GPU simplifies to x.
    """
    # In integers: kernels have no reduce_precision.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    nearest = (bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)
    nearest = jax.lax.bitcast_convert_type(nearest, jnp.float32)
    return jnp.where(jnp.isnan(x), x, nearest)


class WeightFormat(abc.ABC):
    """How bfloat16 weights and a rest, which the optimizer keeps, represent float32 weights.

    Invariant: `split(join(p, rest))` is `(p, rest)`, so a step that moves nothing changes nothing.

    Attributes:
      rest_dtype: the dtype of the rest; None if this form keeps none.
      stochastic: whether `split` rounds stochastically.
    """

    rest_dtype: DType | None = None
    stochastic: bool = False

    def applies(self, p: Leaf) -> bool:
        """Whether it applies to this weight."""
        return getattr(p, "dtype", None) == jnp.bfloat16

    def widened(self, p: Leaf) -> Leaf:
        """The weight as float32, if the form applies to it; else unchanged."""
        return jax.lax.convert_element_type(p, jnp.float32) if self.applies(p) else p

    def check(self, path: str, p: Leaf, rest: Leaf) -> None:
        """Checks that a state has the rest of this weight in this form (None for no rest)."""

        def described(dtype: DType | None, shape: tuple[int, ...]) -> str:
            return "nothing" if dtype is None else f"{jnp.dtype(dtype).name} of shape {shape}"

        expected = described(self.rest_dtype if self.applies(p) else None, np.shape(p))
        found = described(getattr(rest, "dtype", None), np.shape(rest))
        if found != expected:
            raise ValueError(
                f"at {path!r}, the state keeps {found} with the weight, this transformation keeps"
                f" {expected}: use the one that made the state, on weights of that shape and dtype,"
                f" or call init again."
            )

    @abc.abstractmethod
    def join(self, p: jax.Array, rest: Leaf) -> jax.Array:
        """The float32 weights."""

    @abc.abstractmethod
    def split(self, x: jax.Array, noise: Leaf) -> tuple[jax.Array, Leaf]:
        """The bfloat16 weights and the rest; `noise` as in `bits_of_weights`, if stochastic."""


@dataclasses.dataclass(frozen=True)
class RoundedStochastically(WeightFormat):
    """No rest: rounded up or down stochastically, unbiased."""

    stochastic = True

    def join(self, p: jax.Array, rest: Leaf) -> jax.Array:
        return jax.lax.convert_element_type(p, jnp.float32)

    def split(self, x: jax.Array, noise: Leaf) -> tuple[jax.Array, Leaf]:
        return rounded_stochastically(x, noise), None


@dataclasses.dataclass(frozen=True)
class Residual(WeightFormat):
    """The rest is the lower bits: a bfloat16 and 16 more bits are exactly the float32 weight.

    With 8 bits the weights are 24-bit floating-point numbers, rounded stochastically and unbiased.

    The weight is the nearest bfloat16; halves round away from zero. The lower half of the 32 bits
    is thus added to the upper half with a sign.
    """

    bits: int  # 16 or 8.

    @property
    def stochastic(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.bits < 16

    @property
    def rest_dtype(self) -> DType:  # pyright: ignore[reportIncompatibleVariableOverride]
        return jnp.int16 if self.bits == 16 else jnp.int8

    def join(self, p: jax.Array, rest: Leaf) -> jax.Array:
        p = jax.lax.convert_element_type(p, jnp.float32)
        upper = jax.lax.bitcast_convert_type(p, jnp.int32)
        lower = jax.lax.convert_element_type(rest, jnp.int32) << np.int32(16 - self.bits)
        joined = jax.lax.bitcast_convert_type(upper + lower, jnp.float32)
        # A weight set to zero or infinity from outside has no rest: 0 minus one bit would be NaN.
        return jnp.where(self._has_rest(joined), joined, p)

    def split(self, x: jax.Array, noise: Leaf) -> tuple[jax.Array, Leaf]:
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
        p = jax.lax.convert_element_type(p, jnp.bfloat16)
        return p, jax.lax.convert_element_type(rest, self.rest_dtype)

    def _has_rest(self, x: jax.Array) -> jax.Array:
        """Whether a float32 is not NaN, and not so large that its bfloat16 may be infinite."""
        largest = np.int32(0x7F7F8000 - 2 ** (16 - self.bits)).view(np.float32)
        return jnp.abs(x) <= largest


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Split:
    """Float32 weights in stored form, for consumers that join them in the loop that reads them.

    The leaf has `layers` axes of layers; its salt skips `stride` leaves from one to the next.
    """

    stored: jax.Array
    rest: jax.Array | None
    salt: jax.Array  # uint32, of this leaf and this step.
    form: WeightFormat = dataclasses.field(metadata={"static": True})
    layers: int = dataclasses.field(default=0, metadata={"static": True})
    stride: int = dataclasses.field(default=0, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return jnp.shape(self.stored)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def of_layer(self, number: jax.Array) -> "Split":
        """The same with the salt of the leaf that comes `number` (uint32) leaves later."""
        return dataclasses.replace(self, salt=self.salt + number * LEAVES)

    def joined(self) -> jax.Array:
        """The weights."""
        return self.form.join(self.stored, self.rest)

    def renewed(self, x: jax.Array, tile: Positions | None = None) -> "Split":
        """New float32 weights, stored in this form; `tile` as in `leaf_step`."""
        noise = bits_of_weights(tile or x, self.salt) if self.form.stochastic else None
        stored, rest = self.form.split(x, noise)
        if rest is not None and tile is None:
            # Otherwise, with 8-bit rests, XLA:TPU would compute weights and rests in two passes
            # from the moments.
            stored, _ = self.form.split(stored_on_tpus(x), noise)
        return dataclasses.replace(self, stored=stored, rest=rest)

    def stepped_to(self, new: "Split", apply: bool) -> "SteppedWeights":
        """The step to new weights: returns these, or the update."""
        if apply:
            return SteppedWeights(new.stored, new.rest)
        # The update with which `optax.apply_updates` gives exactly the new weights.
        q, p = (jax.lax.convert_element_type(x.stored, jnp.float32) for x in (new, self))
        return SteppedWeights(q - p, new.rest)


class SteppedWeights(NamedTuple):
    """The new stored weights or the float32 update, and the rest of the new weights."""

    result: jax.Array
    rest: jax.Array | None
