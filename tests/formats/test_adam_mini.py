"""Adam-mini's partition of a transformer by roles: Flax's names, and weights with outputs first."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import adam_jax
from adam_jax.formats.block_means import Means

HEADS, WIDTH = 4, 24


class Block(nnx.Module):
    """A decoder with one layer."""

    def __init__(self, rngs):
        self.tokens = nnx.Embed(50, WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.conv = nnx.Conv(3, 8, kernel_size=(5, 5), rngs=rngs)
        self.head = nnx.Linear(WIDTH, 50, rngs=rngs)


def shapes(params, policy=None):
    """The shape that nu stores for each leaf, by path; None for elementwise second moments."""
    tx = adam_jax.scale_by_adam(nu_dtype=policy or adam_jax.AdamMini())
    nu = jax.eval_shape(tx.init, params).nu
    flat = jax.tree.leaves_with_path(nu, is_leaf=lambda x: isinstance(x, Means))
    names = {jax.tree_util.keystr(k, simple=True, separator="/"): x for k, x in flat}
    return {
        name.removesuffix("/value"): x.means.shape if isinstance(x, Means) else None
        for name, x in names.items()
    }


def arrays(**of):
    return {name: jnp.ones(shape) for name, shape in of.items()}


def test_a_transformer_of_flax():
    head_dim = WIDTH // HEADS
    assert shapes(nnx.to_pure_dict(nnx.state(Block(nnx.Rngs(0)), nnx.Param))) == {
        "tokens/embedding": (50, 1),
        "norm/scale": (1,),
        "norm/bias": None,
        "attention/query/kernel": (1, HEADS, 1),
        "attention/query/bias": None,
        "attention/key/kernel": (1, HEADS, 1),
        "attention/key/bias": None,
        "attention/value/kernel": (1, HEADS, head_dim),
        "attention/value/bias": None,
        "attention/out/kernel": (1, 1, WIDTH),
        "attention/out/bias": None,
        "up/kernel": (1, 4 * WIDTH),
        "up/bias": None,
        "conv/kernel": (1, 1, 1, 8),
        "conv/bias": None,
        "head/kernel": (1, 50),
        "head/bias": None,
    }


@pytest.mark.parametrize(
    ("path", "shape", "stored"),
    [
        ("layers/0/q_proj/w", (24, 4, 6), (1, 4, 1)),
        ("WQ/w", (24, 4, 6), (1, 4, 1)),
        ("WQ", (24, 4, 6), None),  # The order of its axes is unknown.
        ("query/kernel", (24, 24), (1, 24)),
        ("v_proj/kernel", (24, 4, 6), (1, 4, 6)),
        ("wte", (50, 24), (50, 1)),
        ("position_embeddings", (50, 24), (50, 1)),
        ("embed/weight", (50, 24), (50, 1)),
        ("patch_embed/kernel", (4, 4, 3, 24), (1, 1, 1, 24)),
        ("conv/weight", (8, 3, 5, 5), (8, 1, 1, 1)),  # Outputs come first.
        ("query/weight", (4, 6, 24), (4, 1, 1)),
        ("mlp/weight", (96, 24), (96, 1)),
        ("norm/scale", (24,), (1,)),
        ("query/bias", (4, 6), None),
        ("temperature", (), None),
    ],
)
def test_names(path, shape, stored):
    *above, last = path.split("/")
    tree = arrays(**{last: shape})
    for key in reversed(above):
        tree = {key: tree}
    assert list(shapes(tree).values()) == [stored]


def test_stacked_layers_have_blocks_of_their_own():
    block = arrays(scale=(3, 24), bias=(3, 96))
    block |= {"query": arrays(w=(3, 24, 4, 6)), "up": arrays(w=(3, 24, 96))}
    tx = adam_jax.scale_by_adam(nu_dtype=adam_jax.AdamMini())
    stacked = adam_jax.with_layers(tx, "blocks/.*").init({"blocks": block, "w": jnp.ones((24, 50))})
    of = stacked.nu["blocks"]
    found = [x.means.shape for x in (of["query"]["w"], of["up"]["w"], of["scale"])]
    assert found == [(3, 1, 4, 1), (3, 1, 96), (3, 1)]
    assert (stacked.nu["blocks"]["bias"].shape, stacked.nu["w"].means.shape) == ((3, 96), (1, 50))
    mapped = jax.vmap(tx.init)(block).nu
    assert jax.tree.map(jnp.shape, mapped) == jax.tree.map(jnp.shape, stacked.nu["blocks"])


def test_it_goes_into_by_path():
    own = {"qkv": adam_jax.BlockMeans((0, 3)), "head/w": jnp.float32}
    policy = adam_jax.by_path(own, adam_jax.AdamMini())
    params = arrays(qkv=(24, 3, 4, 6), w=(24, 96)) | {"head": arrays(w=(24, 50))}
    assert shapes(params, policy) == {"qkv": (1, 3, 4, 1), "w": (1, 96), "head/w": None}
