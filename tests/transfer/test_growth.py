"""Roles, growth and layers, derived from two trees of shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from adam_jax.transfer.growth import growths
from tests.transfer.shapes import HIDDEN, INPUT, OUTPUT, VECTOR, roles, shape

FIXED = ("fixed", 1, 1)


class NnxPerceptron(nnx.Module):
    def __init__(self, width):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(5, width, rngs=rngs)
        self.middle = nnx.Linear(width, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.last = nnx.Linear(width, 3, rngs=rngs)


PERCEPTRON = {
    "first/kernel": INPUT,
    "first/bias": VECTOR,
    "middle/kernel": HIDDEN,
    "middle/bias": VECTOR,
    "norm/scale": VECTOR,
    "norm/bias": VECTOR,
    "last/kernel": OUTPUT,
    "last/bias": FIXED,
}


def test_perceptron_of_nnx():
    base, params = (nnx.state(NnxPerceptron(width), nnx.Param) for width in (4, 16))
    assert roles(base, params) == PERCEPTRON
    assert roles(nnx.to_pure_dict(base), params) == PERCEPTRON
    shapes = nnx.eval_shape(lambda: NnxPerceptron(4))
    assert roles(nnx.state(shapes, nnx.Param), params) == PERCEPTRON


class LinenPerceptron(linen.Module):
    width: int

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(self.width)(x)
        x = linen.LayerNorm()(linen.Dense(self.width)(x))
        return linen.Dense(3)(x)


def test_perceptron_of_linen():
    x, key = jnp.ones((1, 5)), jax.random.key(0)
    base = jax.eval_shape(LinenPerceptron(4).init, key, x)
    params = LinenPerceptron(16).init(key, x)
    assert roles(base["params"], params["params"]) == {
        "Dense_0/kernel": INPUT,
        "Dense_0/bias": VECTOR,
        "Dense_1/kernel": HIDDEN,
        "Dense_1/bias": VECTOR,
        "LayerNorm_0/scale": VECTOR,
        "LayerNorm_0/bias": VECTOR,
        "Dense_2/kernel": OUTPUT,
        "Dense_2/bias": FIXED,
    }


def test_convolutions():
    def init(width):
        return {
            "first": shape(3, 3, 1, width),
            "hidden": shape(3, 3, width, 2 * width),
            "depthwise": shape(3, 3, 1, width),
            "one_axis": shape(3, width, width),
        }

    assert roles(init(4), init(16)) == {
        "first": INPUT,
        "hidden": HIDDEN,
        "depthwise": INPUT,
        "one_axis": HIDDEN,
    }


def test_convolutions_with_outputs_first():
    def init(width):
        return {"in": {"weight": shape(width, 3, 3, 3), "bias": shape(width, 1, 1)},
                "mid": {"weight": shape(2 * width, width, 3, 3)}}  # fmt: skip

    its = roles(init(4), init(16), outputs_last=False)
    assert its == {"in/weight": INPUT, "in/bias": INPUT, "mid/weight": HIDDEN}


def attention(heads, size):
    features = heads * size
    module = nnx.MultiHeadAttention(heads, features, decode=False, rngs=nnx.Rngs(0))
    einsum = {"[heads, features, size]": shape(heads, features, size), "b": shape(heads, size)}
    return {"flax": nnx.to_pure_dict(nnx.state(module, nnx.Param)), "einsum": einsum}


@pytest.mark.parametrize("grown", [(8, 4), (2, 16), (4, 8)])
def test_attention_grows_by_heads_by_their_size_or_by_both(grown):
    its = roles(attention(2, 4), attention(*grown))
    assert its.pop("einsum/b")[0] != "fixed"
    expected = {"einsum/[heads, features, size]": HIDDEN, "flax/out/bias": VECTOR}
    for name in ("query", "key", "value", "out"):
        expected[f"flax/{name}/kernel"] = HIDDEN
        expected.setdefault(f"flax/{name}/bias", VECTOR)
    assert its == expected


def test_features_that_grow_by_more_than_either_part_of_the_heads():
    its = roles(attention(2, 4), attention(4, 16))
    kernels = {k: x for k, x in its.items() if not k.endswith("/b")}
    assert kernels["flax/query/kernel"] == kernels["flax/out/kernel"] == ("hidden", 8, 8)
    assert kernels["einsum/[heads, features, size]"] == ("hidden", 8, 8)
    assert kernels["flax/query/bias"] == ("vector", 1, 8)


def test_embeddings_and_experts_that_do_not_grow_in_number():
    def init(width):
        return {"embedding": shape(50, width), "positions": shape(1, 9, width),
                "experts": shape(6, width, 2 * width), "fused": shape(3, width, 2, width // 2),
                "readout": shape(width, 50)}  # fmt: skip

    assert roles(init(4), init(16)) == {
        "embedding": INPUT,
        "positions": INPUT,
        "experts": HIDDEN,
        "fused": HIDDEN,
        "readout": OUTPUT,
    }


def test_outputs_first_where_the_sides_grow_differently():
    def init(n, m):
        return {"weight": shape(8 * m, 8 * n), "first": shape(8 * m, 3), "last": shape(3, 8 * n)}

    assert roles(init(1, 1), init(4, 2), outputs_last=False) == {
        "weight": ("hidden", 4, 2),
        "first": ("input", 1, 2),
        "last": OUTPUT,
    }
    assert roles(init(1, 1), init(4, 2))["weight"] == ("hidden", 2, 4)


def test_integers_none_scalars_and_tracers():
    def init(width):
        return {
            "w": jnp.ones((width, width)),
            "n": jnp.zeros([], jnp.int32),
            "none": None,
            "x": 1.0,
        }

    base, seen = jax.eval_shape(lambda: init(4)), {}

    @jax.jit
    def step(params):
        seen.update(roles(base, params))
        return params

    step(init(16))
    assert seen == {"w": HIDDEN, "n": FIXED, "x": FIXED}
    assert roles(init(4), jax.tree.map(np.asarray, init(16))) == seen


def test_an_axis_of_length_0_counts_as_1():
    assert roles({"a": shape(0, 4)}, {"a": shape(0, 16)}) == {"a": INPUT}
    assert roles({"a": shape(0, 4)}, {"a": shape(4, 16)}) == {"a": HIDDEN}


def test_more_heads_of_a_smaller_size_are_the_same_width():
    base, params = ({"q": shape(64, n, 64 // n), "b": shape(n, 64 // n)} for n in (4, 16))
    assert roles(base, params)["q"] == FIXED


def test_trees_that_do_not_fit_say_where():
    base = {"a": shape(4)}
    with pytest.raises(ValueError, match="got nothing at 'b', which is .* base has .'a'"):
        growths(base, {"b": shape(4)})
    with pytest.raises(ValueError, match=r"got the shape \(4,\) at 'a', which is \(4, 4\)"):
        growths(base, {"a": shape(4, 4)})
    # Leaves that only `base` has are ignored.
    assert roles(base | {"b": shape(3)}, {"a": shape(16)}) == {"a": VECTOR}
