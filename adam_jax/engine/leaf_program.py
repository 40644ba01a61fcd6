"""Leaves that share a program, and how many are lowered together."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.core

from adam_jax.engine.call import Call
from adam_jax.engine.layers import over_layers
from adam_jax.engine.leaf_step import LeafArrays, Program, Stepped, Steps, leaf_step
from adam_jax.engine.pallas import Kernel, KernelOfParts
from adam_jax.engine.scalars import Structures, Values, rule_of
from adam_jax.xla.tpu import Kernels, on_tpus
from adam_jax.xla.turns import alone, first_turn, in_turn, turn_after


class LeafGroup(NamedTuple):
    """Leaves that share a program.

    Attributes:
      program: the static description of the step.
      steps: the pipeline of rules that it runs, and which of its rules.
      leaves: their arrays.
    """

    program: Program
    steps: tuple[int, tuple[int, ...]]
    leaves: list[LeafArrays]


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
    step = functools.partial(_by_layer if program.layers else leaf_step, program)
    if isinstance(program.plan, str):
        return step(steps, leaf, taken)
    kernel = Kernel(program, program.plan, jax.tree.structure((steps, leaf, taken)))
    interpreted = dataclasses.replace(kernel, interpret=True) if program.plan.everywhere else None
    parts = None
    if program.parts is not None:
        plan, sharding = program.parts
        whole = dataclasses.replace(kernel, plan=plan, whole=leaf.g.shape)
        parts = KernelOfParts(whole, sharding)
    return on_tpus(step, Kernels(kernel, parts, interpreted), steps, leaf, taken)


def _by_layer(program: Program, steps: Steps, leaf: LeafArrays, taken: jax.Array | None) -> Stepped:
    """`leaf_step` on each layer of a leaf."""

    def step(number: jax.Array, layer: LeafArrays) -> Stepped:
        return leaf_step(program, steps, layer.further(number), taken)

    return over_layers(step, program.layers, program.stride, leaf)
