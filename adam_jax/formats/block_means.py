"""A second moment stored as one mean per block of a leaf."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from adam_jax._types import DType, Leaf, PyTree
from adam_jax.formats.base import Format, ReducedFormat, Refusal, SlotPolicy
from adam_jax.formats.blockwise import filled, sharding_of
from adam_jax.formats.dense import AT_LEAST_FLOAT32, Dense
from adam_jax.slots import Slot
from adam_jax.xla.means import mean


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Means:
    """The stored form of `MeansOverAxes`.

    The key of the means names their axes, `means_over_-2`, like the key of the codes in `Blocks`.
    So a checkpoint with means over other axes is not restored into them.

    Attributes:
      means: one number per block: the leaf's shape, with 1 along each axis of a block.
      format: names the axes.
    """

    means: jax.Array
    format: "MeansOverAxes"

    def tree_flatten_with_keys(self) -> tuple[tuple[PyTree], "MeansOverAxes"]:
        """As a pytree, it is its array, keyed by the name of the form."""
        axes = "_".join(map(str, self.format.axes))
        return ((jax.tree_util.GetAttrKey(f"means_over_{axes}"), self.means),), self.format

    @classmethod
    def tree_unflatten(cls, fmt: "MeansOverAxes", arrays: tuple[PyTree]) -> "Means":
        """The opposite of `tree_flatten_with_keys`."""
        return cls(*arrays, fmt)


SIGNS_CANCEL = Refusal(
    "one mean per block, in which numbers of both signs cancel",
    instead="jnp.float32",
    besides=", and nu_dtype=adam_jax.BlockMeans(...)",
)


@dataclasses.dataclass(frozen=True)
class MeansOverAxes(ReducedFormat):
    """Every element of a block is represented by the mean of the block.

    Rules read the means, even in the step that updates them. With v ← b·v + (1-b)·g², all elements
    of a block are divided by b·v + (1-b)·mean(g²), and no elementwise average is ever formed.

    A NaN or infinite gradient makes its whole block NaN, so it stays visible. `skip_nonfinite`
    skips such a step.

    Attributes:
      axes: of a block, counted from the last, -1; in ascending order.
      sizes: of these axes.
      dtype: of the means, float32 or wider.
    """

    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: np.dtype

    @property
    def rounds(self) -> bool:
        return True

    def refuses(self, slot: Slot) -> Refusal | None:
        return None if slot.magnitude else SIGNS_CANCEL

    # Axes are counted from the last, because `vmap` and stacked layers add axes in front.

    def init(self, param: jax.Array, start: float) -> Means:
        sharding = sharding_of(param)
        if isinstance(sharding, NamedSharding):
            sharding = self._whole_blocks(sharding, param.ndim)
        shape = self._with_sizes(param.shape, (1,) * len(self.axes))
        return Means(filled(shape, start, self.dtype, param, sharding), self)

    def reduce(self, x: jax.Array) -> jax.Array:
        if all(x.shape[axis] == 1 for axis in self.axes):
            return x
        # The sum of many large squares may overflow: limit it to the largest square.
        return jnp.minimum(mean(x, self.axes), float(jnp.finfo(x.dtype).max) / 64)

    def reduced(self, stored: Means, dtype: DType) -> jax.Array:
        return jax.lax.convert_element_type(stored.means, dtype)

    def encode(self, x: jax.Array, noise: jax.Array | None = None) -> Means:
        del noise
        return Means(jax.lax.convert_element_type(self.reduce(x), self.dtype), self)

    def decode(self, stored: Means, dtype: DType) -> jax.Array:
        return jnp.broadcast_to(self.reduced(stored, dtype), self.shape(stored))

    def shape(self, stored: Means) -> tuple[int, ...]:
        shape = np.shape(stored.means)
        if len(shape) < -self.axes[0] or any(shape[axis] != 1 for axis in self.axes):
            raise ValueError(
                f"the state has means of shape {shape}, and those over the axes {self.axes} have 1"
                f" there: was it made with another partition into blocks?"
            )
        return self._with_sizes(shape, self.sizes)

    def shardings(self, stored: Means, sharding: NamedSharding) -> PyTree:
        ndim = len(self.shape(stored))
        return jax.tree.map(lambda _: self._whole_blocks(sharding, ndim), stored)

    def _with_sizes(self, shape: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
        """A shape with other sizes along the axes of a block."""
        changed = list(shape)
        for axis, size in zip(self.axes, sizes, strict=True):
            changed[axis] = size
        return tuple(changed)

    def _whole_blocks(self, sharding: NamedSharding, ndim: int) -> NamedSharding:
        """The sharding of the means of an array: the array's own, replicated along each block."""
        names = [*sharding.spec, *[None] * (ndim - len(sharding.spec))]
        for axis in self.axes:
            names[axis] = None
        kind = sharding.memory_kind
        return NamedSharding(sharding.mesh, PartitionSpec(*names), memory_kind=kind)


@dataclasses.dataclass(frozen=True)
class BlockMeans(SlotPolicy):
    """One second moment for each block of a leaf instead of each element: Adam-mini.

        v_B ← b2·v_B + (1-b2)·mean(|gᵢ|², i in B)       uᵢ = m̂ᵢ / (√v̂_B + ε)

    For `nu_dtype=`. A block contains all elements that differ only in their index along `axes`; the
    other axes index the blocks. The state is 4 bytes per block, so Adam takes 4 bytes per parameter
    with mu in float32, and about 1 with `mu_dtype=jnp.int8`.

    The update reads the stored mean. If nu is not an average of squares, the mean over the block is
    taken of the maximum (Adamax, `nu_max` in AMSGrad), of the differences (AdaBelief) or of the
    steps (Yogi).

    All elements of a block share one learning rate, so those with smaller gradients than the rest
    of the block move less than in Adam. `AdamMini` chooses blocks for a transformer.

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
        assert isinstance(dense, Dense)
        return MeansOverAxes(axes, sizes, dense.dtype) if math.prod(sizes) > 1 else dense
