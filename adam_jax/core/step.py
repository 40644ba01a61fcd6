"""One optimizer step: the leaves of a tree on their way through transformations, flattened once."""

import abc
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import NamedSharding

from adam_jax._types import Count, DType, Leaf, Params, PyTree, Result, State, Updates
from adam_jax.core.stacked import Layers, Stack, over_layers
from adam_jax.core.trees import align_params, align_slot, leaf_paths, unflatten_stored
from adam_jax.formats.dense import is_floating, leaf_dtype, wider_dtype
from adam_jax.formats.rounding import Split
from adam_jax.numerics import next_count, select
from adam_jax.rates import DecayRate, ScheduledRate
from adam_jax.validation import printed

Factor = Array | dict[int, Array]
"""A number that multiplies every leaf, or one for each, by its index."""


@dataclasses.dataclass(frozen=True)
class Step:
    """What passes through a transformation, and what comes out of it.

    A step that is not taken changes nothing, for any gradient: states stay, updates are zeros.

    Attributes:
      tree: the gradients as the user passed them; only their structure and paths are read.
      params: the parameters as the user passed them, or None.
      treedef: the structure of the gradients, in which None is a leaf.
      own: the indices of the leaves of this transformation; the others belong to another one.
      here: those of them that move: floating-point, with a gradient.
      g: for each leaf that is here, its gradient, then its update, without `factors`.
      p: its parameter, which may be a `Split`; None if there is none.
      dtypes: what its update is rounded to at the end.
      factors: each multiplies the gradients in the loop that reads them, in this order: a scalar
        for all, or for each leaf, by its index, a scalar or one number per layer. A false boolean
        makes a gradient zero.
      update_factors: the same for the updates, in the loop that makes the results of them.
      counts: the steps of each leaf, by its index, in place of the member's count; None for that.
      ok: boolean scalar, whether the step is taken; None for yes.
      apply: the user wants new parameters, not updates.
      last: no other transformation follows, so that a member may round and apply.
      done: one has: `g` are the results.
      extra: the user's other arguments.
      shardings: of the leaves, by path, where known.
      plans: collects the plan of each leaf, by path, for reports; None outside of them.
    """

    tree: Updates
    params: Params
    treedef: PyTree
    own: Sequence[int]
    here: Sequence[int]
    g: Sequence[Any]
    p: Sequence[Any]
    dtypes: Sequence[Any]
    factors: tuple[Factor, ...] = ()
    update_factors: tuple[Factor, ...] = ()
    counts: Sequence[Count] | None = None
    ok: Array | None = None
    apply: bool = False
    last: bool = True
    done: bool = False
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shardings: Mapping[str, NamedSharding] = dataclasses.field(default_factory=dict)
    plans: dict[str, Any] | None = None

    @classmethod
    def of(cls, grads: Updates, params: Params, apply: bool, extra: Mapping[str, Any]) -> "Step":
        """The step of a whole tree.

        Raises:
          ValueError: a leaf has a dtype without arithmetic; the message has its path.
        """
        g, treedef = jax.tree.flatten(grads, is_leaf=_is_none)
        p = align_params(treedef, params, False, apply)
        dtypes: list[Any] = []
        try:
            for x, q in zip(g, p, strict=True):
                dtypes.append(_dtype_of_update(x, q))
        except ValueError as error:
            raise ValueError(f"at {leaf_paths(grads)[len(dtypes)]!r}, {error}") from None
        here = [i for i, dtype in enumerate(dtypes) if dtype is not None]
        g, p, dtypes = ([column[i] for i in here] for column in (g, p, dtypes))
        own = range(treedef.num_leaves)
        return cls(grads, params, treedef, own, here, g, p, dtypes, apply=apply, extra=extra)

    def but(self, **changes: Any) -> "Step":
        """The same step with other attributes."""
        return dataclasses.replace(self, **changes)

    def times(self, *factors: Factor | None) -> "Step":
        """Multiplies every gradient; None adds nothing."""
        return self.but(factors=(*self.factors, *(x for x in factors if x is not None)))

    def only_if(self, condition: Array) -> "Step":
        """The same step, not taken unless this boolean scalar is true."""
        return self.but(ok=condition if self.ok is None else condition & self.ok)

    def taken(self, new: PyTree, old: PyTree) -> PyTree:
        """`new` if the step is taken, else `old`: trees of arrays."""
        return select(self.ok, new, old)

    def counted(self, count: Count) -> Count:
        """The count plus one if the step is taken; it saturates at the largest integer."""
        return _counted(count, self.ok)

    def part(self, own: Sequence[int]) -> "Step":
        """The step of some of the leaves."""
        chosen = set(own)
        kept = [k for k, i in enumerate(self.here) if i in chosen]
        columns = (self.here, self.g, self.p, self.dtypes)
        here, g, p, dtypes = ([column[k] for k in kept] for column in columns)
        return self.but(own=own, here=here, g=g, p=p, dtypes=dtypes)

    def with_results(self, g: Sequence[Any], dtypes: Sequence[Any], **changes: Any) -> "Step":
        """The step after a transformation that made these updates, without factors."""
        return self.but(g=g, dtypes=dtypes, factors=(), **changes)

    # Trees of the user and of states.

    @functools.cached_property
    def every_path(self) -> list[str]:
        """The paths of all leaves of the tree."""
        return leaf_paths(self.tree)

    @functools.cached_property
    def paths(self) -> list[str]:
        """The paths of the leaves that are here."""
        return [self.every_path[i] for i in self.here]

    def align(self, slot: PyTree) -> list[Any]:
        """The entries of a state's tree for all leaves of the tree."""
        return align_slot(self.treedef, self.tree, slot)

    def back(self, slot: PyTree, entries: Sequence[Leaf]) -> PyTree:
        """The inverse of `align`: the same tree with other entries."""
        return jax.tree.structure(slot).unflatten(jax.tree.leaves(entries))

    def stacks(self, layers: Layers) -> list[Stack]:
        """The layers of each leaf that is here, numbered among the leaves of its transformation."""
        paths: list[str] = []
        shapes: list[Any] = [None] * len(self.own)
        if layers:
            paths = [self.every_path[i] for i in self.own]
            shapes = [
                x if x is None else np.shape(x) for x in map(self._given.__getitem__, self.own)
            ]
        stacks = layers.stacks(paths, shapes)
        by_index = dict(zip(self.own, stacks, strict=True))
        return [by_index[i] for i in self.here]

    def needed_params(self) -> None:
        """Checks that there are parameters.

        Raises:
          ValueError: there are none, or they are unlike the gradients.
        """
        if self.params is None or any(p is None for p in self.p):
            align_params(self.treedef, self.params, True, self.apply)

    def joined_params(self) -> Params:
        """The parameters as another transformation gets them, with joined weights.

        Leaves of other transformations are `optax.MaskedNode`.
        """
        if self.params is None:
            return None
        every = align_params(self.treedef, self.params, False, self.apply)
        whole = len(self.own) == self.treedef.num_leaves
        if whole and all(every[i] is p for i, p in zip(self.here, self.p, strict=True)):
            return self.params
        return self._tree(every, self.p)

    def rounded_grads(self) -> Updates:
        """The gradients as another library gets them: zeros for integers, which Optax counts in."""
        params = align_params(self.treedef, self.params, False, self.apply)
        every = [
            zeros_for(g, p) if not is_floating(p) or getattr(g, "dtype", None) == _FLOAT0 else g
            for g, p in zip(self._given, params, strict=True)
        ]
        return self._tree(every, self.rounded())

    def own_treedef(self) -> PyTree:
        """The structure of the gradients of this transformation, in which None is a leaf."""
        if len(self.own) == self.treedef.num_leaves:
            return self.treedef
        return jax.tree.structure(self._tree(self._given, self.g), is_leaf=_is_none)

    def _tree(self, every: Sequence[Leaf], here: Sequence[Leaf]) -> PyTree:
        """A tree like the gradients of these leaves, those that are here replaced."""
        own, leaves = set(self.own), list(every)
        for i, x in zip(self.here, here, strict=True):
            leaves[i] = joined(x)
        masked = optax.MaskedNode()
        leaves = [x if i in own else masked for i, x in enumerate(leaves)]
        return unflatten_stored(self.tree, leaves, none_is_leaf=True)

    def nones(self) -> list[int]:
        """The leaves without gradient and parameter."""
        p = align_params(self.treedef, self.params, False, self.apply)
        return [i for i in self.own if self._given[i] is None and p[i] is None]

    @functools.cached_property
    def _given(self) -> list[Any]:
        return jax.tree.leaves(self.tree, is_leaf=_is_none)

    def result(self) -> PyTree:
        """What the user gets: updates, rounded once, or new parameters."""
        if self.apply:
            self.needed_params()
        results = self.finished()
        if len(self.here) == self.treedef.num_leaves:
            return self.treedef.unflatten(results)
        p = align_params(self.treedef, self.params, False, self.apply)
        every = p
        if not self.apply:
            pairs = zip(self._given, p, strict=True)
            every = [None if x is None else zeros_for(x, q) for x, q in pairs]
        for i, x in zip(self.here, results, strict=True):
            every[i] = x
        return self.treedef.unflatten(every)

    # The numbers of the leaves that are here.

    @property
    def values(self) -> list[Array]:
        """The gradients in the dtype of arithmetic, with all factors."""
        pairs = zip(self.g, self.here, strict=True)
        return [scaled(x, of_leaf(self.factors, i)) for x, i in pairs]

    def rounded(self) -> list[Any]:
        """The gradients in the dtypes that they are rounded to."""
        if not self.factors and all(
            getattr(g, "dtype", None) == d for g, d in zip(self.g, self.dtypes, strict=True)
        ):
            return list(self.g)
        pairs = zip(self.values, self.dtypes, strict=True)
        return [jax.lax.convert_element_type(g, d) for g, d in pairs]

    def widened(self) -> "Step":
        """Updates have the parameters' dtypes where those are wider, as Adam's have."""
        return self.but(dtypes=[wider(d, p) for d, p in zip(self.dtypes, self.p, strict=True)])

    def finished(self) -> Sequence[Any]:
        """The results: rounded updates or new parameters; plain updates if others follow.

        Those of a `Split` are `SteppedWeights`.
        """
        if self.done or not self.last:
            return self.g if self.done else self.values
        values = self.times(*self.update_factors).values
        columns = zip(values, self.p, self.dtypes, strict=True)
        return [self._result(u, p, d) for u, p, d in columns]

    def _result(self, u: Array, p: Leaf, dtype: DType) -> Leaf:
        """What a member does with an update in its own loop, for one that something else made."""
        if self.apply or isinstance(p, Split):
            return self.stepped_to(applied(u, joined(p)), p)
        return jax.lax.convert_element_type(u, dtype)

    def stepped_to(self, x: Array, p: Leaf) -> Leaf:
        """The result for a leaf whose new weights are known: those of a `Split` are split again."""
        if not isinstance(p, Split):
            return x
        return p.stepped_to(self.taken(_renewed(p, x), p), self.apply)

    @property
    def is_split(self) -> bool:
        """Whether some weights have a rest, which is made with the results."""
        return any(isinstance(p, Split) for p in self.p)

    def unmoved(self, n: int) -> Leaf:
        """The result of a frozen leaf, the n-th that is here."""
        p = self.p[n]
        if isinstance(p, Split) and self.last:
            return p.stepped_to(p, self.apply)
        return p if self.last and self.apply else jnp.zeros_like(self.g[n])

    def moved(self) -> list[Any]:
        """The new parameters of this step; those of a `Split` before it is split again."""
        if self.done and self.apply:
            return list(self.g)
        values = self.g if self.done else self.times(*self.update_factors).values
        if not self.apply:  # Updates are rounded before the user adds them.
            pairs = zip(values, self.dtypes, strict=True)
            values = [jax.lax.convert_element_type(u, d) for u, d in pairs]
        return [applied(u, joined(p)) for u, p in zip(values, self.p, strict=True)]


_FLOAT0 = jax.dtypes.float0


def _is_none(x: Leaf) -> bool:
    return x is None


def _dtype_of_update(g: Leaf, p: Leaf) -> DType | None:
    """The dtype of a gradient that moves its parameter; None for others.

    Integers, booleans and keys do not move: their gradient is None, float0 or an integer.
    """
    if g is None or (
        not is_floating(g) and (p is None or not is_floating(p) or g.dtype == _FLOAT0)
    ):
        return None
    try:
        dtype = leaf_dtype(g)
    except TypeError as error:
        raise ValueError(
            f"the gradient has dtype {error}, which has no average: leave the leaf out with"
            f" optax.masked(..., mask), or pass None as its gradient."
        ) from None
    if not is_floating(p):
        raise ValueError(
            f"the parameter has dtype {p.dtype} and keeps no state: pass None as its gradient, or"
            f" make it bfloat16 or float32."
        )
    return dtype


def zeros_for(g: Leaf, p: Leaf) -> Leaf:
    """The update of a leaf that does not move; None for a key, to which nothing can be added."""
    if p is None:  # Booleans add to every integer.
        return jnp.zeros(g.shape, bool if g.dtype == _FLOAT0 else g.dtype)
    return None if jnp.issubdtype(p.dtype, jax.dtypes.prng_key) else jnp.zeros_like(p)


def of_leaf(factors: tuple[Factor, ...], i: int) -> tuple[Array, ...]:
    """The factors of the leaf with this index."""
    return tuple(f[i] if isinstance(f, dict) else f for f in factors)


def scaled(x: Leaf, factors: tuple[Array, ...] = ()) -> Array:
    """An array in the dtype of arithmetic, times some factors; a false one makes it zero."""
    x = jax.lax.convert_element_type(x, wider_dtype(leaf_dtype(x), _FLOAT32))
    with jax.numpy_dtype_promotion("standard"):  # A complex gradient times a real number.
        for factor in factors:
            if factor.dtype == jnp.bool_:
                x = select(factor, x, 0)
            else:
                x = x * jax.lax.convert_element_type(factor, jnp.finfo(x.dtype).dtype)
    return x


_FLOAT32 = jnp.dtype(jnp.float32)


def applied(u: Array, p: Leaf) -> Array:
    """θ + u, in the parameter's dtype."""
    with jax.numpy_dtype_promotion("standard"):
        return jax.lax.convert_element_type(scaled(p) + scaled(u), jnp.result_type(p))


def joined(p: Leaf) -> Leaf:
    """The weights of a `Split`; any other parameter itself."""
    return p.joined() if isinstance(p, Split) else p


@jax.jit  # Traced once per shape, not per leaf.
def _renewed(p: Split, x: Array) -> Split:
    def one_layer(number: Array, p: Split, x: Array) -> Split:
        return p.of_layer(number).renewed(x)

    return over_layers(one_layer, p.layers, p.stride, p, x) if p.layers else p.renewed(x)


def wider(dtype: DType, p: Leaf) -> DType:
    """The dtype of an update: the gradient's, or the parameter's, which a narrower one rounds."""
    return dtype if p is None else wider_dtype(dtype, leaf_dtype(p))


# One program when called outside of a program: its five operations on a scalar would each take as
# long as the step of a small leaf.
@functools.partial(jax.jit, inline=True)
def _counted(count: Count, ok: Array | None) -> Count:
    one_more: Count = next_count(count)
    return one_more if ok is None else jnp.where(ok, one_more, count)


PASS_ON = (
    "pass on what init or the last step of this transformation returned, in the order"
    " tx.update(grads, state, params) or adam_jax.step(tx, grads, state, params)."
)
"""What to pass instead of a wrong state, which may be another argument in the wrong place."""


def check_state(state: State, kind: type, described: str = "") -> None:
    """Checks that a state has the type that `init` of this transformation returns.

    Raises:
      ValueError: it has not; `described` says what it must be, if that is more than the type.
    """
    if not isinstance(state, kind):
        wanted = described or printed(kind)
        raise ValueError(f"the state must be {wanted}, got {type(state).__name__}: {PASS_ON}")


class NoMember(ValueError):
    """A body is not a member of this package, nor a wrapper of one that can be edited."""


class Body(abc.ABC):
    """One optimizer step inside a transformation: a `frozen_pytree`.

    It compares by value, and its numbers can be traced. A wrapper is a body that holds another.

    Attributes:
      keeps_results: it returns the step that it gets, also one that is `done`.
    """

    keeps_results: bool = False

    @abc.abstractmethod
    def init(self, params: Params) -> State:
        """The state before the first step."""

    @abc.abstractmethod
    def run(self, step: Step, state: State) -> tuple[Step, State]:
        """One step: what follows sees the step that this returns.

        Args:
          step: the gradients.
          state: the result of `init` or of the last step.

        Returns:
          The updates, or the results if the step is `done`; and the new state.
        """

    def update(
        self, updates: Updates, state: State, params: Params = None, **extra_args: Leaf
    ) -> Result:
        """Returns the updates, from the gradients, and the new state."""
        return self._stepped(state, Step.of(updates, params, False, extra_args))

    def step(self, grads: Updates, state: State, params: Params, **extra_args: Leaf) -> Result:
        """`update` and `optax.apply_updates`, in one pass over each leaf."""
        return self._stepped(state, Step.of(grads, params, True, extra_args))

    def _stepped(self, state: State, step: Step) -> Result:
        out, state = self.run(step, state)
        return out.result(), state

    def told_of(self, layers: Layers) -> "Body":
        """The same body, and those inside it, with these layers declared."""
        made: Any = jax.tree.map(
            lambda x: x.told_of(layers) if isinstance(x, Body) else x,
            self,
            is_leaf=lambda x: isinstance(x, Body) and x is not self,
        )
        known = any(field.name == "layers" for field in dataclasses.fields(made))
        return dataclasses.replace(made, layers=layers) if known else made

    def edited(self, edit: Callable[[Any], Any]) -> "Body":
        """The same body with its `Member` edited; other bodies refuse.

        Raises:
          NoMember: always; the caller adds what to write instead.
        """
        raise NoMember(type(self).__name__)


def call_of(body: Any) -> str:
    """The call that makes a body, with its numbers: `ema_params(decay=0.999)`."""
    if hasattr(body, "call"):
        return body.call()
    in_words = re.sub(r"(?<!^)(?=[A-Z])", "_", type(body).__name__).lower()
    return f"{in_words}({', '.join(arguments([body]))})"


def arguments(parts: Iterable[Any]) -> list[str]:
    """The numbers that differ from their defaults, as arguments; the learning rate first."""

    def shown(x: Any) -> Any:
        return "traced" if isinstance(x, jax.core.Tracer) else getattr(x, "__name__", x)

    found: list[str] = []
    for part in parts:
        if isinstance(part, DecayRate):
            b = shown(part.complement)
            b = b if isinstance(b, str) else 1 - b
            found.append(f"{part.name}={round(b, 12) if isinstance(b, float) else b}")
            continue
        if isinstance(part, ScheduledRate):
            found.append(f"{part.name}={shown(part.schedule)}")
        for field in dataclasses.fields(part):
            x = getattr(part, field.name)
            inside = list(x) if isinstance(x, tuple) else [x]
            if field.metadata.get("static") or x is None or inside == [field.default]:
                continue
            if isinstance(inside[0], Body):
                found += map(call_of, inside)
            elif isinstance(x, dict):
                constant = [k for k, number in x.items() if not dataclasses.is_dataclass(number)]
                found += [f"{name}={shown(x[name])}" for name in constant]
            elif dataclasses.is_dataclass(inside[0]):
                # A hyperparameter around a number has the name of that number's field.
                found += [text.replace("inner=", f"{field.name}=") for text in arguments(inside)]
            else:
                found.append(f"{field.name}={shown(x)}")
    return sorted(dict.fromkeys(found), key=lambda text: not text.startswith("learning_rate"))
