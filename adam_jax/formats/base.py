"""Storage of one accumulator of one leaf between steps, behind two verbs."""

import abc
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from adam_jax._types import DType, Function, Leaf, PyTree, Stored
from adam_jax.slots import Slot
from adam_jax.xla.maxima import InBlocks, largest

READ_AS_SAVED = (
    "read it into what init of the transformation that saved it makes, and convert that with"
    " adam_jax.convert_state."
)
"""What to do with a checkpoint whose form differs from that of the state."""


class Refusal(NamedTuple):
    """Why a slot cannot be stored in some format.

    Attributes:
      why: the end of the sentence "must not be ...", about a format.
      instead: the dtype to write instead.
      besides: an alternative, the end of the sentence; empty if there is none.
    """

    why: str
    instead: str
    besides: str = ""


class Format(abc.ABC):
    """A way to store one array: `decode(encode(x))` is `x`, to the format's precision.

    A format is a frozen dataclass of static, comparable fields, because it shapes the program. It
    is never callable: `optax.inject_hyperparams` takes every callable argument for a schedule.

    The stored form is an array, or a pytree of arrays whose attribute `format` is the format.

    Invariants, tested for every format:
      * `encode` returns the structure, shapes and dtypes that `init` returned;
      * `shape(stored)` is the shape of the array that was encoded.
    """

    stochastic: bool = False
    """Whether `encode` rounds stochastically; without noise it rounds to nearest."""

    unit: int | None = None
    """Elements along the last axis that are stored together; None for the whole array."""

    @property
    @abc.abstractmethod
    def rounds(self) -> bool:
        """Whether the stored form has less precision than the array in the dtype of arithmetic."""

    @abc.abstractmethod
    def refuses(self, slot: Slot) -> Refusal | None:
        """Why this slot cannot be stored in this format; None if it can.

        A format refuses if it lacks the range for magnitudes, or is too coarse for a maximum over
        many steps.
        """

    @abc.abstractmethod
    def init(self, param: jax.Array, start: float) -> PyTree:
        """The stored form of an array like `param`, sharded like it, filled with `start`."""

    @abc.abstractmethod
    def encode(self, x: jax.Array, noise: jax.Array | None = None) -> PyTree:
        """The stored form of `x`.

        Args:
          x: the array.
          noise: if the format is `stochastic`, 16 random bits per element, in the upper half.
        """

    @abc.abstractmethod
    def decode(self, stored: Stored, dtype: DType) -> jax.Array:
        """The array, in the dtype of arithmetic."""

    @abc.abstractmethod
    def shape(self, stored: Stored) -> tuple[int, ...]:
        """The shape of the array that `stored` represents.

        Raises:
          ValueError: its arrays are not of this format; the caller adds the path.
        """

    @abc.abstractmethod
    def shardings(self, stored: Stored, sharding: NamedSharding) -> Stored:
        """The shardings of the arrays in `stored`, given the sharding of the array it represents.

        Returns:
          A tree like `stored`, of shardings; see `sharded_alike`.
        """


class MeasuredFormat(Format):
    """A format that needs the largest magnitude of every block before it encodes any element."""

    @abc.abstractmethod
    def measured(self, x: jax.Array) -> InBlocks:
        """The input of `largest`, which measures all slots of a leaf together."""

    @abc.abstractmethod
    def code(self, x: jax.Array, noise: jax.Array | None, measure: jax.Array) -> PyTree:
        """`encode` with a known measure."""

    @abc.abstractmethod
    def of_tiles(self, along: int) -> "MeasuredFormat":
        """The same format for tiles whose axis `along` is one block; measures keep that axis."""

    def encode(self, x: jax.Array, noise: jax.Array | None = None) -> PyTree:
        [measure] = largest([self.measured(x)])
        return self.code(x, noise, measure)


class LinearFormat(Format):
    """A format with a linear `encode`: encoding an average equals averaging the stored forms."""

    @abc.abstractmethod
    def averaged(self, stored: Stored, term: jax.Array, average: Function) -> Stored:
        """`encode(average(decode(stored), term))`, without materializing that average."""


class ReducedFormat(Format):
    """A format that stores a linear reduction of the array, which rules read instead of the array.

    The reduction is part of the algorithm: the step that updates a slot already reads the stored
    form, as the next step does. A reduction broadcasts to the array, and reducing it again changes
    nothing.
    """

    @abc.abstractmethod
    def reduce(self, x: jax.Array) -> jax.Array:
        """The reduction of `x`, with size 1 along reduced axes; `encode(x)` stores it."""

    @abc.abstractmethod
    def reduced(self, stored: Stored, dtype: DType) -> jax.Array:
        """The stored reduction, in the dtype of arithmetic."""


def sharded_alike(stored: Stored, shape: tuple[int, ...], sharding: NamedSharding) -> Stored:
    """`Format.shardings` of most formats: shards arrays of that shape alike, replicates others."""
    replicated = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.tree.map(lambda x: sharding if np.shape(x) == shape else replicated, stored)


class SlotPolicy(abc.ABC):
    """Chooses the format of a slot, leaf by leaf. A frozen dataclass, never callable."""

    @abc.abstractmethod
    def resolve(self, param: Leaf, slot: Slot, path: str) -> Format:
        """The format of one slot of one leaf.

        Args:
          param: the leaf's parameter.
          slot: the accumulator.
          path: of the leaf, its keys joined by slashes.
        """
