"""Writing with a trained model, one character after the other."""

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
    """Characters int32 [length] that go on from a prompt int32 [at least 1], which is not repeated.

    Args:
      graph: the model without its parameters.
      params: the parameters.
      prompt: what the text begins with; the model sees the last `context` characters of it.
      length: characters to write.
      temperature: the logits are divided by it; near 0, the most probable character each time.
      context: of the model.
      key: the same key writes the same text.
    """
    prompt = prompt[-context:]
    # Room for a whole window: what stands behind the character to read from is not seen by it.
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
