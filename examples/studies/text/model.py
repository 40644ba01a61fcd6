"""A decoder-only transformer in Flax NNX: pre-norm blocks, learned positions, untied output."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

small = nnx.initializers.normal(0.02)


class Transformer(nnx.Module):
    """Token numbers int32 [batch, length ≤ context] to logits float32 [batch, length, vocabulary].

    Parameters are stored in `dtype`, and so is all computation, except for the logits and for the
    parts that the layers do in float32 (the statistics of LayerNorm, the softmax of attention).
    """

    def __init__(
        self,
        vocabulary: int,
        context: int,
        width: int,
        layers: int,
        heads: int,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype}
        self.tokens = nnx.Embed(vocabulary, width, embedding_init=small, rngs=rngs, **types)
        self.positions = nnx.Embed(context, width, embedding_init=small, rngs=rngs, **types)
        self.blocks = nnx.List([Block(width, heads, types, rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs, **types)
        self.out = nnx.Linear(width, vocabulary, kernel_init=small, rngs=rngs, **types)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits of the character after each token, given it and those before it."""
        x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x)).astype(jnp.float32)


class Block(nnx.Module):
    """x ← x + attention(norm(x)), then x ← x + mlp(norm(x)): [batch, length, width]."""

    def __init__(self, width: int, heads: int, types: dict[str, Any], rngs: nnx.Rngs):
        self.heads = heads
        self.norm_attention = nnx.LayerNorm(width, rngs=rngs, **types)
        self.queries_keys_values = nnx.Linear(width, 3 * width, rngs=rngs, **types)
        self.project = nnx.Linear(width, width, kernel_init=small, rngs=rngs, **types)
        self.norm_mlp = nnx.LayerNorm(width, rngs=rngs, **types)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs, **types)
        self.down = nnx.Linear(4 * width, width, kernel_init=small, rngs=rngs, **types)

    def __call__(self, x: jax.Array) -> jax.Array:
        """One layer."""
        x = x + self.attention(self.norm_attention(x))
        return x + self.down(nnx.gelu(self.up(self.norm_mlp(x))))

    def attention(self, x: jax.Array) -> jax.Array:
        """Causal attention: each character attends to itself and to those before it."""
        batch, length, width = x.shape
        joint = self.queries_keys_values(x).reshape(batch, length, 3 * self.heads, -1)
        queries, keys, values = jnp.split(joint, 3, axis=2)  # [batch, length, heads, width / heads]
        read = jax.nn.dot_product_attention(queries, keys, values, is_causal=True)
        return self.project(read.reshape(batch, length, width))
