"""Gradient release: memory and results of a train step with and without it.

python -m examples.gradient_release [--layers 8] [--steps 20]

Residual layers predict the lower half of digits from the upper half. Both steps start from the same
parameters. The table has the bytes per parameter of each compiled step on this machine's device,
and on an H200 if its compiler is installed (see benchmarks/gpu.py).
"""

import argparse
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import adam_jax
from examples.gradient_release import training
from examples.mnist import data
from examples.options import positive

BATCH = 32
STEPS = {"whole": training.whole_step, "released": training.released_step}
TX = adam_jax.adamw(1e-4)


def batches(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Digits without their lower half, and whole; float32 [count, batch, pixels]."""
    images = data.load().train_images[: count * BATCH].astype(np.float32) / 255
    upper = images.copy()
    upper[:, data.SIDE // 2 :] = 0
    shape = (count, BATCH, data.SIDE**2)
    return upper.reshape(shape), images.reshape(shape)


def bytes_per_parameter(
    compile_step: Callable[..., Any], layers: int, width: int
) -> dict[str, tuple[float, float]]:
    """Of each step: bytes per parameter of parameters and state, and of the temporaries."""
    init = functools.partial(training.init, TX, layers, width)
    state = jax.eval_shape(init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((BATCH, width), jnp.float32)
    size = sum(p.size for p in state.params.values())
    found = {}
    for name, step in STEPS.items():
        memory = compile_step(functools.partial(step, TX), state, x, x).memory_analysis()
        found[name] = memory.argument_size_in_bytes / size, memory.temp_size_in_bytes / size
    return found


def compile_here(f: Any, *args: Any) -> Any:
    """Compiled for this machine's device, with a donated state."""
    return jax.jit(f, donate_argnums=0).lower(*args).compile()


def compilers() -> dict[str, Callable[..., Any]]:
    """The targets that a step can be compiled for."""
    found: dict[str, Callable[..., Any]] = {jax.devices()[0].device_kind: compile_here}
    try:
        from benchmarks.gpu import compile_for_h200, plugin

        plugin()
    except ModuleNotFoundError as missing:
        print(f"not compiled for an H200: {missing}", file=sys.stderr)
    else:
        found["H200, compiled only"] = functools.partial(compile_for_h200, donate=(0,))
    return found


def main() -> None:
    """Trains both ways; prints losses, differences and memory."""
    arguments = argparse.ArgumentParser(prog="python -m examples.gradient_release")
    arguments.add_argument("--layers", type=positive, default=8)
    arguments.add_argument("--steps", type=positive, default=20)
    args = arguments.parse_args()
    width, states = data.SIDE**2, {}
    x, y = batches(args.steps)
    for name, step in STEPS.items():
        state = training.init(TX, args.layers, width, jax.random.key(0))
        train_step = jax.jit(functools.partial(step, TX), donate_argnums=0)
        losses = []
        for i in range(args.steps):
            state, loss = train_step(state, x[i], y[i])
            losses.append(float(loss))
        print(f"{name}: loss {losses[0]:.5f} at step 1, {losses[-1]:.5f} at step {args.steps}")
        states[name] = jax.tree.leaves(state.params)
    differences = [jnp.max(jnp.abs(a - b)) for a, b in zip(*states.values(), strict=True)]
    print(f"largest difference of a parameter: {float(max(differences)):.1e}\n")
    print("| device | step | parameters and state B/p | temporaries B/p |\n|---|---|---|---|")
    for device, compiler in compilers().items():
        table = bytes_per_parameter(compiler, args.layers, width)
        for name, (kept, temporary) in table.items():
            print(f"| {device} | {name} | {kept:.2f} | {temporary:.2f} |")


if __name__ == "__main__":
    main()
