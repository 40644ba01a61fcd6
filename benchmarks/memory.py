"""Predicted and measured bytes per parameter of parameters, gradients and state.

python -m benchmarks.memory [--size 100_000_000] [--only WORD]

Each case runs in its own process. It allocates a transformer's parameters, gradients of their dtype
and the state, and takes two jitted, donated steps. "live" is the size of the three's arrays then;
a prediction that differs by a byte is an error. "held" is the growth of the process since before
the allocation (its resident memory; on a GPU, the memory in use in JAX's allocator); "temporaries"
are those of a step.
"""

import argparse
import ctypes
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import adam_jax
from benchmarks.machine import describe
from examples.options import positive

WIDTHS = 128  # Every width is a multiple of it.
LAYERS = 12
SMALLEST = 500_000


class Case(NamedTuple):
    """Formats of weights and moments, and their limit in bytes per parameter."""

    dtype: str  # Of the parameters and the gradients.
    build: Callable[[], optax.GradientTransformation]
    target: float


def adamw(codes: Any = None) -> optax.GradientTransformation:
    return (
        adam_jax.adamw(1e-3)
        if codes is None
        else adam_jax.adamw(1e-3, mu_dtype=codes, nu_dtype=codes)
    )


def adam_mini(**mu: Any) -> optax.GradientTransformation:
    return adam_jax.adamw(1e-3, nu_dtype=adam_jax.AdamMini(), **mu)


CASES = {
    "float32": Case("float32", adamw, 16.0),
    "float32, Adam-mini": Case("float32", adam_mini, 12.1),
    "float32, Adam-mini, mu of 8 bits": Case("float32", lambda: adam_mini(mu_dtype=jnp.int8), 9.1),
    "bfloat16, residual of 16 bits, moments of 8": Case(
        "bfloat16", lambda: adam_jax.master_residual(adamw(jnp.int8)), 8.1
    ),
    "bfloat16, residual of 8 bits, moments of 8": Case(
        "bfloat16", lambda: adam_jax.master_residual(adamw(jnp.int8), bits=8), 7.1
    ),
    "bfloat16, stochastic rounding, moments of 8 bits": Case(
        "bfloat16", lambda: adam_jax.stochastic_rounding(adamw(jnp.int8)), 6.1
    ),
    "bfloat16, stochastic rounding, moments of 4 bits": Case(
        "bfloat16", lambda: adam_jax.stochastic_rounding(adamw(jnp.int4)), 5.2
    ),
}


def transformer(size: int, dtype: str) -> Any:
    """Shapes of a decoder of about `size` parameters; at 1e8 it has 12 layers of width 768."""
    width = max(WIDTHS, int((size * 0.9 / 12 / LAYERS) ** 0.5) // WIDTHS * WIDTHS)
    layers = min(LAYERS, max(1, int(size * 0.6 / 12 / width**2)))
    vocabulary = (size - layers * 12 * width**2) // width // WIDTHS * WIDTHS

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    def dense(rows: int, columns: int) -> dict[str, Any]:
        return {"kernel": array(rows, columns), "bias": array(columns)}

    def norm() -> dict[str, Any]:
        return {"scale": array(width), "bias": array(width)}

    layer = {
        "qkv": lambda: dense(width, 3 * width),
        "out": lambda: dense(width, width),
        "up": lambda: dense(width, 4 * width),
        "down": lambda: dense(4 * width, width),
        "norm_1": norm,
        "norm_2": norm,
    }
    return {
        "embedding": array(vocabulary, width),
        "layers": [{name: make() for name, make in layer.items()} for _ in range(layers)],
        "norm": norm(),
    }


def held() -> int:
    """Bytes in use on JAX's device or, on CPU, resident in this process (Linux)."""
    if (stats := jax.devices()[0].memory_stats()) is not None:
        return stats["bytes_in_use"]
    # Return the memory that compilers and steps have freed; glibc would keep it.
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def settled() -> int:
    """The memory when it shrinks no more: results are ready before temporaries are freed."""
    last = math.inf
    while (now := held()) < last:
        last = now
        time.sleep(0.5)
    return now


def bytes_of(tree: Any) -> int:
    """The bytes of a tree's arrays; two 4-bit codes are one byte, of which `nbytes` says two."""
    leaves = jax.tree.leaves(tree)
    return sum((x.nbytes + 1) // 2 if x.dtype == jnp.int4 else x.nbytes for x in leaves)


def measure(case: Case, size: int) -> dict[str, Any]:
    """One case, in this process."""
    tx, shapes = case.build(), transformer(size, case.dtype)
    planned = adam_jax.inspect.bytes_per_parameter(shapes, tx)

    def start() -> tuple[Any, Any, Any]:
        params, grads = (
            jax.tree.map(lambda x, value=value: jnp.full(x.shape, value, x.dtype), shapes)
            for value in (0.02, 0.01)
        )
        return params, tx.init(params), grads

    def step(params: Any, state: Any, grads: Any) -> Any:
        return adam_jax.step(tx, grads, state, params)

    # Compile everything before measuring, because compilers leave memory behind.
    started = jax.jit(start).lower().compile()
    jitted = jax.jit(step, donate_argnums=(0, 1))
    stepped = jitted.lower(*jax.eval_shape(start)).compile()
    memory: Any = stepped.memory_analysis()
    before = settled()
    params, state, grads = started()
    for _ in range(2):
        params, state = stepped(params, state, grads)
    jax.block_until_ready((params, state))
    grown = settled() - before
    live = bytes_of((params, grads, state))
    if live != planned.total:
        raise AssertionError(f"predicted {planned.total:,} bytes, found {live:,}")
    parts = {"parameters": params, "gradients": grads, "state": state}
    return {
        "size": planned.size,
        "predicted": planned.total,
        "live": live,
        **{name: bytes_of(tree) for name, tree in parts.items()},
        "all_live": bytes_of(jax.live_arrays()),
        "held": grown,
        "temporaries": memory.temp_size_in_bytes,
        "target": case.target,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    parts = ("parameters", "gradients", "state", "predicted", "live", "held", "temporaries")
    lines = [["case", *parts, "target"], ["---"] * (len(parts) + 2)]
    for row in rows:
        cells = [f"{row[part] / row['size']:.3f}" for part in parts]
        lines.append([row["case"], *cells, f"<= {row['target']:g}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def in_own_process(name: str, size: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory", "--size", str(size), "--case", name]
    # glibc does not return all freed memory in the heaps of XLA's threads.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return {"case": name, **json.loads(done.stdout)}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--size", metavar="N", type=positive, default=100_000_000, help="parameters"
    )
    arguments.add_argument("--only", metavar="WORD", default="", help="cases with it in their name")
    arguments.add_argument("--case", choices=CASES, help="only this case, in this process, as JSON")
    args = arguments.parse_args()
    if args.size < SMALLEST:
        arguments.error(f"--size must be at least {SMALLEST}, got {args.size}")
    names = [name for name in CASES if args.only in name]
    if not names:
        arguments.error(f"--only must be in the name of a case, got {args.only!r}: {list(CASES)}")
    if args.case:
        print(json.dumps(measure(CASES[args.case], args.size), allow_nan=False))
        return
    print(f"{describe('jax', 'jaxlib', 'optax')}\n", flush=True)
    rows = [in_own_process(name, args.size) for name in names]
    print(f"AdamW, {rows[0]['size']:,} parameters: bytes per parameter\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
