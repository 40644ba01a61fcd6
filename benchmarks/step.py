"""AdamW's step beside Optax's: seconds, temporaries, and what it takes to trace and compile it.

python -m benchmarks.step [--fast]
"""

import argparse
import gc
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import adam_jax
from benchmarks.machine import describe, interleaved, medians

PEERS = {"optax": optax.adamw(1e-3), "adam_jax": adam_jax.adamw(1e-3)}


def jitted(tx: optax.GradientTransformation) -> Any:
    """One step as users write it: update, apply, parameters and state donated."""

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def step_time(shapes: list[int], rounds: int) -> str:
    """A row of the first table: milliseconds of a step, their ratio, temporary bytes."""
    grads = [jnp.full(n, 0.01) for n in shapes]
    temporary = {}

    def runner(name: str, tx: optax.GradientTransformation) -> Callable[[], None]:
        params = [jnp.full(n, 0.5) for n in shapes]
        held = [params, tx.init(params)]
        step = jitted(tx).lower(*held, grads).compile()
        temporary[name] = step.memory_analysis().temp_size_in_bytes

        def run() -> None:
            held[:] = jax.block_until_ready(step(*held, grads))

        return run

    peers = {name: runner(name, tx) for name, tx in PEERS.items()}
    ms = {name: 1e3 * s for name, s in medians(interleaved(peers, rounds)).items()}
    ratio = ms["adam_jax"] / ms["optax"]
    leaves = f"{len(shapes)} x {shapes[0]:.0e}"
    return (
        f"| {leaves} | {ms['optax']:.1f} | {ms['adam_jax']:.1f} | {ratio:.3f} |"
        f" {temporary['optax']} | {temporary['adam_jax']} |"
    )


def compile_time(leaves: int, size: int, rounds: int) -> list[str]:
    """The second table: seconds to trace, lower and compile a tree of many leaves."""
    params = [jnp.ones(size) for _ in range(leaves)]
    stages = ("trace", "lower", "trace + lower", "compile")
    seconds = {stage: {name: [] for name in PEERS} for stage in stages}
    for _ in range(rounds):
        for name, tx in PEERS.items():
            state = tx.init(params)
            jax.clear_caches()
            gc.collect()  # What the peer before left behind is not this one's to clean up.
            marks = [time.perf_counter()]
            traced = jitted(tx).trace(params, state, params)
            marks.append(time.perf_counter())
            lowered = traced.lower()
            marks.append(time.perf_counter())
            lowered.compile()
            marks.append(time.perf_counter())
            trace, lower, build = (b - a for a, b in zip(marks, marks[1:], strict=False))
            for stage, value in zip(stages, (trace, lower, trace + lower, build), strict=True):
                seconds[stage][name].append(value)
    rows = []
    for stage in stages:
        s = medians(seconds[stage])
        ratio = s["adam_jax"] / s["optax"]
        rows.append(f"| {stage} | {s['optax']:.2f} | {s['adam_jax']:.2f} | {ratio:.2f} |")
    return rows


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--fast", action="store_true", help="small sizes: shows that it runs")
    fast = arguments.parse_args().fast
    print(describe("jax", "optax"))
    scale = 1000 if fast else 1
    print("\n| leaves | Optax, ms | adam_jax, ms | ratio | temp bytes | temp bytes |")
    print("|---|---|---|---|---|---|")
    print(step_time([30_000_000 // scale], 3 if fast else 40))
    print(step_time([1_000_000 // scale] * 30, 3 if fast else 40))
    leaves = 10 if fast else 500
    print(f"\n| {leaves} leaves of 2,000 | Optax, s | adam_jax, s | ratio |")
    print("|---|---|---|---|")
    print("\n".join(compile_time(leaves, 2000, 1 if fast else 9)))


if __name__ == "__main__":
    main()
