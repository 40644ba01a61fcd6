"""The cost of steps without `jit`, and the memory that they and a sweep of schedules retain.

python -m benchmarks.step.eager [--fast] [--only WORD]

The first table is the time of one uncompiled update relative to Optax's: the minimum of many
alternating runs, since the only noise of dispatch is delays. The second is 1,000 uncompiled steps
of every wrapper: programs compiled after the first few steps, and the growth of the process. The
third is a sweep: each of 100 schedules makes an optimizer, and one step is compiled and dropped;
the figure is the memory retained per schedule.
"""

import argparse
import functools
import gc
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

import adam_jax
from benchmarks.machine import describe, interleaved
from benchmarks.step.peers import update, whole
from benchmarks.tables import Row, markdown

TARGET = 1.2  # Of Optax's time.
GROWTH = 20.0  # MB in all steps of a wrapper.
COMPILED = "/jax/core/compile/backend_compile_duration"

COSINE = optax.cosine_decay_schedule(1e-3, 10_000)
PAIRS = {
    "adam": (optax.adam, adam_jax.adam, 1e-3),
    "adamw": (optax.adamw, adam_jax.adamw, 1e-3),
    "adamw, schedule": (optax.adamw, adam_jax.adamw, COSINE),
    "amsgrad": (optax.amsgrad, adam_jax.amsgrad, 1e-3),
    "adopt": (contrib.adopt, adam_jax.adopt, 1e-3),
    "radam": (optax.radam, adam_jax.radam, 1e-3),
    "nadam": (optax.nadam, adam_jax.nadam, 1e-3),
    "nadam, decay": (optax.nadam, functools.partial(adam_jax.nadam, momentum_decay=0.004), 1e-3),
}


def member(**dtypes: Any) -> Any:
    return adam_jax.adamw(COSINE, **dtypes)


def clipped() -> Any:
    return adam_jax.chain(adam_jax.clip_by_global_norm(1.0), member())


WRAPPERS: dict[str, Callable[[], Any]] = {
    "optax.adamw": lambda: optax.adamw(COSINE),
    "adamw": member,
    "adamw, int8": lambda: member(mu_dtype=jnp.int8, nu_dtype=jnp.int8),
    "cautious": lambda: adam_jax.cautious(member()),
    "chain": clipped,
    "optax.chain": lambda: optax.chain(adam_jax.clip_by_global_norm(1.0), member()),
    "groups": lambda: adam_jax.groups(adam_jax.adamw, {"0": None}, learning_rate=COSINE),
    "with_hyperparams": lambda: adam_jax.with_hyperparams(adam_jax.adamw)(learning_rate=COSINE),
    "skip_nonfinite": lambda: adam_jax.skip_nonfinite(member(), spike_sigmas=6.0, warn=True),
    "skip_nonfinite(optax.adamw)": lambda: adam_jax.skip_nonfinite(optax.adamw(COSINE)),
    "accumulate": lambda: adam_jax.accumulate(member(), 4),
    "accumulate, int8": lambda: adam_jax.accumulate(member(), 4, dtype=jnp.int8),
    "accumulate(optax.adamw)": lambda: adam_jax.accumulate(optax.adamw(COSINE), 4),
    "telemetry": lambda: adam_jax.telemetry(member(), 4),
    "ema_params": lambda: adam_jax.chain(member(), adam_jax.ema_params(0.99)),
    "ema_params, int8": lambda: adam_jax.chain(member(), adam_jax.ema_params(0.99, dtype=jnp.int8)),
    "stochastic_rounding": lambda: adam_jax.stochastic_rounding(member()),
    "kahan_summation": lambda: adam_jax.kahan_summation(member()),
    "master_residual": lambda: adam_jax.master_residual(member()),
    "shard_state": lambda: adam_jax.sharding.shard_state(member(), jax.make_mesh((1,), ("data",))),
    "offload": lambda: adam_jax.sharding.offload(member()),
    "all of it": lambda: adam_jax.accumulate(
        adam_jax.telemetry(adam_jax.skip_nonfinite(clipped()), 4), 4
    ),
}


def parameters(leaves: int, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    return {str(i): jnp.ones((8, 16), dtype) for i in range(leaves)}


def resident() -> float:
    """MB of this process."""
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def updates(leaves: int, rounds: int, names: list[str]) -> list[Row]:
    """Times of one `update` with parameters in that many arrays."""
    rows, params = [], parameters(leaves)
    for name in names:
        theirs, ours, rate = PAIRS[name]

        def run(tx: Any) -> Callable[[], object]:
            state = tx.init(params)
            return lambda: jax.block_until_ready(tx.update(params, state, params))

        seconds = interleaved({"optax": run(theirs(rate)), "adam_jax": run(ours(rate))}, rounds)
        base, least = (min(seconds[peer]) * 1e6 for peer in ("optax", "adam_jax"))
        title = f"one uncompiled update, {leaves} leaves, least of {rounds}"
        rows.append(Row(title, name, "us", least, "optax", base, least / base, TARGET))
    return rows


def steps(make: Callable[[], Any], count: int) -> tuple[int, float, float]:
    """Programs compiled, MB grown, and milliseconds per step, for that many uncompiled steps."""
    tx, grads = make(), parameters(3, jnp.bfloat16)
    state, params, step = tx.init(grads), grads, update(tx)
    compiled, before, start = [], 0.0, 0.0

    def listen(event: str, duration_secs: float, **kwargs: Any) -> None:
        compiled.extend([duration_secs] if event == COMPILED else [])

    for i in range(-32, count):
        if i == 0:
            jax.monitoring.register_event_duration_secs_listener(listen)
            before, start = resident(), time.perf_counter()
        params, state = step(params, state, grads)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - start
    jax.monitoring.unregister_event_duration_listener(listen)
    return len(compiled), resident() - before, 1e3 * seconds / count


def sweep(alias: Any, count: int) -> float:
    """MB retained per schedule."""
    grads = parameters(3)
    before = 0.0
    for i in range(-5, count):
        if i == 0:
            before = resident()
        rate = np.float32(1e-3 / (i + 6))
        tx = alias(lambda step, rate=rate: rate / (1 + step))
        state = tx.init(grads)
        jax.block_until_ready(jax.jit(whole(tx))(grads, state, grads))
    return (resident() - before) / count


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--fast", action="store_true", help="few steps and cases, to try it out")
    arguments.add_argument(
        "--only", metavar="WORD", default="", help="wrappers with it in the name"
    )
    args = arguments.parse_args()
    rounds, count, schedules = (2, 4, 2) if args.fast else (300, 1_000, 100)
    print(f"{describe('jax', 'optax')}\n")
    if not args.only:
        for leaves in (1,) if args.fast else (1, 6, 50):
            rows = updates(leaves, rounds, list(PAIRS)[:: 4 if args.fast else 1])
            print(f"{rows[0].table}\n\n{markdown(rows)}\n", flush=True)
    print(f"{count:,} uncompiled steps; at most {GROWTH:g} MB\n")
    print("| wrapper | programs compiled | MB grown | ms a step |\n| --- | --- | --- | --- |")
    for name, make in list(WRAPPERS.items())[:: 8 if args.fast else 1]:
        if args.only in name:
            compiled, grown, milliseconds = steps(make, count)
            print(f"| {name} | {compiled} | {grown:.1f} | {milliseconds:.2f} |", flush=True)
    if not args.only:
        for name, alias in {"optax": optax.adamw, "adam_jax": adam_jax.adamw}.items():
            stays = sweep(alias, schedules)
            print(f"\nMB that stay of each of {schedules} schedules, {name}.adamw: {stays:.3f}")


if __name__ == "__main__":
    main()
