"""The arithmetic of one leaf: its rules, one after the other, and what its slots are stored as."""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from adam_jax._types import DType, Function, Leaf, PyTree, Scalars, Stored
from adam_jax.engine.plan import Plan
from adam_jax.engine.trees import chosen
from adam_jax.engine.unrounded import Pending, completed
from adam_jax.formats.base import Format, LinearFormat, MeasuredFormat, ReducedFormat
from adam_jax.formats.noise import Positions, bits_of_moments
from adam_jax.formats.weights import Landed, Split
from adam_jax.rules.arithmetic import bounded
from adam_jax.rules.base import Average, Renewed, Rule
from adam_jax.xla.barrier import computed_again
from adam_jax.xla.calls import without_calls
from adam_jax.xla.maxima import InBlocks, largest
from adam_jax.xla.products import no_product


class LeafArrays(NamedTuple):
    """The arrays of one leaf.

    Attributes:
      g: the gradient.
      pending: what is to be done to it first.
      stored: per rule, its slots as their formats keep them.
      param: the parameter, or a `Split`; None if no rule reads it and it is not to be changed.
      salt: of the leaf and the step, for formats that round stochastically; None if none.
    """

    g: Leaf
    pending: Pending
    stored: tuple[tuple[Leaf, ...], ...]
    param: Leaf
    salt: PyTree

    def further(self, number: jax.Array) -> "LeafArrays":
        """With the random bits of the leaf which comes so many leaves later; uint32."""
        split = isinstance(self.param, Split)
        return self._replace(
            param=self.param.further(number) if split else self.param,
            salt=None if self.salt is None else self.salt.further(number),
        )


class Program(NamedTuple):
    """What shapes the program of a leaf, besides its arrays and its rules.

    Attributes:
      formats: per rule, one format per slot.
      dtype: of the result, the only place where the update is rounded; a `Split` has its own.
      apply: return the new parameter, θ + u, instead of the update u.
      plan: how a kernel goes through the leaf; a string says why none does.
      parts: how one goes through what each of several devices has of it, and what that is; None if
        none does, or if it is not known.
      layers: how many axes of layers the leaf has, each layer a tensor of its own.
      stride: how many leaves later the next layer comes, for its random bits.
    """

    formats: tuple[tuple[Format, ...], ...]
    dtype: DType
    apply: bool
    plan: Plan | str
    parts: tuple[Plan, NamedSharding] | None = None
    layers: int = 0
    stride: int = 0


Steps = tuple[tuple[Rule, Scalars], ...]
"""Each rule that a leaf runs, in their order, with its scalars of this optimizer step."""

Stepped = tuple[jax.Array | Landed, tuple[tuple[Leaf, ...], ...]]
"""The update or the new parameter, and the new stored slots."""


def leaf_step(
    program: Program,
    steps: Steps,
    leaf: LeafArrays,
    taken: jax.Array | None,
    tile: Positions | None = None,
) -> Stepped:
    """Runs the rules on one leaf, in float32 or wider from the first to the last.

    Args:
      program: what shapes it.
      steps: the rules, with their scalars.
      leaf: its arrays.
      taken: whether the step is taken; None for yes.
      tile: where the elements lie, if the arrays are those of a tile of a leaf, in a kernel.
    """
    # Every dtype is converted by hand below. A complex leaf still mixes complex and real arrays
    # (mu / √nu), for which strict promotion has no spelling.
    with jax.numpy_dtype_promotion("standard"), without_calls():
        result, slots, _ = _ruled(program, steps, leaf, taken)
        measures = _measures(program.formats, slots)
        if tile is None and any(
            isinstance(f, MeasuredFormat) for fs in program.formats for f in fs
        ):
            # Computed again behind this: else XLA:GPU would store the float32 moments, 8 bytes per
            # parameter, and not compute twice what is measured in one kernel and coded in another.
            # The measures go through it too: else, of large leaves, it would code one moment while
            # it measures the other, a kernel more. A parameter or a gradient does not: it may be a
            # result, and would be stored.
            stored, measures = computed_again((leaf.stored, measures))
            leaf = leaf._replace(stored=stored)
            result, slots, _ = _ruled(program, steps, leaf, taken)
        averages = _map_formats(lambda *_: None, program.formats)
        if any(isinstance(f, LinearFormat) for fs in program.formats for f in fs):
            # Of gradients that are not bounded: of bounded ones XLA:GPU would store the squares.
            averages = _ruled(program, steps, leaf, taken, bound=lambda g: g)[2]
        where = tile or jnp.shape(leaf.g)
        numbers = itertools.count()

        def encoded(
            fmt: Format, x: jax.Array, measure: PyTree, average: Leaf, old: PyTree
        ) -> Stored:
            drawn = None
            if fmt.stochastic:
                drawn = bits_of_moments(where, leaf.salt, next(numbers))
            if isinstance(fmt, LinearFormat) and average is not None:
                stored = fmt.averaged(old, average.term, average.rate.average)
            elif isinstance(fmt, MeasuredFormat):
                stored = fmt.code(x, drawn, measure)
            else:
                stored = fmt.encode(x, drawn)
            # What is stored already may be rounded otherwise now, or not be what it is decoded to.
            return chosen(taken, stored, old) if fmt.rounds else stored

        if isinstance(leaf.param, Split):
            new = chosen(taken, leaf.param.renewed(result, where), leaf.param)
            result = leaf.param.landed(new, program.apply)
        else:
            result = jax.lax.convert_element_type(result, program.dtype)
        columns = (slots, measures, averages, leaf.stored)
        return result, _map_formats(encoded, program.formats, *columns)


def _measures(formats: tuple[tuple[Format, ...], ...], slots: PyTree) -> PyTree:
    """What the formats that measure know of their slots, of all by one reduction; else None."""

    def measured(fmt: Format, x: jax.Array) -> InBlocks | None:
        return fmt.measured(x) if isinstance(fmt, MeasuredFormat) else None

    wanted = _map_formats(measured, formats, slots)
    wanted, structure = jax.tree.flatten(wanted, is_leaf=lambda x: isinstance(x, InBlocks))
    return jax.tree.unflatten(structure, largest(wanted))


def _map_formats(f: Function, formats: tuple[tuple[Format, ...], ...], *columns: PyTree) -> PyTree:
    """f of each format and what belongs to it, rule by rule and slot by slot."""
    rules = zip(formats, *columns, strict=True)
    return tuple(tuple(f(*entry) for entry in zip(*rule, strict=True)) for rule in rules)


def _ruled(
    program: Program,
    steps: Steps,
    leaf: LeafArrays,
    taken: jax.Array | None,
    bound: Callable[[jax.Array], jax.Array] = bounded,
) -> tuple[jax.Array, tuple[tuple[jax.Array, ...], ...], tuple[tuple[Average | None, ...], ...]]:
    """The update or the new parameter; the slots, not yet in their formats; which are averages."""
    arithmetic = _arithmetic_dtype(leaf)
    real = jnp.finfo(arithmetic).dtype
    steps = jax.tree.map(lambda x: jax.lax.convert_element_type(x, real), steps)
    u = jax.lax.convert_element_type(completed(leaf.g, leaf.pending), arithmetic)
    # Here as well: else XLA:CPU would share g² with whoever measured the gradient to say whether it
    # is taken, and store it for that (12 times the cost of the measurement).
    u = chosen(taken, u, 0)
    p = leaf.param.joined() if isinstance(leaf.param, Split) else leaf.param
    p = None if p is None else jax.lax.convert_element_type(p, arithmetic)
    slots, averages = [], []
    for (rule, scalars), stored, formats in zip(steps, leaf.stored, program.formats, strict=True):
        old = {
            slot.name: _read(fmt, x, real if slot.magnitude else arithmetic)
            for slot, fmt, x in zip(rule.slots, formats, stored, strict=True)
        }
        g = bound(u) if rule.slots else u
        new: dict[str, jax.Array] = {}
        its_averages = []
        for slot, fmt in zip(rule.slots, formats, strict=True):
            x = rule.renewed(slot.name, g, old, new, scalars)
            average = x if isinstance(x, Average) else None
            x = _formed(fmt, x, old[slot.name], u if slot.name == _watched(rule) else None)
            # The update is made of this, and not of x: XLA:CPU would compute the parameter from the
            # old accumulator a second time, and keep a copy of it for that.
            new[slot.name] = chosen(taken, x, old[slot.name])
            its_averages.append(average)
        slots.append(tuple(new.values()))
        averages.append(tuple(its_averages))
        u = rule.update(g, old, new, scalars, p)
    if p is None or not (program.apply or isinstance(leaf.param, Split)):
        result = chosen(taken, u, 0)
    else:
        result = chosen(taken, p + u, p)
    return result, tuple(slots), tuple(averages)


def _read(fmt: Format, stored: Stored, dtype: DType) -> jax.Array:
    """A slot as rules read it; what is reduced has the size 1 along reduced axes."""
    return (fmt.reduced if isinstance(fmt, ReducedFormat) else fmt.decode)(stored, dtype)


def _formed(fmt: Format, x: Renewed, old: jax.Array, watch: jax.Array | None) -> jax.Array:
    """A renewed slot as rules read it; NaN where `watch` is not finite."""

    def shown(x: jax.Array) -> jax.Array:
        return x if watch is None else jnp.where(jnp.isfinite(watch), x, jnp.nan)

    if isinstance(fmt, ReducedFormat):
        if isinstance(x, Average):  # Reduced first: an average of elements is never formed.
            return x.rate.average(old, fmt.reduce(shown(x.term)))
        return fmt.reduce(shown(x))
    # XLA:CPU computes an average once for its codes and once for the update, each in its own way.
    return shown(no_product(x.rate.average(old, x.term)) if isinstance(x, Average) else x)


def _watched(rule: Rule) -> str:
    """The accumulator that shows an infinite gradient, which elsewhere is clipped.

    One alone, which its update is divided by if there is such: a selection that several loops share
    would be stored by XLA:CPU.
    """
    return next((slot for slot in rule.slots if slot.magnitude), rule.slots[0]).name


def _arithmetic_dtype(leaf: LeafArrays) -> DType:
    """float32, or wider where an array of this leaf is; complex if the gradient is."""
    arrays = [
        x
        for x in jax.tree.leaves(leaf._replace(pending=()))
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    # Codes of 8 bits are narrower, and do not promote to anything.
    dtypes = [jnp.finfo(x.dtype).dtype for x in arrays if x.dtype.itemsize > 1]
    dtype = functools.reduce(jnp.promote_types, dtypes, jnp.dtype(jnp.float32))
    return jnp.promote_types(dtype, jnp.complex64) if jnp.iscomplexobj(leaf.g) else dtype
