"""The program of a leaf: its rules in sequence, the storage of its slots, and its compilation.

Leaves that share a program are lowered together, in chunks.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator

import jax
import jax.core
import jax.numpy as jnp

from adam_jax._types import DType, Function, Leaf, PyTree, Stored
from adam_jax.engine.call import Call
from adam_jax.engine.layers import over_layers
from adam_jax.engine.leaf import LeafArrays, LeafGroup, Program, Reduced, Ruled, Stepped, Steps
from adam_jax.engine.pallas import Kernel, KernelOfParts
from adam_jax.engine.scalars import Structures, Values, rule_of
from adam_jax.engine.trees import chosen
from adam_jax.engine.unrounded import completed
from adam_jax.formats.base import Format
from adam_jax.formats.block_means import MeansOverAxes
from adam_jax.formats.blockwise import Blockwise
from adam_jax.formats.factored import RowsAndColumns
from adam_jax.formats.noise import Positions, bits_of_moments
from adam_jax.formats.rounding import Split
from adam_jax.rules.arithmetic import bounded
from adam_jax.rules.base import Average, Renewed, Rule
from adam_jax.xla.barrier import computed_again
from adam_jax.xla.calls import without_calls
from adam_jax.xla.maxima import InBlocks, largest
from adam_jax.xla.mosaic import in_tiles
from adam_jax.xla.products import no_product
from adam_jax.xla.tpu import Kernels, on_tpus
from adam_jax.xla.turns import alone, first_turn, in_turn, turn_after


def run(
    groups: list[LeafGroup], structures: Structures, values: Values, call: Call
) -> list[list[Stepped]]:
    """Steps the leaves of every group; each program is traced once.

    Inside a jit, each chunk of leaves is one call, which XLA inlines: n leaves of a group need
    about √n / 2 lowered programs of a leaf, and 2√n calls. Groups of equal size, such as the layers
    of a transformer, share their calls. Outside a jit, each leaf is dispatched separately, because
    leaves may be on different devices.
    """
    results: list[list[Stepped]] = [[] for _ in groups]
    rounded = any(f.rounds for group in groups for fs in group.program.formats for f in fs)
    turn = first_turn() if rounded and _is_traced(groups) and alone() else None
    for indices, part in _chunks(groups):
        its = [groups[k] for k in indices]
        programs = tuple((group.program, group.steps) for group in its)
        leaves = [group.leaves[part] for group in its]
        chunk, turn = chunk_step(programs, structures, values, leaves, call.ok, turn)
        for k, stepped in zip(indices, chunk, strict=True):
            results[k] += stepped
    return results


def _chunks(groups: list[LeafGroup]) -> Iterator[tuple[list[int], slice]]:
    """Which groups share a call, and which of their leaves; in the order of the leaves."""
    tracing = _is_traced(groups)
    together: dict[int, list[int]] = {}
    for k, group in enumerate(groups):
        together.setdefault(len(group.leaves) if tracing else -k, []).append(k)
    for indices in together.values():
        count = len(groups[indices[0]].leaves)
        size = _chunk_size(count, len(indices)) if tracing else 1
        whole = count // size * size
        yield from ((indices, slice(i, i + size)) for i in range(0, whole, size))
        yield from ((indices, slice(i, i + 1)) for i in range(whole, count))


def _is_traced(groups: list[LeafGroup]) -> bool:
    return any(isinstance(group.leaves[0].g, jax.core.Tracer) for group in groups)


def _chunk_size(count: int, groups: int) -> int:
    """About √(count / groups) / 2, preferably a near divisor of count.

    Half, because lowering another program takes about four times as long as another call.
    """
    size = max(math.isqrt(count // (4 * groups)), 1)
    return next((d for d in range(size, size // 2, -1) if count % d == 0), size)


@functools.partial(jax.jit, static_argnums=(0, 1))
def chunk_step(
    programs: tuple[tuple[Program, tuple[int, tuple[int, ...]]], ...],
    structures: Structures,
    values: Values,
    leaves: list[list[LeafArrays]],
    taken: jax.Array | None,
    turn: jax.Array | None,
) -> tuple[list[list[Stepped]], jax.Array | None]:
    """`leaf_step` on leaves of some groups; with a turn, one after another (see turns.py)."""
    results = []
    for (program, (pipeline, used)), its in zip(programs, leaves, strict=True):
        its_steps = tuple(rule_of(structures[pipeline][k], *values[pipeline][k]) for k in used)
        results.append([])
        for leaf in its:
            leaf = leaf if turn is None else leaf._replace(g=in_turn(turn, leaf.g))
            results[-1].append(_step(program, its_steps, leaf, taken))
            turn = turn if turn is None else turn_after(turn, results[-1][-1])
    return results, turn


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _step(program: Program, steps: Steps, leaf: LeafArrays, taken: jax.Array | None) -> Stepped:
    """`leaf_step` by XLA, or by a kernel on TPUs."""
    by_xla = functools.partial(_by_layer if program.layers else leaf_step, program)
    if isinstance(program.plan, str):
        return by_xla(steps, leaf, taken)
    # A kernel gets norms and means of the leaf from XLA. XLA's own program computes them again.
    args = steps, leaf, taken, _reduced(program, steps, leaf, taken)
    kernel = Kernel(_tile_step, program, program.plan, jax.tree.structure(args))
    interpreted = dataclasses.replace(kernel, interpret=True) if program.plan.everywhere else None
    parts = None
    if program.parts is not None:
        plan, sharding = program.parts
        whole = dataclasses.replace(kernel, plan=plan, whole=leaf.g.shape)
        parts = KernelOfParts(whole, sharding)
    return on_tpus(lambda *args: by_xla(*args[:3]), Kernels(kernel, parts, interpreted), *args)


def _reduced(program: Program, steps: Steps, leaf: LeafArrays, taken: Leaf) -> Reduced:
    """The norms and means of the leaf that its rules need."""
    if not any(rule.reduces for rule, _ in steps):
        return {}
    with jax.numpy_dtype_promotion("standard"), without_calls():
        return _ruled(program, steps, leaf, taken).reduced


def _by_layer(program: Program, steps: Steps, leaf: LeafArrays, taken: jax.Array | None) -> Stepped:
    """`leaf_step` on each layer of a leaf."""

    def step(number: jax.Array, layer: LeafArrays) -> Stepped:
        return leaf_step(program, steps, layer.of_layer(number), taken)

    return over_layers(step, program.layers, program.stride, leaf)


def leaf_step(
    program: Program,
    steps: Steps,
    leaf: LeafArrays,
    taken: jax.Array | None,
    reduced: Reduced | None = None,
    tile: Positions | None = None,
) -> Stepped:
    """Runs the rules on one leaf, entirely in float32 or wider.

    Args:
      program: the static description of the step.
      steps: the rules, with their scalars.
      leaf: its arrays.
      taken: whether the step is taken; None for yes.
      reduced: the result of `_reduced` for the leaf, if the arrays are a tile of it in a kernel.
      tile: the positions of the tile's elements.
    """
    # Every dtype is converted explicitly below. A complex leaf still mixes complex and real arrays
    # (mu / √nu), which strict promotion cannot express.
    in_kernel = in_tiles(tile is not None)
    with jax.numpy_dtype_promotion("standard"), without_calls(), in_kernel:
        ruled = _ruled(program, steps, leaf, taken, reduced=reduced)
        measures = averages = _map_formats(lambda *_: None, program.formats)
        measuring = any(isinstance(f, Blockwise) for fs in program.formats for f in fs)
        if measuring:
            measures = _measures(program.formats, ruled.slots)
        if measuring and tile is None:
            # Recomputed after this barrier: otherwise XLA:GPU would store the float32 moments, 8
            # bytes per parameter, instead of computing them in both the measuring and the encoding
            # kernel. The measures also pass the barrier: otherwise, for large leaves, it would
            # encode one moment while it measures the other, which takes another kernel. Parameters
            # and gradients do not pass it: they may be results, and would be stored.
            stored, measures = computed_again((leaf.stored, measures))
            leaf = leaf._replace(stored=stored)
            ruled = _ruled(program, steps, leaf, taken)
        if any(isinstance(f, RowsAndColumns) for fs in program.formats for f in fs):
            # From unbounded gradients: XLA:GPU would store the squares of bounded ones.
            averages = _ruled(program, steps, leaf, taken, bound=lambda g: g).averages
        where = tile or jnp.shape(leaf.g)
        numbers = itertools.count()

        def encoded(
            fmt: Format, x: jax.Array, measure: PyTree, average: Leaf, old: PyTree
        ) -> Stored:
            drawn = None
            if fmt.stochastic:
                drawn = bits_of_moments(where, leaf.salt, next(numbers))
            if isinstance(fmt, RowsAndColumns) and average is not None:
                stored = fmt.averaged(old, average.term, average.rate.average)
            elif isinstance(fmt, Blockwise):
                stored = fmt.code(x, drawn, measure)
            else:
                stored = fmt.encode(x, drawn)
            # Re-encoding might round differently, or not reproduce the stored form.
            return chosen(taken, stored, old) if fmt.rounds else stored

        if isinstance(leaf.param, Split):
            new = chosen(taken, leaf.param.renewed(ruled.result, where), leaf.param)
            result = leaf.param.stepped_to(new, program.apply)
        else:
            result = jax.lax.convert_element_type(ruled.result, program.dtype)
        columns = (ruled.slots, measures, averages, leaf.stored)
        return result, _map_formats(encoded, program.formats, *columns)


# Traced once for all tiles of one shape, of any leaf.
_tile_step = functools.partial(jax.jit, static_argnums=0, inline=True)(leaf_step)


def _measures(formats: tuple[tuple[Format, ...], ...], slots: PyTree) -> PyTree:
    """The measures of all slots with a measuring format, by one reduction; None for others."""

    def measured(fmt: Format, x: jax.Array) -> InBlocks | None:
        return fmt.measured(x) if isinstance(fmt, Blockwise) else None

    wanted = _map_formats(measured, formats, slots)
    wanted, structure = jax.tree.flatten(wanted, is_leaf=lambda x: isinstance(x, InBlocks))
    return jax.tree.unflatten(structure, largest(wanted))


def _map_formats(f: Function, formats: tuple[tuple[Format, ...], ...], *columns: PyTree) -> PyTree:
    """f of each format and its entries in the columns, rule by rule and slot by slot."""
    rules = zip(formats, *columns, strict=True)
    return tuple(tuple(f(*entry) for entry in zip(*rule, strict=True)) for rule in rules)


def _ruled(
    program: Program,
    steps: Steps,
    leaf: LeafArrays,
    taken: jax.Array | None,
    bound: Callable[[jax.Array], jax.Array] = bounded,
    reduced: Reduced | None = None,
) -> Ruled:
    """Runs the rules, with these scalars of the leaf or its own."""
    arithmetic = _arithmetic_dtype(leaf)
    real = jnp.finfo(arithmetic).dtype
    steps = jax.tree.map(lambda x: jax.lax.convert_element_type(x, real), steps)
    u = jax.lax.convert_element_type(completed(leaf.g, leaf.pending), arithmetic)
    # Also here: otherwise XLA:CPU would share g² with the code that measured the gradient to decide
    # whether the step is taken, and store it for that (12 times the cost of the measurement).
    u = chosen(taken, u, 0)
    p = leaf.param.joined() if isinstance(leaf.param, Split) else leaf.param
    p = None if p is None else jax.lax.convert_element_type(p, arithmetic)
    slots, averages, of_leaf = [], [], {}
    rules = zip(steps, leaf.stored, program.formats, strict=True)
    for k, ((rule, scalars), stored, formats) in enumerate(rules):
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
            # The update uses this selected value, not x. Otherwise XLA:CPU would recompute the
            # parameter from the old accumulator, and keep a copy of it for that.
            new[slot.name] = chosen(taken, x, old[slot.name])
            its_averages.append(average)
        slots.append(tuple(new.values()))
        averages.append(tuple(its_averages))
        if rule.reduces:
            of_leaf[k] = reduced[k] if reduced else rule.of_leaf(g, old, new, scalars, p)
        u = rule.update(g, old, new, of_leaf.get(k, scalars), p)
    if p is None or not (program.apply or isinstance(leaf.param, Split)):
        result = chosen(taken, u, 0)
    else:
        result = chosen(taken, p + u, p)
    return Ruled(result, tuple(slots), tuple(averages), of_leaf)


def _read(fmt: Format, stored: Stored, dtype: DType) -> jax.Array:
    """A slot as rules read it; a reduced one has size 1 along reduced axes."""
    return (fmt.means if isinstance(fmt, MeansOverAxes) else fmt.decode)(stored, dtype)


def _formed(fmt: Format, x: Renewed, old: jax.Array, watch: jax.Array | None) -> jax.Array:
    """An updated slot as rules read it; NaN where `watch` is not finite."""

    def shown(x: jax.Array) -> jax.Array:
        return x if watch is None else jnp.where(jnp.isfinite(watch), x, jnp.nan)

    if isinstance(fmt, MeansOverAxes):
        if isinstance(x, Average):  # Reduced first: no elementwise average is materialized.
            return x.rate.average(old, fmt.means_of(shown(x.term)))
        return fmt.means_of(shown(x))
    # XLA:CPU computes an average once for its codes and once for the update, each in its own way.
    return shown(no_product(x.rate.average(old, x.term)) if isinstance(x, Average) else x)


def _watched(rule: Rule) -> str:
    """The accumulator in which an infinite gradient stays visible; elsewhere it is clipped.

    Only one, preferably the divisor of the update: XLA:CPU would store a select that several loops
    share.
    """
    return next((slot for slot in rule.slots if slot.magnitude), rule.slots[0]).name


def _arithmetic_dtype(leaf: LeafArrays) -> DType:
    """float32, or the widest dtype of this leaf's arrays; complex if the gradient is."""
    arrays = [
        x
        for x in jax.tree.leaves(leaf._replace(pending=()))
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    # 8-bit codes are narrower, and do not promote.
    dtypes = [jnp.finfo(x.dtype).dtype for x in arrays if x.dtype.itemsize > 1]
    dtype = functools.reduce(jnp.promote_types, dtypes, jnp.dtype(jnp.float32))
    return jnp.promote_types(dtype, jnp.complex64) if jnp.iscomplexobj(leaf.g) else dtype
