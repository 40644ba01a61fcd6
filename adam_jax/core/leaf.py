"""The program of one leaf: decode its slots, run its rules, encode its slots. No trees."""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax import Array

from adam_jax._types import DType, Leaf, Number, PyTree
from adam_jax.core.stacked import over_layers
from adam_jax.core.step import scaled
from adam_jax.formats.base import Format
from adam_jax.formats.noise import Positions, bits_of_moments
from adam_jax.formats.rounding import Split
from adam_jax.numerics import select
from adam_jax.rules.base import View
from adam_jax.xla.barrier import computed_again
from adam_jax.xla.maxima import largest
from adam_jax.xla.mosaic import in_tiles
from adam_jax.xla.turns import first_turn, in_turn, one_device, turn_after


class Plan(NamedTuple):
    """The static part of the program of a leaf; leaves with equal plans and shapes share it.

    Attributes:
      rules: the structure of the rules; their numbers are arrays.
      formats: per rule, one per slot.
      arithmetic: the dtype of all arithmetic: float32, or the widest of the leaf's arrays.
      dtype: of the result, which is rounded once; a `Split` has its own.
      apply: the result is the new parameter θ + u, not the update u.
      kernel: how a TPU's kernel traverses the whole leaf, or why none does.
      parts: how one traverses each device's part, and the sharding; None if none does.
      layers: the number of layer axes; each layer counts as a leaf.
      stride: the distance in leaves to the next layer, for its random bits.
    """

    rules: PyTree
    formats: tuple[tuple[Format, ...], ...]
    arithmetic: DType
    dtype: DType
    apply: bool
    kernel: Any
    parts: Any = None
    layers: int = 0
    stride: int = 0

    @property
    def tiled(self) -> bool:
        """Whether a kernel traverses the leaf or the parts of it."""
        return self.parts is not None or not isinstance(self.kernel, str)

    @property
    def way(self) -> str:
        """How the leaf is stepped on TPUs, in words."""
        return "one kernel" if self.tiled else f"XLA: {self.kernel}"


class Arrays(NamedTuple):
    """The arrays of a leaf.

    Attributes:
      g: the gradient.
      factors: to apply to it first; see `Step`.
      stored: per rule, the stored forms of its slots.
      param: the parameter, or a `Split`; None if no rule reads it and it is not updated here.
      salt: of the leaf and the step, for formats that round stochastically; None otherwise.
      update_factors: to apply to the update.
    """

    g: Array
    factors: tuple[Array, ...]
    stored: tuple[tuple[Any, ...], ...]
    param: Leaf
    salt: Any
    update_factors: tuple[Array, ...] = ()

    def of_layer(self, number: Array) -> "Arrays":
        """The same with the random bits of the leaf that comes `number` (uint32) leaves later."""
        param = self.param.of_layer(number) if isinstance(self.param, Split) else self.param
        return self._replace(param=param, salt=self.salt and self.salt.of_layer(number))


Result = tuple[Any, tuple[tuple[Any, ...], ...]]
"""The result of one leaf, and per rule its stored slots."""


def run_rules(
    plan: Plan,
    numbers: Sequence[Number],
    leaf: Arrays,
    taken: Array | None,
    sums: Sequence[Array] | None = None,
    bound: bool = True,
) -> tuple[Array, list[View]]:
    """The update or the new parameter in the dtype of arithmetic; and the view of each rule."""
    real = jnp.finfo(plan.arithmetic).dtype
    rules = plan.rules.unflatten([jax.lax.convert_element_type(x, real) for x in numbers])
    u = jax.lax.convert_element_type(scaled(leaf.g, leaf.factors), plan.arithmetic)
    # Also here: otherwise XLA:CPU would share g² with the code that measured the gradient to decide
    # whether the step is taken, and store it for that (12 times the cost of the measurement).
    u = select(taken, u, 0)
    split = isinstance(leaf.param, Split)
    p = leaf.param.joined() if split else leaf.param
    p = None if p is None else jax.lax.convert_element_type(p, plan.arithmetic)
    views: list[View] = []
    known, is_product = None if sums is None else iter(sums), bool(leaf.factors)
    for rule, stored, formats in zip(rules, leaf.stored, plan.formats, strict=True):
        views.append(View(rule, u, is_product, p, stored, formats, taken, known, bound))
        u, is_product = rule.update(views[-1]), rule.ends_in_product
    u = scaled(u, leaf.update_factors) if leaf.update_factors else u
    if p is not None and (plan.apply or split):
        return select(taken, p + u, p), views
    return select(taken, u, 0), views


def leaf_step(
    plan: Plan,
    numbers: Sequence[Number],
    leaf: Arrays,
    taken: Array | None,
    sums: Sequence[Array] | None = None,
    tile: Positions | None = None,
) -> Result:
    """The step of one leaf, or of a tile of it in a kernel.

    Args:
      plan: its static part.
      numbers: those of the rules.
      leaf: its arrays.
      taken: `Step.ok`: whether the step is taken; None for yes.
      sums: for a tile, those that the rules ask for.
      tile: the positions of the tile's elements in the leaf.
    """
    # Every dtype is converted explicitly. A complex leaf still mixes complex and real arrays (mu /
    # √nu), which strict promotion cannot express. Functions of jnp are traced inline: as calls,
    # tracing AdamW for a new shape takes 5 ms instead of 3 (jax 0.10.2).
    with jax.numpy_dtype_promotion("standard"), jax.disable_jit(), in_tiles(tile is not None):
        result, views = run_rules(plan, numbers, leaf, taken, sums)
        formats: list[Any] = [fmt for fs in plan.formats for fmt in fs]
        measures: Sequence[Any] = [None] * len(formats)
        averages: list[Any] = [None] * len(formats)
        if any(fmt.measures for fmt in formats):
            measures = _measures(formats, _new_slots(views))
            if tile is None:
                # Recomputed after this barrier: otherwise XLA:GPU would store the float32 moments,
                # 8 bytes per parameter, instead of computing them in both the measuring and the
                # encoding kernel. The measures also pass the barrier: otherwise, for large leaves,
                # it would encode one moment while it measures the other, which takes another
                # kernel. Parameters and gradients do not pass it: they may be results, and would be
                # stored.
                stored, measures = computed_again((leaf.stored, measures))
                leaf = leaf._replace(stored=stored)
                result, views = run_rules(plan, numbers, leaf, taken, sums)
        if any(fmt.linear for fmt in formats):
            # From unbounded gradients: XLA:GPU would store the squares of bounded ones.
            _, unbounded = run_rules(plan, numbers, leaf, taken, sums, bound=False)
            averages = [view.averages.get(slot) for view in unbounded for slot in view.old]
        olds = [x for xs in leaf.stored for x in xs]
        new, count = [], itertools.count()
        columns = zip(formats, _new_slots(views), olds, measures, averages, strict=True)
        for fmt, x, old, measure, average in columns:
            noise = bits_of_moments(tile or x, leaf.salt, next(count)) if fmt.stochastic else None
            if fmt.linear and average is not None:
                rate, term = average
                stored = fmt.averaged(old, term, rate.average)
            elif fmt.measures:
                stored = fmt.code(x, noise, measure)
            else:
                stored = fmt.encode(x, noise)
            # Re-encoding might round differently, or not reproduce the stored form.
            new.append(select(taken, stored, old) if fmt.rounds else stored)
        if isinstance(leaf.param, Split):
            split = select(taken, leaf.param.renewed(result, tile), leaf.param)
            result = leaf.param.stepped_to(split, plan.apply)
        else:
            result = jax.lax.convert_element_type(result, plan.dtype)
        rest = iter(new)
        return result, tuple(tuple(itertools.islice(rest, len(fs))) for fs in plan.formats)


def _new_slots(views: Sequence[View]) -> list[Array]:
    """The renewed slots of all rules, in the order of the rules' slots."""
    return [view.new[slot] for view in views for slot in view.old]


def _measures(formats: Sequence[Any], slots: Sequence[Array]) -> list[Any]:
    """The measures of all slots with a measuring format, by one reduction; None for others."""
    pairs = zip(formats, slots, strict=True)
    wanted = [fmt.measured(x) if fmt.measures else None for fmt, x in pairs]
    found = iter(largest([x for x in wanted if x is not None]))
    return [None if x is None else next(found) for x in wanted]


def step_leaves(
    plans: Sequence[tuple[Plan, Sequence[Number]]], arrays: Sequence[Arrays], taken: Array | None
) -> Iterator[tuple[int, Result]]:
    """Steps all leaves; yields the index and the result of each.

    Args:
      plans: of each leaf, with the numbers of its rules; leaves that share a list share it.
      arrays: of each leaf.
      taken: `Step.ok`: whether the step is taken; None for yes.

    Inside a program, leaves with equal plans and shapes are traced and lowered once, in calls of
    several leaves. A call costs a quarter of a leaf, so that n leaves take about 2√n calls of √n/2.
    Outside, each leaf is a call, since leaves may be on different devices.
    """
    traced = any(isinstance(x.g, jax.core.Tracer) for x in arrays)
    alike: dict[Any, list[int]] = {}
    for i, ((plan, numbers), leaf) in enumerate(zip(plans, arrays, strict=True)):
        kind = (plan, id(numbers), jnp.shape(leaf.g)) if traced else i
        alike.setdefault(kind, []).append(i)
    rounds = any(fmt.rounds for plan, _ in plans for fmts in plan.formats for fmt in fmts)
    turn = first_turn() if traced and rounds and one_device() else None
    for indices in alike.values():
        plan, numbers = plans[indices[0]]
        size = _chunk_size(len(indices))
        whole = len(indices) // size * size
        chunks = [indices[k : k + size] for k in range(0, whole, size)]
        for some in [*chunks, *([i] for i in indices[whole:])]:
            leaves = [arrays[i] for i in some]
            results, turn = leaves_step(plan, numbers, leaves, taken, turn)
            yield from zip(some, results, strict=True)


def _chunk_size(count: int) -> int:
    """About √count / 2, preferably a near divisor of count."""
    size = max(math.isqrt(count // 4), 1)
    return next((d for d in range(size, size // 2, -1) if count % d == 0), size)


@functools.partial(jax.jit, static_argnums=0)
def leaves_step(
    plan: Plan,
    numbers: Sequence[Number],
    leaves: Sequence[Arrays],
    taken: Array | None,
    turn: Array | None,
) -> tuple[list[Result], Array | None]:
    """The step of some leaves; with a turn, one after another (see xla/turns.py)."""
    plain = not plan.tiled and not plan.layers
    results: list[Result] = []
    for leaf in leaves:
        leaf = leaf if turn is None else leaf._replace(g=in_turn(turn, leaf.g))
        results.append((_traced_once if plain else _special)(plan, numbers, leaf, taken))
        turn = turn if turn is None else turn_after(turn, results[-1])
    return results, turn


# Traced once for all leaves of one plan and shape; for a kernel, for all tiles of one shape.
_traced_once = functools.partial(jax.jit, static_argnums=0, inline=True)(leaf_step)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _special(plan: Plan, numbers: Sequence[Number], leaf: Arrays, taken: Array | None) -> Result:
    """`leaf_step` on each layer of a stacked leaf, or by a kernel on TPUs."""

    def by_xla(numbers: Sequence[Number], leaf: Arrays, taken: Array | None) -> Result:
        if not plan.layers:
            return leaf_step(plan, numbers, leaf, taken)

        def of_layer(number: Array, layer: Arrays) -> Result:
            return leaf_step(plan, numbers, layer.of_layer(number), taken)

        return over_layers(of_layer, plan.layers, plan.stride, leaf)

    if not plan.tiled:
        return by_xla(numbers, leaf, taken)
    sums: list[Array] = []
    if any(rule.reads_sums for rule in plan.rules.unflatten(numbers)):
        # A kernel gets sums over the leaf from XLA. XLA's own program computes them again.
        with jax.numpy_dtype_promotion("standard"), jax.disable_jit():
            sums = [x for view in run_rules(plan, numbers, leaf, taken)[1] for x in view.sums]
    from adam_jax.kernels.pallas import by_kernel  # Takes half of the time of `import adam_jax`.

    return by_kernel(_traced_once, by_xla, plan, (numbers, leaf, taken, sums))
