"""Two train steps of one model: with all gradients at once, and with one layer's at a time.

The layers are one stack of arrays, `[layers, ...]`, and so is their optimizer state. The backward
pass loops over them from the last to the first, carries parameters and state, and updates each
layer's in place. It uses only `jax.vjp` and `jax.lax.fori_loop`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import adam_jax

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
