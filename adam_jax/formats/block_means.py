"""A second moment stored as one mean per block of a leaf: Adam-mini."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from adam_jax._types import DType, Leaf, PyTree
from adam_jax.formats.base import Format, Refusal, SlotPolicy, exported_form, filled, whole_along
from adam_jax.formats.dense import AT_LEAST_FLOAT32
from adam_jax.slots import Slot
from adam_jax.xla.means import mean


@exported_form
@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Means:
    """The stored form of `MeansOverAxes`: the leaf's shape with 1 along each axis of a block.

    The key names the axes, `means_over_-2`: no checkpoint of other means is restored into them.
    """

    means: jax.Array
    format: "MeansOverAxes"

    def tree_flatten_with_keys(self) -> tuple[tuple[PyTree], "MeansOverAxes"]:
        axes = "_".join(map(str, self.format.axes))
        return ((jax.tree_util.GetAttrKey(f"means_over_{axes}"), self.means),), self.format

    @classmethod
    def tree_unflatten(cls, fmt: "MeansOverAxes", arrays: tuple[PyTree]) -> "Means":
        return cls(*arrays, fmt)


@dataclasses.dataclass(frozen=True)
class MeansOverAxes(Format):
    """Every element of a block is represented by the mean of the block.

    Rules read the means (`means_of`, `means`) instead of the array, also in the step that updates
    them: no elementwise average is ever formed. Means broadcast to the array, and are their own
    means. A NaN or infinite gradient makes its whole block NaN, so it stays visible.
    """

    axes: tuple[int, ...]  # Of a block, counted from the last, -1; in ascending order.
    sizes: tuple[int, ...]  # Of these axes.
    dtype: np.dtype  # Of the means, float32 or wider.
    keeps_means = True

    def refuses(self, slot: Slot) -> Refusal | None:
        if slot.magnitude:
            return None
        return Refusal(
            "one mean per block, in which numbers of both signs cancel: that is for"
            " nu_dtype=adam_jax.BlockMeans(...)",
            instead="jnp.float32",
        )

    def init(self, param: jax.Array, start: float) -> Means:
        def part_of(sharding: NamedSharding) -> NamedSharding:
            return whole_along(self.axes, sharding, param.ndim)

        shape = self._with_sizes(param.shape, (1,) * len(self.axes))
        return Means(filled(shape, start, self.dtype, param, part_of), self)

    def means_of(self, x: jax.Array) -> jax.Array:
        """The means of `x`, with size 1 along the axes of a block."""
        if all(x.shape[axis] == 1 for axis in self.axes):
            return x
        # The sum of many large squares may overflow: limit it to the largest square.
        return jnp.minimum(mean(x, self.axes), float(jnp.finfo(x.dtype).max) / 64)

    def means(self, stored: Means, dtype: DType) -> jax.Array:
        """The stored means."""
        return jax.lax.convert_element_type(stored.means, dtype)

    def encode(self, x: jax.Array, noise: jax.Array | None = None) -> Means:
        return Means(jax.lax.convert_element_type(self.means_of(x), self.dtype), self)

    def decode(self, stored: Means, dtype: DType) -> jax.Array:
        return jnp.broadcast_to(self.means(stored, dtype), self.shape(stored))

    def shape(self, stored: Means) -> tuple[int, ...]:
        shape = np.shape(stored.means)
        if len(shape) < -self.axes[0] or any(shape[axis] != 1 for axis in self.axes):
            raise ValueError(
                f"the state has means of shape {shape}, and those over the axes {self.axes} have 1"
                f" there: was it made with another partition into blocks?"
            )
        return self._with_sizes(shape, self.sizes)

    def shardings(self, stored: Means, sharding: NamedSharding) -> PyTree:
        own = whole_along(self.axes, sharding, stored.means.ndim)
        return jax.tree.map(lambda _: own, stored)

    def _with_sizes(self, shape: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
        """A shape with other sizes along the axes of a block."""
        sized = dict(zip(self.axes, sizes, strict=True))
        return tuple(sized.get(i - len(shape), n) for i, n in enumerate(shape))


@dataclasses.dataclass(frozen=True)
class BlockMeans(SlotPolicy):
    """One second moment for each block of a leaf instead of each element: Adam-mini.

        v_B ← b2·v_B + (1-b2)·mean(|gᵢ|², i in B)       uᵢ = m̂ᵢ / (√v̂_B + ε)

    For `nu_dtype=`. A block contains all elements that differ only in their index along `axes`. The
    state is 4 bytes per block, so Adam takes 4 bytes per parameter with mu in float32, and about 1
    with `mu_dtype=jnp.int8`.

    The update reads the stored mean. If nu is not an average of squares, the mean over the block is
    taken of the maximum (Adamax, `nu_max` in AMSGrad), of the differences (AdaBelief) or of the
    steps (Yogi). `AdamMini` chooses blocks for a transformer.

    Attributes:
      axes: the axis or axes of the leaf over which the mean is taken. 0 is the inputs of a Flax
        kernel [inputs, outputs]; negative numbers count from the last. None is all axes, one number
        per leaf. A leaf whose blocks have one element keeps the default storage.

    Raises:
      ValueError: `axes` are not integers; in `init`, a leaf has no such axis, or it is used as
        `mu_dtype`, where numbers of both signs would cancel.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> per_output = adam_jax.by_path({".*kernel": adam_jax.BlockMeans(0)})
      >>> tx = adam_jax.adamw(1e-3, nu_dtype=per_output)
      >>> nu = tx.init({"kernel": jnp.ones((256, 1024)), "bias": jnp.ones(1024)})[0].nu
      >>> print(nu["kernel"].means.shape, nu["bias"].shape)
      (1, 1024) (1024,)

    Reference: Zhang et al. 2024, Adam-mini, algorithm 1, https://arxiv.org/abs/2406.16793
    """

    axes: int | tuple[int, ...] | None

    def __post_init__(self) -> None:
        if self.axes is None:
            return
        axes = self.axes if isinstance(self.axes, tuple | list) else (self.axes,)
        if any(isinstance(x, bool) or not isinstance(x, int | np.integer) for x in axes):
            raise ValueError(
                f"axes must be an axis of the leaf, several, or None for all, got {self.axes!r}:"
                f" write 0 for one mean per output of a kernel [inputs, outputs]."
            )
        object.__setattr__(self, "axes", tuple(map(int, axes)))

    def resolve(self, param: Leaf, slot: Slot, path: str) -> Format:
        shape = np.shape(param)
        given = range(len(shape)) if self.axes is None else self.axes
        assert not isinstance(given, int)
        if outside := [x for x in given if not -len(shape) <= x < len(shape)]:
            raise ValueError(
                f"axes must be axes of the leaf, got {outside[0]} for the shape {shape}: choose the"
                f" leaves by path, nu_dtype=adam_jax.by_path({{...: {self!r}}})."
            )
        axes = tuple(sorted({x % len(shape) - len(shape) for x in given}))
        sizes = tuple(shape[axis] for axis in axes)
        dense = AT_LEAST_FLOAT32.resolve(param, slot, path)
        return MeansOverAxes(axes, sizes, dense.dtype) if math.prod(sizes) > 1 else dense
