"""Storage of one accumulator of one leaf between steps, behind two verbs."""

import abc
import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.export
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from adam_jax._compat import cast_to_varying, varying_axes
from adam_jax._types import DType, Leaf, PyTree, Stored
from adam_jax.slots import Slot

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
    """

    why: str
    instead: str


class Format(abc.ABC):
    """A way to store one array: `decode(encode(x))` is `x`, to the format's precision.

    A format is a frozen dataclass of static, comparable fields, because it shapes the program. It
    is never callable: `optax.inject_hyperparams` takes every callable argument for a schedule.

    The stored form is an array, or a pytree of arrays whose attribute `format` is the format.
    `encode` returns the structure, shapes and dtypes that `init` returned.
    """

    stochastic: bool = False
    """Whether `encode` rounds stochastically; without noise it rounds to nearest."""

    measures: bool = False
    """Whether it needs the largest magnitude of every block: `measured`, `code`, `of_tiles`."""

    linear: bool = False
    """Whether `encode` is linear: `averaged` averages stored forms, and makes no average."""

    keeps_means: bool = False
    """Whether rules read stored `means` instead of the array, in the step that renews them too."""

    unit: int | None = None
    """Elements along the last axis that are stored together; None for the whole array."""

    rounds: bool = True
    """Whether the stored form has less precision than the array in the dtype of arithmetic."""

    def __str__(self) -> str:
        return f"{type(self).__name__}{', stochastic' * self.stochastic}"

    @abc.abstractmethod
    def refuses(self, slot: Slot) -> Refusal | None:
        """Why this slot cannot be stored in this format; None if it can."""

    @abc.abstractmethod
    def init(self, param: jax.Array, start: float) -> PyTree:
        """The stored form of an array like `param`, sharded like it, filled with `start`."""

    @abc.abstractmethod
    def encode(self, x: jax.Array, noise: jax.Array | None = None) -> PyTree:
        """The stored form of `x`; `noise` as in `bits_of_moments`, if the format is stochastic."""

    @abc.abstractmethod
    def decode(self, stored: Stored, dtype: DType) -> jax.Array:
        """The array, in the dtype of arithmetic."""

    @abc.abstractmethod
    def shape(self, stored: Stored) -> tuple[int, ...]:
        """The shape of the array that `stored` represents; a ValueError if it has another form."""

    @abc.abstractmethod
    def shardings(self, stored: Stored, sharding: NamedSharding) -> Stored:
        """The shardings of the arrays in `stored`, given that of the array it represents."""


def exported_form(stored: Any) -> Any:
    """Lets `jax.export` write a stored form to files, with its format, of the same module, as JSON.

    Names of classes, and the order of fields, are those of the files of all versions.
    """

    def settings(x: Any) -> Any:
        return {type(x).__name__: [*vars(x).values()]} if dataclasses.is_dataclass(x) else x.name

    def made(x: Any) -> Any:
        if isinstance(x, dict):
            [(name, fields)] = x.items()
            return vars(sys.modules[stored.__module__])[name](*map(made, fields))
        return jnp.dtype(x) if isinstance(x, str) else tuple(map(made, x)) if type(x) is list else x

    jax.export.register_pytree_node_serialization(
        stored,
        serialized_name=f"adam_jax.{stored.__name__}",
        serialize_auxdata=lambda fmt: json.dumps(fmt, default=settings).encode(),
        deserialize_auxdata=lambda text: made(json.loads(text)),
    )
    return stored


class SlotPolicy(abc.ABC):
    """Chooses the format of a slot, leaf by leaf. A frozen dataclass, never callable."""

    @abc.abstractmethod
    def resolve(self, param: Leaf, slot: Slot, path: str) -> Format:
        """The format of one slot of the leaf with this parameter and path, `layers/0/kernel`."""


def filled(
    shape: tuple[int, ...],
    x: Leaf,
    dtype: DType,
    param: jax.Array,
    part_of: Callable[[NamedSharding], NamedSharding],
) -> jax.Array:
    """An array for a parameter, filled with x; inside `shard_map`, each device's part of it.

    `part_of` makes its sharding from that of the parameter.
    """
    sharding = sharding_of(param)
    if isinstance(sharding, NamedSharding):
        sharding = part_of(sharding)
    array = jnp.full(shape, x, dtype, device=sharding)
    axes = tuple(varying_axes(param))
    return cast_to_varying(array, axes) if axes else array


def whole_along(
    axes: tuple[int, ...], sharding: NamedSharding, ndim: int, *, dropped: bool = False
) -> NamedSharding:
    """A sharding of `ndim` axes with these axes, counted from the last, whole or dropped."""
    names = [*sharding.spec, *[None] * (ndim - len(sharding.spec))]
    for axis in axes:
        names[axis] = None
        if dropped:
            del names[axis]
    return NamedSharding(sharding.mesh, PartitionSpec(*names), memory_kind=sharding.memory_kind)


def divides(sharding: NamedSharding, shape: tuple[int, ...]) -> bool:
    """Whether every axis of an array can be split by this sharding."""
    try:
        sharding.shard_shape(shape)
    except ValueError:
        return False
    return True


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
