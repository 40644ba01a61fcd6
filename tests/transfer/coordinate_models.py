"""Two models of any width that expose their activations: an MLP, and a transformer in NNX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from adam_jax.transfer import attention_scale, mup_init, output_factor

FEATURES, CLASSES, DEPTH = 32, 10, 4
BASE = 64
_BASE_KEY = jax.random.key(1000)

_inputs = jax.random.normal(jax.random.key(100), (64, FEATURES))
_classes = jax.random.randint(jax.random.key(101), (64,), 0, CLASSES)


def normal(key, size, std):
    """Drawn by NumPy, because JAX would compile a program for each shape."""
    seed = np.asarray(jax.random.key_data(key))
    return jnp.asarray(np.random.default_rng(seed).normal(scale=std, size=size), jnp.float32)


def mlp_init(width, key, std=None):
    """Kernels of four hidden layers and an output layer.

    The output layer is ten times smaller than usual: under muP, random logits shrink as 1/√width,
    and the gradients of all layers depend on them.
    """
    params, inputs = {}, FEATURES
    for i in range(1, DEPTH + 1):
        usual = (2 / inputs) ** 0.5
        params[f"hidden{i}"] = normal(jax.random.fold_in(key, i), (inputs, width), std or usual)
        inputs = width
    usual = (2 / width) ** 0.5
    return params | {"logits": normal(key, (width, CLASSES), 0.1 * usual)}


def mlp(width, key, std=None, scaled=True, factor=True):
    """Parameters and loss for `coordinate_check`; `scaled` and `factor` are muP's two changes."""
    params = mlp_init(width, key, std)
    if scaled:
        params = mup_init(params, mlp_init(BASE, _BASE_KEY, std))

    def loss(params):
        x, activations = _inputs, {}
        for i in range(1, DEPTH + 1):
            x = activations[f"hidden{i}"] = jax.nn.relu(x @ params[f"hidden{i}"])
        logits = x @ params["logits"]
        if factor:
            logits = output_factor(width, BASE) * logits
        of_batch = optax.softmax_cross_entropy_with_integer_labels(logits, _classes)
        return jnp.mean(of_batch), activations | {"logits": logits}

    return params, loss


VOCABULARY, CONTEXT, LAYERS, HEADS = 16, 16, 1, 2
_text = jax.random.randint(jax.random.key(102), (8, CONTEXT + 1), 0, VOCABULARY)


class Block(nnx.Module):
    """A pre-norm block of attention and an MLP, as in examples/studies/text."""

    def __init__(self, width, scale, rngs):
        self.scale = scale
        self.norm_attention = nnx.LayerNorm(width, rngs=rngs)
        self.queries_keys_values = nnx.Linear(width, 3 * width, rngs=rngs)
        self.project = nnx.Linear(width, width, rngs=rngs)
        self.norm_mlp = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x):
        batch, length, width = x.shape
        joint = self.queries_keys_values(self.norm_attention(x))
        joint = joint.reshape(batch, length, 3 * HEADS, width // HEADS)
        queries, keys, values = jnp.split(joint, 3, axis=2)
        read = jax.nn.dot_product_attention(queries, keys, values, is_causal=True, scale=self.scale)
        attended = self.project(read.reshape(batch, length, width))
        self.sow(nnx.Intermediate, "attention", attended)
        x = x + attended
        processed = self.down(nnx.gelu(self.up(self.norm_mlp(x))))
        self.sow(nnx.Intermediate, "mlp", processed)
        return x + processed


class Transformer(nnx.Module):
    """Maps token ids to logits; the heads grow with the width."""

    def __init__(self, width, standard, rngs):
        base = width if standard else BASE
        self.factor = output_factor(width, base)
        scale = attention_scale(width / HEADS, base / HEADS)
        self.tokens = nnx.Embed(VOCABULARY, width, rngs=rngs)
        self.positions = nnx.Embed(CONTEXT, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, scale, rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.out = nnx.Linear(width, VOCABULARY, use_bias=False, rngs=rngs)

    def __call__(self, tokens):
        x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        self.sow(nnx.Intermediate, "features", x)
        return self.factor * self.out(x)


@functools.cache
def _transformer_shapes(width, standard):
    model = nnx.eval_shape(lambda: Transformer(width, standard, nnx.Rngs(0)))
    return nnx.split(model, nnx.Param)


def transformer_init(width, key, standard=False):
    """The parameters as an nnx.State."""
    _, shapes = _transformer_shapes(width, standard)
    flat, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    leaves = []
    for i, (path, leaf) in enumerate(flat):
        name = jax.tree_util.keystr(path)
        if "scale" in name or "bias" in name:
            leaves.append(jnp.full(leaf.shape, float("scale" in name)))
            continue
        fan_in = "queries" in name or "'up'" in name
        std = leaf.shape[0] ** -0.5 if fan_in else 0.02
        leaves.append(normal(jax.random.fold_in(key, i), leaf.shape, std))
    return treedef.unflatten(leaves)


def transformer(width, key, standard=False):
    """Parameters and loss for `coordinate_check`, with logits and sown activations."""
    graph, _ = _transformer_shapes(width, standard)
    params = transformer_init(width, key, standard)
    if not standard:
        params = mup_init(params, transformer_init(BASE, _BASE_KEY))

    def loss(params):
        forward = nnx.capture(nnx.merge(graph, params), nnx.Intermediate)
        logits, sown = forward(_text[:, :-1])
        of_batch = optax.softmax_cross_entropy_with_integer_labels(logits, _text[:, 1:])
        return jnp.mean(of_batch), {"logits": logits, "sown": sown}

    return params, loss
