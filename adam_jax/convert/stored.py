"""Converts the moments of a state between storage formats."""

import jax
import jax.numpy as jnp

from adam_jax._types import Leaf, PyTree, State, Stored
from adam_jax.convert.moments import map_states
from adam_jax.engine.boxes import boxed, is_box, unboxed
from adam_jax.engine.layers import Layers, LayersLike, one_layer
from adam_jax.engine.leafwise import fetched, on_host
from adam_jax.engine.states import described, found, is_known, is_state
from adam_jax.engine.trees import is_stored, leaf_paths
from adam_jax.formats.dtypes import wider_dtype
from adam_jax.formats.policy import (
    SlotDType,
    check_magnitude_dtype,
    check_slot_dtype,
    format_of,
    resolve,
)
from adam_jax.slots import Slot


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
      mu_dtype: the new format of averages of gradients, as in `adamw`; None leaves them
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

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> tx = adam_jax.adamw(1e-3)
      >>> state = adam_jax.convert_state(tx.init(jnp.ones((64, 128))), mu_dtype=jnp.int8)
      >>> print(state[0].mu.codes.dtype, state[0].nu.dtype)
      int8 float32
    """
    specs = {
        False: check_slot_dtype("mu_dtype", mu_dtype),
        True: check_magnitude_dtype("nu_dtype", nu_dtype),
    }

    known = Layers() if layers is None else Layers.of(layers)

    def convert(x: State) -> State:
        slots = [Slot(name, magnitude) for name, magnitude in described(x).slots.items()]
        return x._replace(
            **{s.name: _stored(getattr(x, s.name), specs[s.magnitude], s, known) for s in slots}
        )

    if not found(state, lambda x: is_known(x) and bool(described(x).slots)):
        for x in found(state, is_state):
            described(x)
        raise ValueError(
            f"state must have the moments of a member of Adam's family in it, got"
            f" {jax.tree.structure(state)}: pass what init or update returned."
        )
    return map_states(convert, state)


def _stored(tree: PyTree, spec: SlotDType, slot: Slot, layers: Layers) -> PyTree:
    """One accumulator of all leaves in another format."""
    if spec is None:
        return tree

    def convert(path: str, stored: Stored) -> State:
        fmt = format_of(stored)
        if fmt is None:
            return stored
        dtype = wider_dtype(getattr(stored, "dtype", jnp.dtype(jnp.float32)), jnp.float32)
        offloaded = any(map(on_host, jax.tree.leaves(stored)))
        x = fmt.decode(fetched(stored), jnp.finfo(dtype).dtype if slot.magnitude else dtype)
        try:
            layer = one_layer(x, layers.axes(path))
            new = resolve(spec, layer, slot, path).encode(x)
        except ValueError as error:
            raise ValueError(f"at {path!r}, {error}") from None
        return jax.device_put(new, jax.memory.Space.Host) if offloaded else new

    def in_its_box(path: str, x: Leaf) -> Leaf:
        [box, *_] = [b for b in jax.tree.leaves(x, is_leaf=is_box) if is_box(b)] or [None]
        new = convert(path, unboxed(x))
        return new if box is None else boxed(box, new)

    leaves, treedef = jax.tree.flatten(tree, is_leaf=lambda x: is_stored(x) or is_box(x))
    paths = leaf_paths(treedef.unflatten(range(len(leaves))), none_is_leaf=False)
    return treedef.unflatten(map(in_its_box, paths, leaves))
