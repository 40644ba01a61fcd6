"""Generates text with a trained model, one character at a time."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def generate(
    graph: Any,
    params: Any,
    prompt: np.ndarray,
    length: int,
    temperature: float,
    context: int,
    key: jax.Array,
) -> np.ndarray:
    """Characters int32 [length] that continue a prompt int32 [at least 1], without the prompt.

    Args:
      graph: the model without its parameters.
      params: the parameters.
      prompt: the start of the text; the model sees its last `context` characters.
      length: number of characters to generate.
      temperature: divides the logits; near 0, the most probable character is always taken.
      context: of the model.
      key: the same key gives the same text.
    """
    prompt = prompt[-context:]
    # Space for a whole window: attention is causal, so later positions have no effect.
    text = np.zeros(max(len(prompt) + length, context), np.int32)
    text[: len(prompt)] = prompt
    places = jnp.arange(len(prompt), len(prompt) + length)
    heat = jnp.float32(temperature)
    return np.asarray(_write(params, jnp.asarray(text), places, heat, key, graph, context))


@functools.partial(jax.jit, static_argnames=("graph", "context"))
def _write(
    params: Any,
    text: jax.Array,
    places: jax.Array,
    temperature: jax.Array,
    key: jax.Array,
    graph: Any,
    context: int,
) -> jax.Array:
    model = nnx.merge(graph, params)

    def write_one(text: jax.Array, place: jax.Array) -> tuple[jax.Array, jax.Array]:
        first = jnp.maximum(place - context, 0)
        window = jax.lax.dynamic_slice_in_dim(text, first, context)
        logits = model(window[None])[0, place - 1 - first]
        token = jax.random.categorical(jax.random.fold_in(key, place), logits / temperature)
        return text.at[place].set(token), token

    return jax.lax.scan(write_one, text, places)[1]
