"""Gradient release: updates each layer's parameters inside the backward pass.

No gradient outlives its layer. The layers are one stack of arrays, `[layers, ...]`, and so is their
optimizer state. The backward pass loops over them from the last to the first, carries parameters
and state, and updates each layer's in place. It uses only `jax.vjp` and `jax.lax.fori_loop`.

Residual layers predict the lower half of digits from the upper half, with and without gradient
release, from the same parameters. OUT/table.md has the bytes per parameter of each compiled step on
this device. XLA:CPU copies what a loop updates in place; GPUs and TPUs do not.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adam_jax
from examples.mnist import data
from examples.shared import study

BATCH = 32
TX = adam_jax.adamw(1e-4)
Params = dict[str, jax.Array]


class TrainState(NamedTuple):
    """The variables of a step: stacks over the layers."""

    params: Params
    opt_state: Any


def layer(params: Params, x: jax.Array) -> jax.Array:
    """A residual block: x + W₂·gelu(W₁·rms_norm(x)); x [batch, width]."""
    norm = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
    return x + jax.nn.gelu(x * norm * params["scale"] @ params["in"]) @ params["out"]


def loss(x: jax.Array, y: jax.Array) -> jax.Array:
    """The mean squared error."""
    return jnp.mean((x - y) ** 2)


def init(tx: optax.GradientTransformation, layers: int, width: int, key: jax.Array) -> TrainState:
    """Parameters, and a separate state for each layer."""
    keys = jax.random.split(key, 2)
    hidden = 4 * width
    params = {
        "scale": jnp.ones((layers, width)),
        "in": jax.random.normal(keys[0], (layers, width, hidden)) / width**0.5,
        "out": jax.random.normal(keys[1], (layers, hidden, width)) / hidden**0.5 / layers**0.5,
    }
    return TrainState(params, jax.vmap(tx.init)(params))


def whole_step(
    tx: optax.GradientTransformation, state: TrainState, x: jax.Array, y: jax.Array
) -> tuple[TrainState, jax.Array]:
    """The usual step: all gradients, then all updates."""

    def forward(params: Params) -> jax.Array:
        return loss(jax.lax.scan(lambda x, p: (layer(p, x), None), x, params)[0], y)

    value, grads = jax.value_and_grad(forward)(state.params)
    step = jax.vmap(lambda g, s, p: adam_jax.step(tx, g, s, p))
    return TrainState(*step(grads, state.opt_state, state.params)), value


def released_step(
    tx: optax.GradientTransformation, state: TrainState, x: jax.Array, y: jax.Array
) -> tuple[TrainState, jax.Array]:
    """The same step, one layer after the other.

    Anything that needs all gradients at once, such as clipping by their norm, is not possible here.
    """
    layers = len(state.params["scale"])
    last, inputs = jax.lax.scan(lambda x, p: (layer(p, x), x), x, state.params)
    value, cotangent = jax.value_and_grad(loss)(last, y)

    def backward(done: jax.Array, carry: tuple[TrainState, jax.Array]) -> Any:
        state, cotangent = carry
        index = layers - 1 - done
        params, opt_state = jax.tree.map(lambda stack: stack[index], tuple(state))
        _, pullback = jax.vjp(layer, params, inputs[index])
        grads, cotangent = pullback(cotangent)
        new = adam_jax.step(tx, grads, opt_state, params)
        stacks = jax.tree.map(lambda stack, own: stack.at[index].set(own), tuple(state), new)
        return TrainState(*stacks), cotangent

    state, _ = jax.lax.fori_loop(0, layers, backward, (state, cotangent))
    return state, value


STEPS = {"whole": whole_step, "released": released_step}


def compile_here(f: Any, *args: Any) -> Any:
    """Compiled for this machine's device, with a donated state."""
    return jax.jit(f, donate_argnums=0).lower(*args).compile()


def bytes_per_parameter(
    step: Any, layers: int, width: int, compile_step: Callable[..., Any] = compile_here
) -> tuple[float, float]:
    """Of parameters and state, and of the temporaries of a compiled step."""
    state = jax.eval_shape(functools.partial(init, TX, layers, width), jax.random.key(0))
    x = jax.ShapeDtypeStruct((BATCH, width), jnp.float32)
    memory = compile_step(functools.partial(step, TX), state, x, x).memory_analysis()
    size = sum(p.size for p in state.params.values())
    return memory.argument_size_in_bytes / size, memory.temp_size_in_bytes / size


def main(argv: list[str] | None = None) -> None:
    """Trains both ways; prints losses, differences and memory."""
    options = study.Parser("usage.gradient_release", __doc__, fast=9, full=30).options(argv)
    layers, steps, width = (2, 5, data.SIDE**2) if options.fast else (8, 20, data.SIDE**2)
    images = data.load().train_images[: steps * BATCH].astype(np.float32) / 255
    upper = images.copy()
    upper[:, data.SIDE // 2 :] = 0
    x, y = upper.reshape(steps, BATCH, width), images.reshape(steps, BATCH, width)
    work, ends = study.Study(options.out, {"seed": options.seed, "steps": steps}), []

    def train(step: Any) -> study.Result:
        state, losses = init(TX, layers, width, jax.random.key(options.seed)), []
        train_step = jax.jit(functools.partial(step, TX), donate_argnums=0)
        for i in range(steps):
            state, loss = train_step(state, x[i], y[i])
            losses.append(float(loss))
        ends.append(jax.tree.leaves(state.params))
        return {"losses": losses, "bytes": bytes_per_parameter(step, layers, width)}

    found = work.run(
        study.Piece(name, functools.partial(train, step), loss="losses")
        for name, step in STEPS.items()
    )
    rows = [
        (n, f"{r['losses'][-1]:.5f}", *(f"{b:.2f}" for b in r["bytes"])) for n, r in found.items()
    ]
    columns = ("step", f"loss after {steps} steps", "parameters and state B/p", "temporaries B/p")
    print(work.table(columns, rows, "table"))
    if len(ends) == len(STEPS):
        apart = max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(*ends, strict=True))
        print(f"largest difference of a parameter: {apart:.1e}")


if __name__ == "__main__":
    study.command(main)
