"""States of this package and of Optax: converted between trees and between storage formats.

Moments are read by parameter path and written into another state. Only moments and counts of
optimizer steps are transferred; anything else (an average of the parameters, a partly accumulated
gradient) restarts.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adam_jax._types import AnyTransformation, DType, Function, Leaf, Params, PyTree, State, Stored
from adam_jax.convert.names import by_path, complain, listed, placed_like
from adam_jax.core.boxes import boxed, is_box, unboxed
from adam_jax.core.stacked import Layers, LayersLike, one_layer
from adam_jax.core.states import described, found, is_known, is_state, states_by_path
from adam_jax.core.transformation import Transformation, body_of
from adam_jax.core.trees import fetched, is_stored, leaf_paths, on_host, unflatten_slot
from adam_jax.formats.base import Format
from adam_jax.formats.dense import format_of, is_floating, wider_dtype
from adam_jax.formats.policy import (
    SlotDType,
    check_magnitude_dtype,
    check_slot_dtype,
    resolve,
    stored_format,
)
from adam_jax.slots import Slot


def from_optax(state: State, params: Params, tx: AnyTransformation) -> State:
    """A state of `tx` that continues the run of another transformation, Optax's or one of ours.

    If the trees agree, as those of an alias and its twin in Optax do, it is `state` itself, moved
    to or from host memory if only one of the two is offloaded. Otherwise the moments are found in
    `state`, at any depth, and placed where `tx` keeps them, in the formats of `tx`: from
    `optax.MultiSteps` to `accumulate`, from `optax.partition` to `groups`, from
    `optax.inject_hyperparams` to `with_hyperparams`, from float32 to 8 bits.

    Args:
      state: what `init` or `update` of the other transformation returned.
      params: the parameters.
      tx: the transformation that continues.

    Returns:
      The state. The moments are equal bit for bit if both store them alike. Every count of
      optimizer steps, including those of schedules, is that of the moments. Hyperparameters in the
      state are those of `tx`. Anything else that `tx` keeps (an average of the parameters)
      restarts.

    Raises:
      ValueError: moments that only one of the two has, listed by path; arrays in `state` that would
        be lost, such as an average of the parameters, partly accumulated gradients or the state of
        another library's optimizer (Muon's in `optax.partition`).
    """
    target = moments_of(tx, params)
    if _structure(state) == _structure(target.state):
        return _moved(state, target.state)
    given = read("state", state, params)
    if lost := left_behind(state):
        raise ValueError(
            f"state must have nothing but moments and counts to be moved to another tree, got"
            f" {listed(lost)}: convert after an optimizer step, and pass only the part with the"
            f" moments, optax.tree.get(state, 'ScaleByAdamState')."
        )
    wanted, found_here = ({"/".join(key) for key in x.slots} for x in (target, given))
    instead = "Write convert.carry(state, old_params, params, tx) to keep what both have."
    complain("state", wanted - found_here, found_here - wanted, instead=instead)
    if wrong := given.kinds - target.kinds:
        raise ValueError(
            f"state must be that of the same member as tx, got {listed(wrong)} for"
            f" {listed(target.kinds)}."
        )
    return target.filled(given.slots, given.counts)


def to_optax(state: State, params: Params, tx: AnyTransformation) -> State:
    """`from_optax` for Optax's `tx`, whose `init` determines how moments are stored.

    Args:
      state: of a transformation of this package.
      params: the parameters.
      tx: Optax's; 8-bit moments are decoded.

    Raises:
      ValueError: as in `from_optax`.
    """
    return from_optax(state, params, tx)


def _moved(state: State, like: PyTree) -> State:
    """The state in the memory of `like`: the device's or the host's."""
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True)
    if all(on_host(x) == on_host(y) for x, y in pairs):
        return state
    return jax.tree.map(lambda x, y: jax.device_put(x, jax.typeof(y).memory_space), state, like)


def _structure(tree: PyTree) -> PyTree:
    """The structure of a tree, and the shapes and dtypes of its arrays."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(np.shape(x), getattr(x, "dtype", None)) for x in leaves]


def convert_state(
    state: State,
    *,
    mu_dtype: SlotDType = None,
    nu_dtype: SlotDType = None,
    layers: LayersLike | None = None,
) -> State:
    """Stores the moments of a state in other formats: in the middle of a run, or from Optax.

    Args:
      state: of a member of this package, of its twin in Optax, or of transformations around them,
        at any depth.
      mu_dtype: the new format of averages of gradients, as in `scale_by_adam`; None leaves them
        unchanged.
      nu_dtype: the new format of averages of squares, likewise.
      layers: the stacked leaves, as in `with_layers`; None for none. Factors and codes are then
        chosen by the shape of one layer.

    Returns:
      A state with which the same transformation continues. The state determines how moments are
      stored; the transformation's `mu_dtype` applies only to `init`. Moments are decoded to float32
      and rounded to nearest in the new format, leaf by leaf.

    Raises:
      ValueError: a dtype that cannot store a moment; a state without moments, or of an unknown
        type.
    """
    specs = {
        False: check_slot_dtype("mu_dtype", mu_dtype),
        True: check_magnitude_dtype("nu_dtype", nu_dtype),
    }
    known = Layers() if layers is None else Layers.of(layers)

    def convert(x: State) -> State:
        slots = [Slot(name, magnitude) for name, magnitude in described(x).slots.items()]
        new = {s.name: _stored_as(specs[s.magnitude], getattr(x, s.name), s, known) for s in slots}
        return x._replace(**new)

    if not found(state, lambda x: is_known(x) and bool(described(x).slots)):
        for x in found(state, is_state):
            described(x)
        raise _without_moments("state", state)
    return map_states(convert, state)


def _stored_as(spec: SlotDType, tree: PyTree, slot: Slot, layers: Layers) -> PyTree:
    """One accumulator of all leaves in another format."""
    if spec is None:
        return tree

    def convert(path: str, x: Leaf) -> Leaf:
        stored, boxes = unboxed(x), found(x, is_box)
        if format_of(stored) is None:
            return x
        array = dense(stored, slot.magnitude)
        try:
            fmt = resolve(spec, one_layer(array, layers.axes(path)), slot, path)
            new = fmt.encode(array)
        except ValueError as error:
            raise ValueError(f"at {path!r}, {error}") from None
        if any(map(on_host, jax.tree.leaves(stored))):
            new = jax.device_put(new, jax.memory.Space.Host)
        return boxed(boxes[0], new) if boxes else new

    leaves, treedef = jax.tree.flatten(tree, is_leaf=lambda x: is_stored(x) or is_box(x))
    paths = leaf_paths(treedef.unflatten(range(len(leaves))), none_is_leaf=False)
    return treedef.unflatten(map(convert, paths, leaves))


Key = tuple[str, str]
"""The path of a parameter and one of its slots: `("layers/0/kernel", "mu")`."""


class Moments(NamedTuple):
    """The moments in a state.

    Attributes:
      state: that they are in.
      params: the parameters.
      slots: their stored forms.
      counts: the optimizer steps taken, by the paths of the parameters.
      kinds: the names of the types of the states that keep them.
    """

    state: State
    params: Params
    slots: dict[Key, Stored]
    counts: dict[str, int]
    kinds: set[str]

    def filled(self, slots: Mapping[Key, Any], counts: Mapping[str, int]) -> State:
        """The same state with these moments, stored forms or NumPy arrays; the rest starts anew."""
        latest = max(counts.values())

        def fill(x: State) -> State:
            fields, stored = described(x), _stored(x, self.params)
            taken = {path: counts[path] for path, _ in stored if path in counts}
            if len(set(taken.values())) > 1:
                few = [f"{path}: {count}" for path, count in sorted(taken.items())]
                raise ValueError(
                    f"the parameters of one {type(x).__name__} must have taken the same number of"
                    f" steps, got {listed(few)}: give those that started later a separate"
                    f" transformation, by optax.partition."
                )
            steps = max(taken.values(), default=latest)
            new = {name: jnp.full_like(getattr(x, name), steps) for name in fields.counts}
            for slot in fields.slots:
                its = [(key, old) for key, old in stored.items() if key[1] == slot]
                own = [encoded(slots.get(key, old), old) for key, old in its]
                new[slot] = unflatten_slot(getattr(x, slot), own)
            return x._replace(**new)

        return map_states(fill, self.state)


def moments_of(tx: AnyTransformation, params: Params) -> Moments:
    """The initial moments of a transformation."""
    return read("tx", Transformation.around(body_of("tx", tx)).init(params), params)


def read(argument: str, state: State, params: Params) -> Moments:
    """The moments in a state of this package or of Optax, at any depth."""
    new = Moments(state, params, {}, {}, set())
    for _, member in states_by_path(state):
        fields = described(member)
        if not jax.tree.leaves([getattr(member, slot) for slot in fields.slots]):
            continue
        kind = type(member).__name__
        if not fields.counts:
            raise ValueError(
                f"{argument} must count its optimizer steps, got {kind}"
                f"({', '.join(member._fields)}), which has no count."
            )
        count = getattr(member, fields.counts[0])
        if np.ndim(count):
            raise ValueError(
                f"{argument} must be that of one run, got counts of shape {np.shape(count)}: select"
                f" one of a population, jax.tree.map(lambda x: x[i], state)."
            )
        for (path, slot), stored in _stored(member, params).items():
            if (path, slot) in new.slots:
                raise ValueError(
                    f"{argument} must keep each moment once, got {slot!r} of {path!r} twice."
                )
            new.slots[path, slot] = stored
            new.counts[path] = int(count)
        new.kinds.add(kind)
    if not new.slots:
        raise _without_moments(argument, state)
    return new


def _without_moments(argument: str, state: State) -> ValueError:
    return ValueError(
        f"{argument} must have the moments of a member of Adam's family in it, got"
        f" {jax.tree.structure(state)}: pass what init or update of adamw returned, say."
    )


def left_behind(state: State) -> list[str]:
    """The paths of arrays in a state that are neither moments nor counts of steps, but matter."""

    def strip(x: State) -> State:
        fields = described(x)
        return x._replace(**dict.fromkeys({*x._fields} - {*fields.inner, *fields.lost(x)}))

    return leaf_paths(map_states(strip, state), none_is_leaf=False)


def map_states(f: Function, state: State) -> State:
    """Applies f to every known state and to states around one, at any depth, inner ones first."""

    def is_wanted(x: Leaf) -> bool:
        # Excludes the user's NamedTuples, such as parameters beside the state.
        return is_state(x) and bool(found(x, is_known))

    def walk(x: Leaf) -> Leaf:
        if not is_wanted(x):
            return x
        return f(x._replace(**{n: map_states(f, getattr(x, n)) for n in described(x).inner}))

    return jax.tree.map(walk, state, is_leaf=is_wanted)


def _stored(member: State, params: Params) -> dict[Key, Stored]:
    """The stored moments of each parameter of a state, slot by slot in the order of the leaves."""
    paths, stored = set(leaf_paths(params)), {}
    for slot in described(member).slots:
        own = by_path(getattr(member, slot), is_stored)
        if not paths.issuperset(own):
            raise ValueError(
                f"params must be those that the state was made for, got {listed(sorted(paths))}:"
                f" the state has {listed(sorted(own))}."
            )
        stored |= {(path, slot): unboxed(x) for path, x in own.items()}
    return stored


def encoded(x: Leaf, like: PyTree) -> Leaf:
    """Encodes x in the format of `like`; unchanged if it has that format already."""
    fmt = format_of(like)
    if format_of(x) != fmt:
        x = _encode(fmt, dense(x))
    return jax.tree.map(placed_like, fetched(x), like)


def dense(stored: Stored, magnitude: bool = False) -> jax.Array:
    """Decodes a stored array to one number per element, at least float32; a magnitude is real."""
    dtypes = [jnp.result_type(x) for x in jax.tree.leaves(stored) if is_floating(x)]
    dtype = functools.reduce(wider_dtype, dtypes, jnp.dtype(jnp.float32))
    dtype = jnp.finfo(dtype).dtype if magnitude else dtype
    return _decode(stored_format(stored), fetched(stored), dtype)


# Under jit there is one program per shape, not one per operation.
@functools.partial(jax.jit, static_argnums=(0, 2))
def _decode(fmt: Format, stored: Stored, dtype: DType) -> jax.Array:
    return fmt.decode(stored, dtype)


@functools.partial(jax.jit, static_argnums=0)
def _encode(fmt: Format, x: jax.Array) -> Stored:
    return fmt.encode(x)
