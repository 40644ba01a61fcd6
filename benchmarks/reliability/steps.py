"""Two million steps: checks for drift, leaks, and type changes at the maximum count."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adam_jax
from adam_jax.formats.blockwise import Blocks, Blockwise

SIZE = 4096  # Moments of smaller arrays stay float32 for every requested type.
MOST = 2**31 - 1  # The maximum of an int32 count.


def optimizers() -> dict[str, tuple[Any, Any]]:
    """By name, with the type of the parameters."""
    int8 = {"mu_dtype": jnp.int8, "nu_dtype": jnp.int8}
    return {
        "adamw": (adam_jax.adamw(1e-3), jnp.float32),
        "adamw, int8 moments": (adam_jax.adamw(1e-3, **int8), jnp.float32),
        "adamw, bfloat16 with master_residual": (
            adam_jax.master_residual(adam_jax.adamw(1e-3)),
            jnp.bfloat16,
        ),
    }


def target() -> jax.Array:
    """The optimum of the loss, in numbers that bfloat16 represents."""
    return jax.random.normal(jax.random.key(0), (SIZE,)).astype(jnp.bfloat16).astype(jnp.float32)


def loss(params: Any, goal: jax.Array) -> jax.Array:
    """A tiny problem: half the mean squared distance from the target."""
    return jnp.mean((params["w"].astype(jnp.float32) - goal) ** 2) / 2


@functools.partial(jax.jit, static_argnames=("steps",), donate_argnames=("params", "state"))
def run(tx: Any, params: Any, state: Any, steps: int) -> tuple[Any, Any]:
    """That many steps as one loop."""
    goal = target()

    def step(carry: Any, _: None) -> tuple[Any, None]:
        params, state = carry
        return adam_jax.step(tx, jax.grad(loss)(params, goal), state, params), None

    return jax.lax.scan(step, (params, state), length=steps)[0]


def resident() -> float:
    """Resident memory of this process, MiB."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def types(tree: Any) -> Any:
    """Structure, shapes and types."""
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree), jax.tree.structure(tree)


def many(tx: Any, dtype: Any, steps: int, chunks: int = 20) -> str:
    """Trains for that long; returns loss and memory after the first chunk and at the end.

    Raises:
      AssertionError: if a type changed, a value is not finite, or the loss has left the optimum.
    """
    params = {"w": jnp.zeros(SIZE, dtype)}
    state = tx.init(params)
    before = types((params, state))
    losses, memory = [], []
    for _ in range(chunks):
        params, state = run(tx, params, state, steps // chunks)
        losses.append(float(loss(params, target())))
        memory.append(resident())
    count = int(optax.tree.get_all_with_path(state, "count")[0][1])
    if types((params, state)) != before or count != steps // chunks * chunks:
        raise AssertionError(f"types changed, or the count is {count}")
    if not losses[-1] < 1e-5:
        raise AssertionError(f"the loss is {losses[-1]:.1e}; it was {min(losses):.1e}")
    return (
        f"types as at the start; loss {losses[0]:.1e} after the first twentieth,"
        f" {losses[-1]:.1e} at the end; resident {memory[0]:.0f} MiB then, {memory[-1]:.0f} MiB"
    )


def nearest(state: Any) -> Any:
    """The same state with its codes rounded to nearest."""

    def change(x: Any) -> Any:
        if not isinstance(x, Blocks) or not isinstance(x.format, Blockwise):
            return x
        return dataclasses.replace(x, format=dataclasses.replace(x.format, stochastic=False))

    return jax.tree.map(change, state, is_leaf=lambda x: isinstance(x, Blocks))


def saturated(tx: Any, dtype: Any) -> str:
    """Steps beyond the largest count.

    Moments are rounded to nearest, because the bits of stochastic rounding depend on the count.
    Where 1 - b**count is 1 in float32 the update no longer depends on the count: a state with the
    maximum count must take exactly the steps of one with a count of a billion.

    Raises:
      AssertionError: if it does not, or the count overflows.
    """
    params = {"w": jnp.zeros(SIZE, dtype)}
    params, warm = run(tx, params, nearest(tx.init(params)), 100)
    ends = []
    for count in (10**9, MOST - 5):
        counts = functools.partial(optax.tree.set, warm, count=jnp.asarray(count, jnp.int32))
        copies = jax.tree.map(jnp.array, (params, counts()))
        ends.append(run(tx, *copies, 10))
    (other, _), (full, state) = ends
    left = int(optax.tree.get_all_with_path(state, "count")[0][1])
    bits = [np.asarray(tree["w"]).tobytes() for tree in (other, full)]
    if left != MOST or bits[0] != bits[1] or not jnp.isfinite(full["w"]).all():
        raise AssertionError(f"the count went from {MOST - 5} to {left}")
    return "the count stays 2³¹-1; the same bits as steps far below it"
