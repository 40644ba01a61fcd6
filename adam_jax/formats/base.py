"""How one accumulator of one leaf is stored between steps, behind two verbs."""

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
"""What to do with a checkpoint of another form than the state that it is read into."""


class Refusal(NamedTuple):
    """Why a slot cannot be stored in some format.

    Attributes:
      why: of a format, the end of "must not be ...".
      instead: a dtype to write in its place.
      besides: another one, the end of the sentence; empty if there is none.
    """

    why: str
    instead: str
    besides: str = ""


class Format(abc.ABC):
    """A way to store one array: `decode(encode(x))` is `x`, to the format's precision.

    A format is a frozen dataclass of static, comparable fields: it shapes the program. It is never
    callable, since `optax.inject_hyperparams` takes every callable argument for a schedule.

    What is stored is an array, or a pytree of arrays whose attribute `format` is the format.

    Invariants, which the tests hold every format to:
      * what `encode` returns has the structure, shapes and dtypes of what `init` returned;
      * `shape(stored)` is the shape of the array that was encoded.
    """

    stochastic: bool = False
    """Whether `encode` rounds by noise; without noise it rounds to the nearest."""

    unit: int | None = None
    """Elements along the last axis that are stored together; None for the whole array."""

    @property
    @abc.abstractmethod
    def rounds(self) -> bool:
        """Whether what is stored is less than the array in the dtype of arithmetic."""

    @abc.abstractmethod
    def refuses(self, slot: Slot) -> Refusal | None:
        """Why this slot cannot be stored like this; None if it can.

        For a format without the range of magnitudes, or too coarse for the maximum over many steps.
        """

    @abc.abstractmethod
    def init(self, param: jax.Array, start: float) -> PyTree:
        """The stored form of an array like `param`, sharded like it, filled with `start`."""

    @abc.abstractmethod
    def encode(self, x: jax.Array, noise: jax.Array | None = None) -> PyTree:
        """The stored form of `x`.

        Args:
          x: the array.
          noise: 16 random bits each, the upper ones, if the format is `stochastic`.
        """

    @abc.abstractmethod
    def decode(self, stored: Stored, dtype: DType) -> jax.Array:
        """The array, in the dtype that arithmetic wants."""

    @abc.abstractmethod
    def shape(self, stored: Stored) -> tuple[int, ...]:
        """The shape of the array that `stored` stands for.

        Raises:
          ValueError: its arrays are not of this format; the caller knows the path.
        """

    @abc.abstractmethod
    def shardings(self, stored: Stored, sharding: NamedSharding) -> Stored:
        """How the arrays of `stored` are sharded where the array they stand for is to be so.

        Returns:
          A tree like `stored`, of shardings; see `sharded_alike`.
        """


class MeasuredFormat(Format):
    """A format that wants the largest magnitude in each block before it codes any of them."""

    @abc.abstractmethod
    def measured(self, x: jax.Array) -> InBlocks:
        """What `largest` is to measure: the slots of a leaf together."""

    @abc.abstractmethod
    def code(self, x: jax.Array, noise: jax.Array | None, measure: jax.Array) -> PyTree:
        """`encode`, of an array whose measure is known."""

    @abc.abstractmethod
    def of_tiles(self, along: int) -> "MeasuredFormat":
        """The same, of tiles with one block along this axis each time; measures keep the axis."""

    def encode(self, x: jax.Array, noise: jax.Array | None = None) -> PyTree:
        [measure] = largest([self.measured(x)])
        return self.code(x, noise, measure)


class LinearFormat(Format):
    """A format whose `encode` is linear: of an average it is the average of what is stored."""

    @abc.abstractmethod
    def averaged(self, stored: Stored, term: jax.Array, average: Function) -> Stored:
        """`encode(average(decode(stored), term))`, without forming that average."""


class ReducedFormat(Format):
    """A format that keeps a linear reduction of the array, which rules read in the array's place.

    It is part of the algorithm: the step that renews a slot reads it as it is stored, as the next
    step does. A reduction broadcasts to the array, and the reduction of one is itself.
    """

    @abc.abstractmethod
    def reduce(self, x: jax.Array) -> jax.Array:
        """The reduction of `x`, with the size 1 along reduced axes; `encode(x)` stores it."""

    @abc.abstractmethod
    def reduced(self, stored: Stored, dtype: DType) -> jax.Array:
        """The reduction that is stored, in the dtype that arithmetic wants."""


def sharded_alike(stored: Stored, shape: tuple[int, ...], sharding: NamedSharding) -> Stored:
    """`Format.shardings` of most formats: arrays of that shape so, others replicated."""
    replicated = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.tree.map(lambda x: sharding if np.shape(x) == shape else replicated, stored)


class SlotPolicy(abc.ABC):
    """Chooses the format of a slot, leaf by leaf. A frozen dataclass, and never callable."""

    @abc.abstractmethod
    def resolve(self, param: Leaf, slot: Slot, path: str) -> Format:
        """The format of one slot of one leaf.

        Args:
          param: the leaf's parameter.
          slot: what it holds.
          path: of the leaf, its keys joined by slashes.
        """
