"""A row of `benchmarks.tpu`: one step, compiled for one generation."""

from typing import Any

import jax

import adam_jax
from benchmarks.tpu import bundles
from benchmarks.tpu.cases import BARE, BASE, CASES, Case, Row, failures, of_dtype
from benchmarks.tpu.machine import GENERATIONS, compile_for_tpu, size_in_bytes
from benchmarks.tpu.program import operations

COLUMNS = ("generation", "case", "leaves", "floor B/p", "HBM B/p", "of the floor")
COLUMNS += ("temporary B/p", "fusions", "kernels", *BARE, "others", "bundles", "cycles e-3/p")
COLUMNS += ("HBM time e-3/p", "of float32", "bounds", "verdict")
PREFETCHES = {"copy-start", "slice-start"}


def compiled(generation: str, case: Case, params: Any) -> jax.stages.Compiled:
    """One step, or one update."""

    # JAX pairs donated buffers with results in order.
    def step(params: Any, state: Any, grads: Any) -> Any:
        return adam_jax.step(case.tx, grads, state, params)

    def update(grads: Any, state: Any, params: Any) -> Any:
        return case.tx.update(grads, state, params)

    params = of_dtype(params, case.dtype)
    state = jax.eval_shape(case.tx.init, params)
    f = step if case.apply else update
    return compile_for_tpu(generation, f, params, state, params, donate=(0, 1))


def counted(text: str) -> Row:
    """The large operations of a program by kind, and the bytes and cycles of all operations."""
    found = operations(text)
    big = [op for op in found if op.big and op.opcode not in PREFETCHES]
    kinds = {"fusions": sum(op.opcode == "fusion" for op in big)}
    kinds["kernels"] = sum(op.kernel for op in found)
    kinds |= {kind: sum(op.opcode in codes for op in big) for kind, codes in BARE.items()}
    kinds["others"] = sum(not op.kernel for op in big) + kinds["kernels"] - sum(kinds.values())
    cycles = sum(op.cycles or 0 for op in found)
    return {"HBM": sum(op.hbm for op in found), **kinds, "cycles": cycles}


def measure(
    generation: str, name: str, params: Any, base: Row | None = None, shape: Any = None
) -> Row:
    """Bytes and thousandths of cycles are per parameter of a device, operations per leaf.

    Args:
      generation: of TPUs.
      name: of the case.
      params: a tree of shapes.
      base: the row of float32.
      shape: of the only leaf, if the instructions of a kernel are to be counted.
    """
    case = CASES[name]
    params = of_dtype(params, case.dtype)
    state, leaves = jax.eval_shape(case.tx.init, params), jax.tree.leaves(params)
    size = sum(x.size for x in leaves)
    program = compiled(generation, case, params)
    memory: Any = program.memory_analysis()
    # The floor: each input is read once, each output is written once.
    floor = size_in_bytes((params, state, params, params, state)) / size
    row: Row = {"generation": generation, "case": name, "leaves": len(leaves), "floor B/p": floor}
    temporary = memory.temp_size_in_bytes / size
    try:
        found = counted(program.as_text() or "")
    except jax.errors.JaxRuntimeError:
        # For some programs on v7x; its stack is on stderr.
        row["temporary B/p"] = temporary
        return row | {"verdict": "; ".join(["XLA cannot print it", *failures(row, case.bounds)])}
    hbm, cycles = found.pop("HBM") / size, 1e3 * found.pop("cycles") / size
    row |= {"HBM B/p": hbm, "of the floor": hbm / floor, "temporary B/p": temporary}
    row |= {kind: number / len(leaves) for kind, number in found.items()}
    kernels = None
    if shape and found["kernels"]:
        kernels = bundles.measured(generation, name, shape)
    known = not found["kernels"] or kernels is not None
    row["bundles"] = kernels and kernels["bundles"]
    row["cycles e-3/p"] = cycles + 1e3 * (kernels["cycles"] if kernels else 0) if known else None
    at_best = GENERATIONS[generation].cycles(hbm)
    row["HBM time e-3/p"] = at_best and 1e3 * at_best
    row["of float32"] = None
    if name == BASE:
        row["of float32"] = 1.0
    elif base and known:
        # Bytes take their time even if the estimate of a kernel omits them.
        both = ("cycles e-3/p", "HBM B/p")
        row["of float32"] = max(row[column] / base[column] for column in both)
    words = case.bounds.words(generation)
    verdict = "; ".join(failures(row, case.bounds)) or ("holds" if words else "")
    return row | {"bounds": words, "verdict": verdict}
