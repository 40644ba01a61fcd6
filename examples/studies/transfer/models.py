"""Three models in Flax NNX with variable width or depth, each with the factors for growing it.

A factor of 1 is the standard parametrization. `adam_jax.transfer` computes the factors of muP and
CompleteP from a size and a base size. At the base size they are 1, except for the scale of
attention, which is the usual 1/√(size of a head).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from examples.mnist.models import CLASSES, PIXELS

he_normal = nnx.initializers.he_normal()
HEADS, CONTEXT, LAYERS = 4, 32, 2
RESIDUAL_WIDTH = 64


class Mlp(nnx.Module):
    """Three hidden layers with LayerNorm: digits [batch, 784] to logits [batch, 10]."""

    def __init__(self, width: int, base_width: int, rngs: nnx.Rngs):
        sizes = zip((PIXELS, width, width), (width, width, width), strict=True)
        self.hidden = nnx.List(
            [nnx.Linear(m, n, kernel_init=he_normal, rngs=rngs) for m, n in sizes]
        )
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(3)])
        self.out = nnx.Linear(width, CLASSES, rngs=rngs)
        self.output_factor = base_width / width

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits."""
        for hidden, norm in zip(self.hidden, self.norms, strict=True):
            x = nnx.relu(norm(hidden(x)))
        return self.out(self.output_factor * x)


class ResidualMlp(nnx.Module):
    """Blocks x ← x + factor·f(norm(x)) of one width: digits [batch, 784] to logits [batch, 10]."""

    def __init__(self, depth: int, base_depth: int, rngs: nnx.Rngs):
        self.embed = nnx.Linear(PIXELS, RESIDUAL_WIDTH, rngs=rngs)
        self.blocks = nnx.List([ResidualBlock(RESIDUAL_WIDTH, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(RESIDUAL_WIDTH, rngs=rngs)
        self.out = nnx.Linear(RESIDUAL_WIDTH, CLASSES, rngs=rngs)
        self.residual_factor = base_depth / depth

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits."""
        x = self.embed(x)
        for block in self.blocks:
            x = x + self.residual_factor * block(x)
        return self.out(self.norm(x))


class ResidualBlock(nnx.Module):
    """Two layers after a LayerNorm."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, width, kernel_init=he_normal, rngs=rngs)
        self.down = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The increment of x."""
        return self.down(nnx.relu(self.up(self.norm(x))))


class Transformer(nnx.Module):
    """Two pre-norm decoder blocks: characters [batch, 32] to logits [batch, 32, vocabulary]."""

    def __init__(self, vocabulary: int, width: int, base_width: int, rngs: nnx.Rngs):
        of_size_1 = nnx.initializers.normal(1.0)
        self.tokens = nnx.Embed(vocabulary, width, embedding_init=of_size_1, rngs=rngs)
        self.positions = nnx.Embed(CONTEXT, width, embedding_init=of_size_1, rngs=rngs)
        scale = (base_width // HEADS) ** 0.5 / (width // HEADS)
        self.blocks = nnx.List([Block(width, scale, rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.out = nnx.Linear(width, vocabulary, rngs=rngs)
        self.output_factor = base_width / width

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits of the next character at each position."""
        x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.out(self.output_factor * self.norm(x))


class Block(nnx.Module):
    """Attention with four heads, then two layers: [batch, length, width]."""

    def __init__(self, width: int, scale: float, rngs: nnx.Rngs):
        self.norm_attention = nnx.LayerNorm(width, rngs=rngs)
        self.queries_keys_values = nnx.Linear(width, 3 * width, rngs=rngs)
        self.project = nnx.Linear(width, width, rngs=rngs)
        self.norm_mlp = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)
        self.scale = scale

    def __call__(self, x: jax.Array) -> jax.Array:
        """One layer."""
        x = x + self.attention(self.norm_attention(x))
        return x + self.down(nnx.gelu(self.up(self.norm_mlp(x))))

    def attention(self, x: jax.Array) -> jax.Array:
        """Causal attention: each character attends to itself and to those before it."""
        batch, length, width = x.shape
        joint = self.queries_keys_values(x).reshape(batch, length, 3 * HEADS, -1)
        queries, keys, values = jnp.split(joint, 3, axis=2)
        read = jax.nn.dot_product_attention(queries, keys, values, is_causal=True, scale=self.scale)
        return self.project(read.reshape(batch, length, width))
