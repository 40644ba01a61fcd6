"""The rows of `benchmarks.tpu_hlo` that have to hold, in two minutes."""

import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adam_jax
from benchmarks.tpu_hlo_cases import BASE, CASES, Row, failures, leaf
from benchmarks.tpu_hlo_machine import placed, size_in_bytes, tpus
from benchmarks.tpu_hlo_rows import counted, measure

SQUARE, HEADS = (8192, 8192), (1024, 16, 64)
EIGHT = "8-bit moments"
ON_V5E = (
    BASE,
    "adam_jax: clip, skip, adamw",
    "bf16 moments",
    "factored nu",
    "stochastic bf16 moments",
    "4-bit moments",
    "bf16 weights, stochastic rounding",
    "bf16 weights, Kahan",
    "bf16 weights, residual 16",
    "bf16 weights, residual 8",
    "bf16 weights, residual 16, 8-bit moments",
)
ON_OTHERS = (BASE, EIGHT, "bf16 weights, residual 16, 8-bit moments")
COLLECTIVE = re.compile(
    r" ((?:all-(?:reduce|gather|to-all)|reduce-scatter|collective-permute)(?:-start)?)\("
)


def rows() -> Iterator[tuple[str, tuple[int, ...], bool, str]]:
    """Generation, shape, whether the kernel's instructions are counted, and the case."""
    yield from (("v5e", SQUARE, False, name) for name in ON_V5E)
    yield "v5e", SQUARE, True, EIGHT
    yield "v5e", HEADS, False, EIGHT
    yield from (("v6e", SQUARE, False, name) for name in ON_OTHERS)
    yield from (("v5p", SQUARE, False, name) for name in ON_OTHERS)


def sharded(*axes: str | None) -> list[str]:
    """What does not hold of one leaf of 8-bit moments, split over the 8 devices of v5e:2x4."""
    case, mesh = CASES[EIGHT], Mesh(np.array(tpus("v5e:2x4")), ("data",))
    split = PartitionSpec(*axes)
    params = leaf(SQUARE)
    state = jax.eval_shape(case.tx.init, params)
    specs = jax.tree.map(lambda x: split if x.ndim == 2 else PartitionSpec(), (params, state))
    places = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs,
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )

    def step(params: Any, state: Any, grads: Any) -> Any:
        return adam_jax.step(case.tx, grads, state, params)

    step = jax.shard_map(step, mesh=mesh, in_specs=(*specs, specs[0]), out_specs=specs)
    args = placed((params, state, params), (*places, places[0]))
    program = jax.jit(step, donate_argnums=(0, 1)).lower(*args).compile()
    text, memory = program.as_text() or "", program.memory_analysis()
    size = math.prod(SQUARE) / mesh.size
    found = counted(text)
    row: Row = {
        "generation": "v5e",
        "case": EIGHT,
        "leaves": 1,
        "floor B/p": size_in_bytes((params, state, params, params, state)) / math.prod(SQUARE),
        "HBM B/p": found.pop("HBM") / size,
        "temporary B/p": memory.temp_size_in_bytes / size,  # pyright: ignore
        **found,
    }
    missed = failures(row, case.bounds)
    return missed + [f"{name} over devices" for name in COLLECTIVE.findall(text)]


def checks() -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """What is looked at, in words, and what of it does not hold."""
    bases: dict[Any, Row] = {}

    def missed(generation: str, shape: tuple[int, ...], counts: bool, name: str) -> list[str]:
        base = bases.get((generation, shape))
        row = measure(generation, name, leaf(shape), base, shape if counts else None)
        if name == BASE:
            bases[generation, shape] = row
        return [] if row["verdict"] == "holds" else row["verdict"].split("; ")

    for row in rows():
        generation, shape, _, name = row
        words = f"{generation}, {' x '.join(map(str, shape))}, {name}"
        yield words, lambda row=row: missed(*row)
    for words, axes in (("rows", ("data", None)), ("columns", (None, "data"))):
        yield f"v5e:2x4, {words} over 8 devices, {EIGHT}", lambda axes=axes: sharded(*axes)


def run() -> int:
    """Prints a line for each row. Returns 1 if one does not hold."""
    start, held = time.perf_counter(), []
    for words, look in checks():
        try:
            found = look()
        except Exception as error:  # Every line is wanted, whatever fails.
            found = [f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"]
        held.append(not found)
        print(f"{words}: {'; '.join(found) or 'holds'}", flush=True)
    print(f"{sum(held)} of {len(held)} hold, in {time.perf_counter() - start:.0f} s")
    return 0 if all(held) else 1
