"""Times a step of AdamW and its wrappers against Optax, PyTorch and flashoptim-jax.

python -m benchmarks.step [--fast] [--only WORD] [--rounds N]

Measures milliseconds and temporary memory of a step; WORD is searched in the tables' titles. Each
ratio compares medians within this run. The steps of a run are dispatched without waiting, as in a
training loop. Torch and flashoptim-jax are skipped if they are not installed. On a GPU the steps
have other sizes.
"""

import argparse
import gc
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import adam_jax
from benchmarks.machine import describe, interleaved, medians
from benchmarks.step.peers import (
    GROUP,
    Leaves,
    Missing,
    Peer,
    by_step,
    by_update,
    copying,
    in_flashoptim,
    in_torch,
    on_gpu,
    parameters,
)
from benchmarks.step.peers import (
    steps as steps_of,
)
from benchmarks.tables import Row, markdown
from examples.shared.command_line import positive

PARTITION = "optax.partition of the same"
OPTAX, PLAIN, TORCH = "optax.adamw", "adam_jax.adamw", "torch fused AdamW"
ACCUMULATE = "accumulate 4; step"
COPY, COPY_BYTES = "x + 1, 8 B/p", 8
FLOOR, FLOOR_BYTES = "28 B/p at that rate", 28  # Parameter, two moments: in and out; gradient: in.
# PyTorch's OpenMP threads spin after each call: 11 ms of a core's time on an AMD EPYC of two cores,
# which would slow the next peer. JAX's threads do not spin. After this pause all cores are idle.
PAUSE = 0.03
PACKAGES = ("jax", "jaxlib", "optax", "torch", "flashoptim-jax")


class Case(NamedTuple):
    """A peer, its bases, and the largest allowed ratios."""

    name: str
    build: Callable[[Leaves], Peer]
    bases: Mapping[str, float | None] = {}
    temporary_target: float | None = None


class Suite(NamedTuple):
    """The cases of one table, timed in turns on the same leaves."""

    title: str
    leaves: int
    size: int
    cases: list[Case]


def adamw() -> optax.GradientTransformation:
    return adam_jax.adamw(1e-3)


def clipped(*more: optax.GradientTransformation) -> optax.GradientTransformation:
    return adam_jax.chain(adam_jax.clip_by_global_norm(1.0), adamw(), *more)


def everything() -> optax.GradientTransformation:
    inner = adam_jax.skip_nonfinite(clipped(adam_jax.ema_params(0.999)))
    return adam_jax.accumulate(adam_jax.telemetry(inner, every=100), GROUP)


def by_kinds(leaves: Leaves) -> Peer:
    """muP; the base model's leaves have, in turn, the same, half and a quarter of the size."""
    base = [jax.ShapeDtypeStruct((x.size >> i % 3,), x.dtype) for i, x in enumerate(leaves)]
    return by_update(adam_jax.transfer.mup(adam_jax.adamw, base, leaves)(1e-3))(leaves)


def recipe() -> list[Case]:
    """Plain AdamW is the base, so the ratios are the cost of the wrappers."""
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    skip, average = adam_jax.skip_nonfinite(clipped()), adam_jax.ema_params(0.999)
    history = adam_jax.clip_by_history(adamw())
    of_updates = adam_jax.clip_by_history(adamw(), updates=2.0)
    accumulate = adam_jax.accumulate(adamw(), GROUP)
    noise = adam_jax.estimate_noise_scale(accumulate)
    multi = optax.MultiSteps(optax.adamw(1e-3), GROUP)
    free = {PLAIN: None}
    return [
        Case(PLAIN, by_update(adamw())),
        Case(OPTAX, by_update(optax.adamw(1e-3)), free),
        Case("clip", by_update(clipped()), free),
        Case("optax: clip", by_update(theirs), free),
        Case("clip, skip", by_update(skip), {PLAIN: 1.25}, 0.1),
        Case("clip, skip; step", by_step(skip), free),
        Case("optax: clip, skip", by_update(optax.apply_if_finite(theirs, 10)), free),
        Case("clip by history; step", by_step(history), {PLAIN: 1.25}, 0.1),
        Case("clip by history, updates; step", by_step(of_updates), free, 4.1),
        Case("accumulate 4", by_update(accumulate), {PLAIN: 1.3}),
        Case(ACCUMULATE, by_step(accumulate), {PLAIN: 0.75}, 0.1),
        Case("accumulate 4, noise scale; step", by_step(noise), {ACCUMULATE: 1.05}, 0.1),
        Case("optax: MultiSteps 4", by_update(multi), free),
        Case("muP, three kinds of leaves", by_kinds, {PLAIN: 1.03}, 0.1),
        Case("average; step", by_step(adam_jax.chain(adamw(), average)), free),
        Case(
            "clip, average, skip, telemetry, accumulate 4; step",
            by_step(everything()),
            {PLAIN: 1.1},
        ),
        Case("flashoptim-jax", in_flashoptim, free),
    ]


def plain() -> list[Case]:
    """AdamW alone."""
    return [
        Case(OPTAX, by_update(optax.adamw(1e-3))),
        Case(TORCH, in_torch, {OPTAX: None}),
        Case(PLAIN, by_update(adamw()), {OPTAX: None, TORCH: None}),
    ]


def low_precision() -> list[Case]:
    """Moments, and bfloat16 weights with gradients of their dtype; float32 AdamW is the base."""
    moments = {
        "8-bit": jnp.int8,
        "4-bit": jnp.int4,
        "bfloat16": jnp.bfloat16,
        "stochastic bfloat16": adam_jax.stochastic(jnp.bfloat16),
        "stochastic 8-bit": adam_jax.stochastic(jnp.int8),
    }
    txs = {n: adam_jax.adamw(1e-3, mu_dtype=d, nu_dtype=d) for n, d in moments.items()}
    small = txs["8-bit"]
    weights = {
        "stochastic rounding": adam_jax.stochastic_rounding(adamw()),
        "residual 16": adam_jax.master_residual(adamw()),
        "residual 8, 8-bit moments": adam_jax.master_residual(small, 8),
    }
    targets = {"8-bit": 3.0}
    return [
        Case(PLAIN, by_step(adamw())),
        *(Case(f"{n} moments", by_step(tx), {PLAIN: targets.get(n)}) for n, tx in txs.items()),
        *(
            Case(f"bf16 weights, {n}", by_step(tx, jnp.bfloat16), {PLAIN: None})
            for n, tx in weights.items()
        ),
    ]


def groups(build: Callable[..., Any], even: Any, odd: Any, most: float | None) -> list[Case]:
    """One optimizer per half of the leaves; `most` is the `temporary_target` of a `Case`."""
    entries: dict[Any, Any] = {r"\d*[02468]": even, ".*": odd}
    by_optax = optax.partition(entries, lambda ps: [[*entries][i % 2] for i in range(len(ps))])
    ours, base = adam_jax.groups(entries), {PARTITION: 1.02}
    return [
        Case(PARTITION, build(by_update(by_optax))),
        Case("groups", build(by_update(ours)), base),
        Case("groups; step", build(by_step(ours)), base, most),
    ]


def of_matrices(build: Callable[[Leaves], Peer]) -> Callable[[Leaves], Peer]:
    return lambda leaves: build([x.reshape(500, -1) for x in leaves])


def on_cpu(fast: bool) -> list[Suite]:
    if fast:
        leaves, size, few, small = 2, 2_000, 2, 6
    else:
        leaves, size, few, small = 20, 1_000_000, 30, 500
    copy, muon, amsgrad = Case(COPY, copying), optax.contrib.muon(1e-2), adam_jax.amsgrad(1e-3)
    return [
        _suite(leaves, size, [copy, *recipe()], "recipe"),
        _suite(leaves, size, [copy, *low_precision()], "low precision"),
        _suite(leaves, size, groups(lambda b: b, adamw(), amsgrad, 0.1), "adamw and amsgrad"),
        _suite(4, size // 4, groups(of_matrices, muon, adamw(), None), "Muon and adamw"),
        _suite(1, few * size, [copy, *plain()]),
        _suite(few, size, [copy, *plain()]),
        _suite(small, 2_000, plain()),  # No copy: these few bytes stay in the caches.
    ]


def on_large_gpu(fast: bool) -> list[Suite]:
    skip = Case("clip, skip; step", by_step(adam_jax.skip_nonfinite(clipped())), {PLAIN: None})
    told = Case("everything, accumulate 4; step", by_step(everything()), {PLAIN: None})
    cases = [Case(COPY, copying), *plain(), skip, told]
    sizes, counts = ((10**4,), (2, 5)) if fast else ((10**8, 10**9), (16, 1_000))
    return [_suite(n, size // n, cases) for size in sizes for n in counts]


def _suite(leaves: int, size: int, cases: list[Case], note: str = "") -> Suite:
    title = f"step, {leaves:,} x {size:,}"
    return Suite(f"{title}, {note}" if note else title, leaves, size, cases)


def built(suite: Suite, grads: Leaves) -> dict[str, Peer]:
    """The installed peers; prints a line for each missing one."""
    peers = {}
    for case in suite.cases:
        try:
            peers[case.name] = case.build(grads)
        except Missing as missing:
            print(f"{case.name} left out: {missing}\n")
    return peers


def measure(suite: Suite, rounds: int) -> list[Row]:
    """The rows of a table; the timed arrays are freed at the end."""
    grads = [jnp.full(suite.size, 0.01) for _ in range(suite.leaves)]
    peers = built(suite, grads)
    runs = {name: peer.run for name, peer in peers.items()}
    seconds = medians(interleaved(runs, rounds, PAUSE if TORCH in peers else 0.0))
    ms = {name: 1e3 * s / steps_of(grads) for name, s in seconds.items()}
    floor = ms[COPY] * FLOOR_BYTES / COPY_BYTES if COPY in ms else None
    rows: list[Row] = []
    for case in (case for case in suite.cases if case.name in peers):
        temporary = peers[case.name].temporary
        row = Row(
            *(suite.title, case.name, "ms", ms[case.name]),
            temporary=None if temporary is None else temporary / parameters(grads),
            temporary_target=case.temporary_target,
            share=floor / ms[case.name] if floor and case.name != COPY else None,
        )
        against = {base: target for base, target in case.bases.items() if base in ms}
        rows += [beside(row, base, ms[base], target) for base, target in against.items()] or [row]
    if floor:
        rows.insert(1, Row(suite.title, FLOOR, "ms", floor, share=1.0))
    return rows


def beside(row: Row, base: str, median: float, target: float | None) -> Row:
    ratio = row.median / median
    return replace(row, base=base, base_median=median, ratio=ratio, target=target)


def steps(suite: Suite, rounds: int) -> list[Row]:
    try:
        return measure(suite, rounds)
    except RuntimeError as error:  # JAX's and PyTorch's errors when a GPU's memory is too small.
        if "memory" not in str(error).lower():
            raise
        print(f"{suite.title} left out: {str(error).splitlines()[0]}\n")
        return []
    finally:
        gc.collect()
        jax.clear_caches()
        if on_gpu() and "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--fast", action="store_true", help="small sizes, to try it out")
    arguments.add_argument("--only", metavar="WORD", default="", help="tables with it in the title")
    arguments.add_argument(
        "--rounds", metavar="N", type=positive, help="default: 24, with --fast 2"
    )
    args = arguments.parse_args()
    rounds = args.rounds or (2 if args.fast else 24)
    # PyTorch needs memory next to JAX on a GPU; JAX reads this when it looks for its devices.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    installed = {d.metadata["Name"] for d in metadata.distributions()}
    machine = describe(*(name for name in PACKAGES if name in installed))
    if on_gpu():
        machine = f"{jax.devices()[0].device_kind}; {machine}"
    print(f"{machine}\n")
    for suite in on_large_gpu(args.fast) if on_gpu() else on_cpu(args.fast):
        if args.only in suite.title and (rows := steps(suite, rounds)):
            print(f"{suite.title}\n\n{markdown(rows)}\n", flush=True)


if __name__ == "__main__":
    main()
