"""The peers of `benchmarks.step`: runs of a few optimizer steps in JAX and PyTorch."""

import importlib
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import adam_jax

# One run is a whole group of micro-steps for every peer. With accumulation, a median over single
# micro-steps would hide the optimizer step.
GROUP = 4

Leaves = list[jax.Array]
Step = Callable[[Any, Any, Any], tuple[Any, Any]]


class Peer(NamedTuple):
    """A timed peer: `run()` takes `steps(grads)` steps."""

    run: Callable[[], object]
    temporary: int | None = None  # Bytes that XLA allocates besides arguments and results.


class Missing(Exception):
    """A requirement of a peer is missing; its rows are skipped."""


def on_gpu() -> bool:
    return jax.default_backend() == "gpu"


def update(tx: optax.GradientTransformation) -> Step:
    """One step as users of Optax write it."""

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def whole(tx: optax.GradientTransformation) -> Step:
    """One step through `adam_jax.step`."""
    return lambda params, state, grads: adam_jax.step(tx, grads, state, params)


def in_jax(init: Callable[[Any], Any], step: Step, grads: Leaves, count: int) -> Peer:
    """Repeated calls of a compiled step with donated parameters and state; parameters are 0.5."""
    params = [jnp.full_like(g, 0.5) for g in grads]
    held = [params, init(params)]
    # Parameters first, as in the results: XLA pairs donated buffers with results in order.
    jitted = jax.jit(step, donate_argnums=(0, 1))
    memory = jitted.lower(*held, grads).compile().memory_analysis()

    def run() -> None:
        for _ in range(count):
            # Not the result of `compile`, whose calls take twice as long with 2,000 arrays.
            held[:] = jitted(*held, grads)
        # Wait only once, as training loops do not wait for each step either.
        jax.block_until_ready(held)

    return Peer(run, memory.temp_size_in_bytes if memory else None)


def by_update(tx: Any) -> Callable[[Leaves], Peer]:
    return lambda grads: in_jax(tx.init, update(tx), grads, steps(grads))


def by_step(tx: Any, dtype: Any = jnp.float32) -> Callable[[Leaves], Peer]:
    def build(grads: Leaves) -> Peer:
        return in_jax(tx.init, whole(tx), [g.astype(dtype) for g in grads], steps(grads))

    return build


def copying(grads: Leaves) -> Peer:
    """One array with as many elements, read and written once: the available bandwidth."""
    size = sum(g.size for g in grads)
    return in_jax(lambda _: jnp.zeros(size), lambda p, x, g: (p, x + 1), [], steps(grads))


def in_torch(grads: Leaves) -> Peer:
    """PyTorch's fused AdamW on leaves of the same sizes."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise Missing("torch is not installed") from error
    if on_gpu() and not torch.cuda.is_available():
        raise Missing("this torch has no CUDA")
    device = "cuda" if on_gpu() else "cpu"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    params = [torch.full(g.shape, 0.5, device=device) for g in grads]
    for p in params:
        p.grad = torch.full_like(p, 0.01)
    optimizer = torch.optim.AdamW(params, 1e-3, fused=True)

    def run() -> None:
        for _ in range(steps(grads)):
            optimizer.step()
        if on_gpu():
            torch.cuda.synchronize()

    return Peer(run)


def in_flashoptim(grads: Leaves) -> Peer:
    """AdamW with 8-bit moments, in plain JAX: its kernels are for GPUs and 16-bit parameters."""
    try:
        flash = importlib.import_module("flashoptim_jax")
    except ImportError as error:
        raise Missing("flashoptim-jax cannot be imported") from error
    tx = flash.flash_adamw(1e-3, weight_decay=1e-4, fused=False, master_weight_bits=None)
    return in_jax(tx.init, tx.step, grads, steps(grads))


def steps(grads: Leaves) -> int:
    """Steps in one run: more if they are short, since the first has cold caches, idle threads."""
    return GROUP if parameters(grads) >= 10_000_000 else 5 * GROUP


def parameters(grads: Leaves) -> int:
    return sum(math.prod(g.shape) for g in grads)
