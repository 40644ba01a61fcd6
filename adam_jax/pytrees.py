"""Classes that are both values and pytrees: the base of rules, stages and bodies."""

import contextlib
import dataclasses
from typing import Any, dataclass_transform

import jax
import jax.core
import jax.export
import numpy as np

from adam_jax._types import Leaf, PyTree


@dataclass_transform(frozen_default=True)
def frozen_pytree(cls: type[Any]) -> Any:
    """A frozen dataclass that is a pytree: its numbers are leaves, its `static` fields are not.

    It does not use `jax.tree_util.register_dataclass`. JAX (0.10 to 0.12) treats two such classes
    as one structure if their static fields are equal. When their hashes collided, one rule ran the
    other's compiled program, and Yogi's steps were occasionally Adam's.

    Two values are equal if their structures and all their numbers are: 0.5 equals float32(0.5), and
    arrays are compared by value. Traced numbers equal only themselves, and are not hashable.
    """

    def equal(x: Leaf, other: object) -> Leaf:
        if type(x) is not type(other):
            return NotImplemented
        return x is other or _value(x, of_tracer=id) == _value(other, of_tracer=id)

    made: Any = dataclasses.dataclass(frozen=True, eq=False)(cls)
    made.__eq__ = equal
    made.__hash__ = lambda x: hash(_value(x, of_tracer=lambda tracer: tracer))
    fields = [f for f in dataclasses.fields(made) if f.init]
    leaves = [f.name for f in fields if not f.metadata.get("static")]
    fixed = [f.name for f in fields if f.metadata.get("static")]

    def flatten(x: Leaf) -> tuple[tuple[Leaf, ...], tuple[Leaf, ...]]:
        value_of = vars(x).__getitem__
        return tuple(map(value_of, leaves)), tuple(map(value_of, fixed))

    def flatten_with_keys(x: Leaf) -> tuple[tuple[Leaf, ...], tuple[Leaf, ...]]:
        children, statics = flatten(x)
        keys = map(jax.tree_util.GetAttrKey, leaves)
        return tuple(zip(keys, children, strict=True)), statics

    def unflatten(statics: tuple[Leaf, ...], children: PyTree) -> Any:
        return made(**dict(zip(leaves + fixed, (*children, *statics), strict=True)))

    jax.tree_util.register_pytree_with_keys(made, flatten_with_keys, unflatten, flatten)
    return made


def _value(x: Leaf, of_tracer: Any) -> tuple[Leaf, ...]:
    """The key by which a pytree is compared and hashed."""

    def of_leaf(leaf: Leaf) -> Leaf:
        if isinstance(leaf, jax.core.Tracer):
            return of_tracer(leaf)
        if not isinstance(leaf, (np.generic, np.ndarray, jax.Array)):
            return leaf
        numbers = np.asarray(leaf)
        return numbers.item() if numbers.ndim == 0 else (numbers.shape, *numbers.ravel().tolist())

    leaves, structure = jax.tree.flatten(x)
    return structure, *map(of_leaf, leaves)


def exported(kind: Any) -> Any:
    """Lets `jax.export` write this NamedTuple to files, under a name that all versions keep."""
    name = f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
    with contextlib.suppress(ValueError):  # It is registered already.
        jax.export.register_namedtuple_serialization(kind, serialized_name=name)
    return kind


class Label(str):
    """A name for `repr`: it equals any other, since it is not part of a value."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str)

    def __hash__(self) -> int:
        return hash("")


def static(**kwargs: Leaf) -> Leaf:
    """A field that shapes the program: part of the pytree's structure, compared, never traced."""
    return dataclasses.field(metadata={"static": True}, **kwargs)
