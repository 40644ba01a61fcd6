"""Two models of any width that show their activations: a plain MLP, and a transformer in NNX."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from adam_jax.transfer import attention_scale, mup_init, output_factor

FEATURES, CLASSES, DEPTH = 32, 10, 4
BASE = 64
_BASE_KEY = jax.random.key(1000)

_inputs = jax.random.normal(jax.random.key(100), (64, FEATURES))
_classes = jax.random.randint(jax.random.key(101), (64,), 0, CLASSES)


def mlp_init(width, key, std=None):
    """Kernels of four hidden layers and an output layer.

    The last one is ten times smaller than usual: under muP random logits shrink as 1/√width, and
    the gradients of all layers depend on them.
    """
    sizes = {f"hidden{i}": (width, width) for i in range(1, DEPTH + 1)}
    sizes["hidden1"] = FEATURES, width
    params = {
        name: jax.random.normal(one, size) * (std or (2 / size[0]) ** 0.5)
        for one, (name, size) in zip(jax.random.split(key, len(sizes)), sizes.items(), strict=True)
    }
    logits = jax.random.normal(jax.random.fold_in(key, 1), (width, CLASSES))
    return params | {"logits": logits * 0.1 * (2 / width) ** 0.5}


def mlp(width, key, std=None, scaled=True, factor=True):
    """Parameters and loss for `coordinate_check`; `scaled` and `factor` are muP's two."""

    @jax.jit  # One compilation instead of one for each random array.
    def init(key):
        params = mlp_init(width, key, std)
        return mup_init(params, mlp_init(BASE, _BASE_KEY, std)) if scaled else params

    def loss(params):
        x, activations = _inputs, {}
        for i in range(1, DEPTH + 1):
            x = activations[f"hidden{i}"] = jax.nn.relu(x @ params[f"hidden{i}"])
        logits = x @ params["logits"]
        if factor:
            logits = output_factor(width, BASE) * logits
        of_batch = optax.softmax_cross_entropy_with_integer_labels(logits, _classes)
        return jnp.mean(of_batch), activations | {"logits": logits}

    return init(key), loss


VOCABULARY, CONTEXT, LAYERS, HEADS = 16, 16, 2, 2
_text = jax.random.randint(jax.random.key(102), (8, CONTEXT + 1), 0, VOCABULARY)
_small = nnx.initializers.normal(0.02)


class Block(nnx.Module):
    """A pre-norm block of attention and an MLP, as in examples/text."""

    def __init__(self, width, scale, rngs):
        self.scale = scale
        self.norm_attention = nnx.LayerNorm(width, rngs=rngs)
        self.queries_keys_values = nnx.Linear(width, 3 * width, rngs=rngs)
        self.project = nnx.Linear(width, width, kernel_init=_small, rngs=rngs)
        self.norm_mlp = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, kernel_init=_small, rngs=rngs)

    def __call__(self, x):
        batch, length, width = x.shape
        joint = self.queries_keys_values(self.norm_attention(x))
        joint = joint.reshape(batch, length, 3 * HEADS, width // HEADS)
        queries, keys, values = jnp.split(joint, 3, axis=2)
        read = jax.nn.dot_product_attention(queries, keys, values, is_causal=True, scale=self.scale)
        attended = self.project(read.reshape(batch, length, width))
        self.sow(nnx.Intermediate, "attention", attended)
        x = x + attended
        up = self.down(nnx.gelu(self.up(self.norm_mlp(x))))
        self.sow(nnx.Intermediate, "mlp", up)
        return x + up


class Transformer(nnx.Module):
    """Token numbers to logits; heads grow with the width."""

    def __init__(self, width, standard, rngs):
        base = width if standard else BASE
        self.factor = output_factor(width, base)
        scale = attention_scale(width / HEADS, base / HEADS)
        self.tokens = nnx.Embed(VOCABULARY, width, embedding_init=_small, rngs=rngs)
        self.positions = nnx.Embed(CONTEXT, width, embedding_init=_small, rngs=rngs)
        self.blocks = nnx.List([Block(width, scale, rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.out = nnx.Linear(width, VOCABULARY, use_bias=False, kernel_init=_small, rngs=rngs)

    def __call__(self, tokens):
        x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        self.sow(nnx.Intermediate, "features", x)
        return self.factor * self.out(x)


def transformer_init(width, key, standard=False):
    """What `nnx.merge` needs, and the parameters as an nnx.State."""
    return nnx.split(Transformer(width, standard, nnx.Rngs(params=key)), nnx.Param)


def transformer(width, key, standard=False):
    """Parameters and loss for `coordinate_check`: logits, and what layers sow."""
    graph, _ = nnx.eval_shape(lambda: transformer_init(width, key, standard))

    @jax.jit
    def init(key):
        _, params = transformer_init(width, key, standard)
        return params if standard else mup_init(params, transformer_init(BASE, _BASE_KEY)[1])

    def loss(params):
        forward = nnx.capture(nnx.merge(graph, params), nnx.Intermediate)
        logits, sown = forward(_text[:, :-1])
        of_batch = optax.softmax_cross_entropy_with_integer_labels(logits, _text[:, 1:])
        return jnp.mean(of_batch), {"logits": logits, "sown": sown}

    return init(key), loss
