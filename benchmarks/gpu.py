"""Compiles optimizer steps for an NVIDIA H200 without a GPU, and analyses them; runs nothing.

python -m benchmarks.gpu [--pjrt FOLDER] [--only WORD] [--side N] [--leaves N] [--json FILE]

FOLDER (or JAX_CUDA_PJRT) has the compiler, `pip install --no-deps --target FOLDER jax-cuda12-pjrt`;
otherwise this Python's packages are searched. Only this file uses JAX's private interfaces.
"""

import argparse
import functools
import math
import os
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax._src import xla_bridge
from jax._src.lib import _jax  # pyright: ignore
from jax.experimental import topologies

import adam_jax
from examples.shared import strict_json
from examples.shared.command_line import positive

# The card as a text proto. Missing fields change fusions; fields unknown to jaxlib 0.10.2 fail.
H200 = """platform_name: "CUDA" device_description_str: "NVIDIA H200 141GB HBM3e"
dnn_version_info { major: 9 minor: 10 } gpu_device_info { cuda_compute_capability { major: 9 }
core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 memory_bandwidth: 4800000000000
device_memory_size: 151397597184 l2_cache_size: 52428800 threads_per_warp: 32
threads_per_block_limit: 1024 threads_per_core_limit: 2048 shared_memory_per_block: 49152
shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472 registers_per_core_limit: 65536
registers_per_block_limit: 65536 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
block_dim_limit_z: 65535 }"""
SIDE = 1024  # Of the square leaves of the table; XLA fuses differently from 4096 on.
LEAVES = 24
SMALL = 64 * 1024  # Bytes that a kernel moves: a smaller one is little more than its launch.


def plugin() -> Path:
    """The compiler's library of jaxlib's own version: another may compile differently."""
    folder, version = os.environ.get("JAX_CUDA_PJRT"), metadata.version("jaxlib")
    path, name = [folder] if folder else sys.path, "jax-cuda12-pjrt"
    for wheel in metadata.distributions(name=name, path=path):
        if wheel.version == version:
            return Path(str(wheel.locate_file("jax_plugins/xla_cuda12/xla_cuda_plugin.so")))
    raise ModuleNotFoundError(
        f"no {name} {version} in {folder or 'this Python'}: `python -m pip install --no-deps"
        f" --target FOLDER {name}=={version}`, then JAX_CUDA_PJRT=FOLDER (or --pjrt FOLDER)"
    )


@functools.cache
def h200s(count: int = 1) -> list[Any]:
    """That many cards of one machine, as compilation targets."""
    jax.devices("cpu")  # Makes JAX load the installed plugins, perhaps including this one.
    if not _jax.pjrt_plugin_loaded("cuda"):
        xla_bridge.register_plugin("cuda", library_path=str(plugin()), priority=0)
    machine = topologies.get_topology_desc(
        platform="cuda", target_config=H200, topology=f"1x{count}x1"
    )
    return machine.devices


def compile_for_h200(f: Any, *args: Any, donate: tuple[int, ...] = ()) -> jax.stages.Compiled:
    """The function as one program for an H200; arguments are trees of `jax.ShapeDtypeStruct`."""
    one = jax.sharding.SingleDeviceSharding(h200s()[0])
    return jax.jit(f, in_shardings=one, donate_argnums=donate).lower(*args).compile()


class Launch(NamedTuple):
    """One operation that launches work on the GPU."""

    opcode: str
    bytes: int  # Of operands and results.
    inside: str  # "conditional", "while", or "" if it runs once in every call.


NOT_LAUNCHED = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
COMPUTATION = re.compile(r"(ENTRY )?%(\S+) \(.*\{$")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*?)\)(.*)")
CALLED = re.compile(r"(?:to_apply|condition|body|\w+_computations?)=\{?((?:%[\w.-]+(?:, )?)+)")


def _bytes(shape: str) -> int:
    """Bytes of shapes like `f32[8,128]{1,0}` in a text; `pred` is the dtype without a number."""
    found = re.findall(r"\b[a-z]+(\d*)\w*\[([\d,]*)\]", shape)
    return sum(math.prod(map(int, s.split(",") if s else ())) * int(b or 8) // 8 for b, s in found)


def launches(compiled: jax.stages.Compiled) -> list[Launch]:
    """The kernels, copies and library calls of one call of a program, from its optimized HLO.

    XLA makes a fusion of everything it generates a kernel for, and leaves other operations bare:
    custom calls, copies, sorts. So every operation counts that is not known to be free, except
    inside a fusion. Of a conditional the largest branch counts, of a loop one iteration, of an
    asynchronous pair the start. HLO does not show command buffers, which make launches cheaper.
    """
    lines, computations = [], {}
    for line in (compiled.as_text() or "").splitlines():
        if header := COMPUTATION.match(line):
            lines = computations["ENTRY" if header[1] else header[2]] = []
        elif instruction := INSTRUCTION.match(line):
            lines.append(instruction.groups())

    def of(computation: str, inside: str) -> list[Launch]:
        sizes, found = {}, []
        for name, shape, opcode, operands, attributes in computations[computation]:
            sizes[name] = _bytes(shape)
            if opcode in ("call", "conditional", "while"):
                called = re.findall(r"%([\w.-]+)", " ".join(CALLED.findall(attributes)))
                parts = [of(callee, inside or opcode.removeprefix("call")) for callee in called]
                found += max(parts, key=len) if opcode == "conditional" else sum(parts, [])
            elif opcode not in NOT_LAUNCHED and not opcode.endswith("-done"):
                read = sum(sizes[operand] for operand in re.findall(r"%([\w.-]+)", operands))
                found.append(Launch(opcode, read + sizes[name], inside))
        return found

    return of("ENTRY", "")


def kernels(compiled: jax.stages.Compiled) -> int:
    """The number of launches of one call of a program."""
    return len(launches(compiled))


def update_and_apply(tx: Any, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


class Case(NamedTuple):
    """A row of the table: `step(tx, grads, state, params)` on that many leaves."""

    tx: optax.GradientTransformation
    leaves: int = LEAVES
    dtype: str = "float32"
    step: Any = update_and_apply


CLIPPED = adam_jax.chain(adam_jax.clip_by_global_norm(1.0), adam_jax.adamw(1e-3))
EVERYTHING = adam_jax.accumulate(
    adam_jax.telemetry(
        adam_jax.skip_nonfinite(adam_jax.chain(CLIPPED, adam_jax.ema_params(0.999)))
    ),
    every=4,
)
CASES = {
    "optax.adamw, one leaf": Case(optax.adamw(1e-3), leaves=1),
    "adam_jax.adamw, one leaf": Case(adam_jax.adamw(1e-3), leaves=1),
    "optax.adamw": Case(optax.adamw(1e-3)),
    "adam_jax.adamw": Case(adam_jax.adamw(1e-3)),
    "optax: clip, adamw": Case(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))),
    "adam_jax: clip, adamw": Case(CLIPPED),
    "adam_jax: clip, skip, adamw": Case(adam_jax.skip_nonfinite(CLIPPED)),
    "adam_jax: skip, adamw": Case(adam_jax.skip_nonfinite(adam_jax.adamw(1e-3))),
    "adam_jax: clip by history, step": Case(
        adam_jax.clip_by_history(adam_jax.adamw(1e-3)), step=adam_jax.step
    ),
    "adam_jax: clip updates by history, step": Case(
        adam_jax.clip_by_history(adam_jax.adamw(1e-3), updates=2.0), step=adam_jax.step
    ),
    "adam_jax: accumulate 4, step": Case(
        adam_jax.accumulate(adam_jax.adamw(1e-3), 4), step=adam_jax.step
    ),
    "adam_jax: adamw, average, step": Case(
        adam_jax.chain(adam_jax.adamw(1e-3), adam_jax.ema_params(0.999)), step=adam_jax.step
    ),
    "adam_jax: telemetry, adamw, step": Case(
        adam_jax.telemetry(adam_jax.adamw(1e-3)), step=adam_jax.step
    ),
    "adam_jax: everything, step": Case(EVERYTHING, step=adam_jax.step),
    "Adam-mini": Case(adam_jax.adamw(1e-3, nu_dtype=adam_jax.BlockMeans(0)), step=adam_jax.step),
    "Adam-mini, 8-bit mu": Case(
        adam_jax.adamw(1e-3, mu_dtype=jnp.int8, nu_dtype=adam_jax.BlockMeans(0)),
        step=adam_jax.step,
    ),
    "adam_jax.step, bf16": Case(adam_jax.adamw(1e-3), dtype="bfloat16", step=adam_jax.step),
}


def _low_precision() -> dict[str, Case]:
    """Formats of moments with float32 weights, of weights with float32 moments, and both."""
    moments = {
        "8-bit": jnp.int8,
        "4-bit": jnp.int4,
        "bf16": jnp.bfloat16,
        "stochastic bf16": adam_jax.stochastic(jnp.bfloat16),
        "stochastic 8-bit": adam_jax.stochastic(jnp.int8),
    }
    adamw = {"": adam_jax.adamw(1e-3)}
    for name, dtype in moments.items():
        adamw[name] = adam_jax.adamw(1e-3, mu_dtype=dtype, nu_dtype=dtype)
    adamw["8-bit, factored"] = adam_jax.adamw(1e-3, mu_dtype=jnp.int8, nu_dtype=adam_jax.Factored())
    weights = {
        "stochastic rounding": adam_jax.stochastic_rounding,
        "residual 16": adam_jax.master_residual,
        "residual 8": lambda tx: adam_jax.master_residual(tx, 8),
    }
    both = [("residual 16", "8-bit"), ("residual 8", "8-bit"), ("stochastic rounding", "8-bit")]
    both.append(("stochastic rounding", "4-bit"))
    cases = {f"{name} moments": Case(tx) for name, tx in adamw.items() if name}
    for weight, moment in [(name, "") for name in weights] + both:
        name = f"bf16 weights, {weight}" + (f", {moment} moments" if moment else "")
        cases[name] = Case(weights[weight](adamw[moment]), dtype="bfloat16", step=adam_jax.step)
    return cases


CASES |= _low_precision()
# Operations that a low-precision program must not have, or must have.
LOOKUPS = ("gather", "sort", "while", "dynamic-slice")
SPLITS = re.compile(r" (?:shift-right-logical|reduce-precision)\(| s32\S* and\(")


def _bits(dtype: Any) -> int:
    """Bytes of an element; two of 4 bits share a byte."""
    return 4 if dtype.name in ("int4", "uint4") else 8 * dtype.itemsize


def measure(case: Case, side: int = SIDE) -> dict[str, float]:
    """A row: the launches, memory and traffic of one step; bytes are per parameter (B/p)."""

    # Parameters first, as in the results: JAX pairs donated buffers with results in order.
    def step(params: Any, state: Any, grads: Any) -> Any:
        return case.step(case.tx, grads, state, params)

    params = [jax.ShapeDtypeStruct((side, side), case.dtype)] * case.leaves
    size = side * side * case.leaves
    args = (params, jax.eval_shape(case.tx.init, params), params)
    compiled = compile_for_h200(step, *args, donate=(0, 1))
    found, memory = launches(compiled), compiled.memory_analysis()
    # `compiled.cost_analysis()` is None here; the CPU's client analyses any program.
    [module] = compiled.runtime_executable().hlo_modules()  # pyright: ignore
    costs = _jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)
    # The floor: each input is read once, each output is written once.
    ends = jax.tree.leaves((args, jax.eval_shape(step, *args)))
    text = compiled.as_text() or ""
    return {
        "leaves": case.leaves,
        "kernels": len(found),
        "in branches and loops": sum(x.inside != "" for x in found),
        "small": sum(x.bytes < SMALL for x in found),
        "per leaf, small apart": sum(x.bytes >= SMALL for x in found) / case.leaves,
        "temporary B/p": memory.temp_size_in_bytes / size,  # pyright: ignore
        "accessed B/p": costs["bytes accessed"] / size,
        "floor B/p": sum(x.size * _bits(x.dtype) // 8 for x in ends) / size,
        "lookups": sum(text.count(f" {name}(") for name in LOOKUPS),
        "splits": len(SPLITS.findall(text)) // case.leaves,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pjrt", metavar="FOLDER", help="the folder with the wheel")
    arguments.add_argument("--only", metavar="WORD", default="", help="cases with it in their name")
    arguments.add_argument(
        "--side", metavar="N", type=positive, default=SIDE, help="leaves are N x N"
    )
    arguments.add_argument("--json", metavar="FILE", type=Path, help="the table goes there too")
    arguments.add_argument(
        "--leaves", metavar="N", type=positive, default=LEAVES, help="where there are several"
    )
    args = arguments.parse_args()
    jax.config.update("jax_platforms", "cpu")  # Do not use a GPU of this machine.
    os.environ["JAX_CUDA_PJRT"] = args.pjrt or os.environ.get("JAX_CUDA_PJRT", "")
    try:
        plugin()
    except ModuleNotFoundError as missing:
        arguments.exit(2, f"{missing}\n")
    rows = {
        name: measure(case._replace(leaves=min(case.leaves, args.leaves)), args.side)
        for name, case in CASES.items()
        if args.only in name
    }
    if args.json:
        args.json.write_text(strict_json.dumps(rows, indent=1) + "\n")
    print(", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib", "optax")))
    columns = ["case", *next(iter(rows.values()), {})]
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name, row in rows.items():
        cells = (f"{x:.2f}" if isinstance(x, float) else str(x) for x in row.values())
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
