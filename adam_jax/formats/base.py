"""How one accumulator of one leaf is stored between steps, behind two verbs."""

import abc
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

READ_AS_SAVED = (
    "read it into what init of the transformation that saved it makes, and convert that with"
    " adam_jax.convert_state."
)
"""What to do with a checkpoint of another form than the state that it is read into."""


class Format(abc.ABC):
    """A way to store one array: `decode(encode(x))` is `x`, to the format's precision.

    A format is a frozen dataclass of static, comparable fields: it shapes the program. It is never
    callable, since `optax.inject_hyperparams` takes every callable argument for a schedule.

    What is stored is an array, or a pytree of arrays whose attribute `format` is the format.

    Invariants, which the tests hold every format to:
      * what `encode` returns has the structure, shapes and dtypes of what `init` returned;
      * `shape(stored)` is the shape of the array that was encoded.
    """

    @property
    def rounds(self) -> bool:
        """Whether what is stored is less than the array in the dtype of arithmetic."""
        return True

    @property
    def for_magnitudes(self) -> bool:
        """Whether it has the range of squares of gradients, and of their sizes."""
        return True

    @property
    def for_maxima(self) -> bool:
        """Whether the maximum over many steps of what is decoded is about that of the array."""
        return True

    stochastic: bool = False
    """Whether `encode` rounds by noise; without noise it rounds to the nearest."""

    @property
    def measured_first(self) -> bool:
        """Whether it wants a measure of the whole array before it codes any of it: `measure`."""
        return False

    @abc.abstractmethod
    def init(self, param: jax.Array, start: float) -> Any:
        """The stored form of an array like `param`, sharded like it, filled with `start`."""

    @abc.abstractmethod
    def encode(self, x: jax.Array, noise: jax.Array | None = None) -> Any:
        """The stored form of `x`.

        Args:
          x: the array.
          noise: 16 random bits each, the upper ones, if the format is `stochastic`.
        """

    def measure(self, x: jax.Array) -> Any:
        """What `code` wants to know of the whole array; for formats that are `measured_first`."""
        raise NotImplementedError

    def code(self, x: jax.Array, noise: jax.Array | None, measure: Any) -> Any:
        """`encode`, of an array whose measure is known."""
        raise NotImplementedError

    linear: bool = False
    """Whether an average of arrays is stored as the average of what is stored for each."""

    def averaged(self, stored: Any, term: jax.Array, average: Callable[[Any, Any], Any]) -> Any:
        """`encode(average(decode(stored), term))`, without that array; for linear formats."""
        raise NotImplementedError

    @abc.abstractmethod
    def decode(self, stored: Any, dtype: Any) -> jax.Array:
        """The array, in the dtype that arithmetic wants."""

    @abc.abstractmethod
    def shape(self, stored: Any) -> tuple[int, ...]:
        """The shape of the array that `stored` stands for.

        Raises:
          ValueError: its arrays are not of this format; the caller knows the path.
        """

    def shardings(self, stored: Any, sharding: NamedSharding) -> Any:
        """How the arrays of `stored` are sharded where the array they stand for is to be so.

        Those of its shape are sharded like it, others replicated, unless a format knows better.

        Returns:
          A tree like `stored`, of shardings.
        """
        replicated = NamedSharding(sharding.mesh, PartitionSpec())
        shape = self.shape(stored)
        return jax.tree.map(lambda x: sharding if np.shape(x) == shape else replicated, stored)


class SlotPolicy(abc.ABC):
    """Chooses the format of a slot, leaf by leaf. A frozen dataclass, and never callable."""

    @abc.abstractmethod
    def resolve(self, param: Any, magnitude: bool, path: str, rate: float | None = None) -> Format:
        """The format of one slot of one leaf.

        Args:
          param: the leaf's parameter.
          magnitude: the slot holds what is never negative.
          path: of the leaf, its keys joined by slashes.
          rate: of an average, the weight of a new term in each step, 1 - b; None where it is not
            known, or may change.
        """
