"""From rules on one array to Optax transformations on a tree of them.

A `Link` is a rule together with the state that Optax would keep for it. A `Transformation` is a
row of links that run on each leaf in one go: scale_by_adam, weight decay and the learning rate are
three links, and `adamw` is the row of them. Step counts, trees, None leaves and masks are known
here (and in leaves.py, which lines trees up), and nowhere below.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_jax.formats.base import Format
from adam_jax.formats.policy import SlotDType, format_of, leaf_dtype, resolve, wider_dtype
from adam_jax.kernels.xla import Leaf, Program, as_arrays, run
from adam_jax.leaves import Mask, align_params, align_slot, check_leaf, leaf_paths, path_name
from adam_jax.rules.base import Rule, static


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Link:
    """One rule and where its memory lies.

    Attributes:
      rule: what happens to each leaf.
      state_type: the NamedTuple of the state: `count` where the rule needs the step, and its slots.
      dtypes: what the user asked for, one entry per slot.
      mask: the leaves that the rule acts on; None for all. Only for rules without slots.
    """

    rule: Rule
    state_type: Any = static()
    dtypes: tuple[SlotDType, ...] = static(default=())
    mask: Mask | None = static(default=None)

    @property
    def counts(self) -> bool:
        """Whether the state has the step count."""
        return "count" in self.state_type._fields

    def init(self, params: Any) -> Any:
        """The state before the first step."""
        fields: dict[str, Any] = {"count": jnp.zeros([], jnp.int32)} if self.counts else {}
        for slot, dtype in zip(self.rule.slots, self.dtypes, strict=True):

            def start(path: Any, p: Any, slot: Any = slot, dtype: SlotDType = dtype) -> Any:
                like = p if hasattr(p, "dtype") else jnp.asarray(p)
                return _format(path, p, dtype, slot.magnitude).init(like, slot.start)

            fields[slot.name] = jax.tree_util.tree_map_with_path(start, params)
        return self.wrap(self.state_type(**fields))

    def wrap(self, state: Any) -> Any:
        """The state as `optax.masked` would keep it, where there is a mask."""
        return state if self.mask is None else optax.MaskedState(inner_state=state)

    def unwrap(self, state: Any) -> Any:
        """The state inside; says what is wrong with one that `init` did not make."""
        state = state if self.mask is None else getattr(state, "inner_state", state)
        absent = [name for name in self.state_type._fields if not hasattr(state, name)]
        if absent:
            raise ValueError(
                f"the state must be a {self.state_type.__name__}, got {type(state).__name__}"
                f" without {absent}: call init of this transformation and pass its result on."
            )
        return state


def _format(path: Any, param: Any, dtype: SlotDType, magnitude: bool) -> Format:
    try:
        return resolve(dtype, param, magnitude)
    except TypeError as error:
        raise ValueError(
            f"the parameter {path_name(path)!r} has dtype {error}: Adam moves floating-point"
            f" numbers only. Leave such leaves out with optax.masked(..., mask) or keep them apart"
            f" from the parameters."
        ) from None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Row:
    """Links that run one after the other on each leaf.

    Attributes:
      links: in the order in which they run.
      chained: the state is a tuple with one entry per link, as `optax.chain` keeps it; False, for a
        single link, is that link's state itself.
    """

    links: tuple[Link, ...]
    chained: bool = static()

    def split(self, state: Any) -> tuple[Any, ...]:
        """The links' own states."""
        if not self.chained:
            states: Any = (state,)
        elif isinstance(state, tuple) and len(state) == len(self.links):
            states = state
        else:
            raise ValueError(
                f"the state must be the tuple of {len(self.links)} that init returned, got"
                f" {type(state).__name__}: call init of this transformation and pass its result on."
            )
        return tuple(link.unwrap(s) for link, s in zip(self.links, states, strict=True))


def _init(row: Row, params: Any) -> Any:
    states = tuple(link.init(params) for link in row.links)
    return states if row.chained else states[0]


def _update(
    row: Row, updates: Any, state: Any, params: Any = None, **extra_args: Any
) -> tuple[Any, Any]:
    del extra_args  # Optax passes what other members of a chain asked for to all of them.
    return _run(row, updates, state, params, apply=False)


def _run(row: Row, updates: Any, state: Any, params: Any, apply: bool) -> tuple[Any, Any]:
    """One optimizer step on every leaf; returns the updates, or with `apply` the new parameters."""
    links, states = row.links, row.split(state)
    leaves, treedef = jax.tree.flatten(updates, is_leaf=lambda x: x is None)
    steps = as_arrays(
        [
            (link.rule, link.rule.scalars(getattr(s, "count", None)))
            for link, s in zip(links, states, strict=True)
        ]
    )
    # For each link, for each of its slots, what is stored for each leaf; renewed in place.
    stored = [
        [align_slot(treedef, updates, getattr(s, slot.name)) for slot in link.rule.slots]
        for link, s in zip(links, states, strict=True)
    ]
    needed = apply or any(link.rule.needs_params for link in links)
    param_leaves = align_params(treedef, params, needed, apply)
    masks = [link.mask and link.mask.flatten(params, treedef, param_leaves) for link in links]

    # Leaves that share a program: the rules, the formats, the dtypes and the shape.
    alike: dict[Any, list[int]] = {}
    arrays: dict[int, Leaf] = {}
    for i, (g, p) in enumerate(zip(leaves, param_leaves, strict=True)):
        if g is None:
            continue
        used = tuple(k for k, mask in enumerate(masks) if mask is None or mask[i])
        old = tuple(tuple(slot[i] for slot in stored[k]) for k in used)
        formats = tuple(tuple(map(format_of, slots)) for slots in old)
        try:
            g_dtype = check_leaf(g, p, old, formats)
            dtype = leaf_dtype(p) if apply else _update_dtype(g_dtype, p)
        except (TypeError, ValueError) as error:
            raise ValueError(f"at {leaf_paths(updates)[i]!r}, {error}") from None
        arrays[i] = Leaf(g, old, p if needed else None)
        alike.setdefault((used, formats, dtype, np.shape(g), g_dtype), []).append(i)

    results = list(param_leaves) if apply else list(leaves)
    for (used, formats, dtype, *_), indices in alike.items():
        program = Program(formats, dtype, apply)
        stepped = run(program, tuple(steps[k] for k in used), [arrays[i] for i in indices])
        for i, (result, new) in zip(indices, stepped, strict=True):
            results[i] = result
            for k, slots in zip(used, new, strict=True):
                for slot, x in zip(stored[k], slots, strict=True):
                    slot[i] = x

    new_states = []
    for link, s, slots in zip(links, states, stored, strict=True):
        fields = {"count": optax.safe_increment(s.count)} if link.counts else {}
        for slot, xs in zip(link.rule.slots, slots, strict=True):
            fields[slot.name] = jax.tree.unflatten(treedef, xs)
        new_states.append(link.wrap(link.state_type(**fields)))
    return jax.tree.unflatten(treedef, results), tuple(new_states) if row.chained else new_states[0]


def _update_dtype(g_dtype: Any, p: Any) -> Any:
    """The gradient's dtype, widened to a wider parameter's, which a narrower update would round."""
    return g_dtype if p is None else wider_dtype(g_dtype, leaf_dtype(p))


@jax.tree_util.register_pytree_node_class
class Transformation(optax.GradientTransformationExtraArgs):
    """A row of links as an Optax transformation, with `step`, update and apply in one.

    It is a value: equal rules and numbers make equal transformations (Optax's closures never are),
    so it can be a static argument without retracing. It is a pytree as well: as a jit argument its
    numbers are traced, so that another learning rate does not retrace either.
    """

    __slots__ = ()

    @classmethod
    def of(cls, *links: Link, chained: bool = True) -> "Transformation":
        """Joins links, applied in this order; `chained` as in `Row`."""
        return cls.tree_unflatten(None, (Row(links, chained),))

    @property
    def row(self) -> Row:
        """The links behind `init` and `update`."""
        return self.update.args[0]  # pyright: ignore[reportAttributeAccessIssue]

    def step(self, grads: Any, state: Any, params: Any, **extra_args: Any) -> tuple[Any, Any]:
        """`update` and `optax.apply_updates`, in one pass over each leaf; see `adam_jax.step`."""
        del extra_args
        return _run(self.row, grads, state, params, apply=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Transformation) and self.row == other.row

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.row)

    def __repr__(self) -> str:
        return f"Transformation{tuple(link.rule for link in self.row.links)}"

    def tree_flatten(self) -> tuple[tuple[Row], None]:
        """As a pytree, it is its links."""
        return (self.row,), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: tuple[Row]) -> "Transformation":
        """Puts `init` and `update` around the links again."""
        del aux
        (row,) = children
        return cls(jax.tree_util.Partial(_init, row), jax.tree_util.Partial(_update, row))


def step(
    tx: optax.GradientTransformation, grads: Any, state: Any, params: Any, **extra_args: Any
) -> tuple[Any, Any]:
    """One optimizer step: the new parameters and the new state.

    For any Optax transformation this is `tx.update` and then `optax.apply_updates`. A
    transformation with a `step` of its own, as all of ours have, does both in one pass over each
    leaf, and adds the update to the parameter before anything is rounded to a 16-bit dtype. A None
    among the gradients of ours leaves its parameter and its state alone.

    Args:
      tx: any Optax transformation.
      grads: a tree like `params`.
      state: what `tx.init` or the last step returned.
      params: the parameters, in any floating-point dtype, which they keep.
      **extra_args: passed on to transformations that take them, such as `value=`.

    Returns:
      `(params, state)`.

    Raises:
      ValueError: a tree, a shape or a dtype that does not fit the state; the message has the path.
    """
    fused = getattr(tx, "step", None)
    if fused is not None:
        return fused(grads, state, params, **extra_args)
    tx = optax.with_extra_args_support(tx)
    updates, state = tx.update(grads, state, params, **extra_args)
    return optax.apply_updates(params, updates), state
