"""Roles, growth and layers, derived from two trees of shapes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from adam_jax.transfer.growth import growths

HIDDEN, INPUT, OUTPUT = ("hidden", 4, 4), ("input", 1, 4), ("output", 4, 1)
VECTOR, FIXED = ("vector", 1, 4), ("fixed", 1, 1)


def shape(*axes):
    return jax.ShapeDtypeStruct(axes, jnp.float32)


def roles(base, params, **kwargs):
    """The role, and the growth of inputs and outputs, of each leaf by path."""
    return {
        g.path: (g.role, round(g.fan_in, 9), round(g.fan_out, 9))
        for g in growths(base, params, **kwargs)
    }


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


@pytest.mark.parametrize("outputs_last", [True, False])
def test_kernels_of_other_shapes_than_matrices(outputs_last):
    """Where one side alone grows, the factors are those of either role."""

    def init(width):
        axes = {
            "first": (3, 3, 1, width),
            "depthwise": (3, 3, 1, width),
            "bias": (1, 1, width),
            "embedding": (50, width),
            "positions": (1, 9, width),
            "hidden": (3, 3, width, 2 * width),
            "one_axis": (3, width, width),
            "experts": (6, width, 2 * width),
            "fused": (3, width, 2, width // 2),
            "readout": (width, 50),
        }
        return {name: shape(*its[:: 1 if outputs_last else -1]) for name, its in axes.items()}

    one, other = (INPUT, OUTPUT) if outputs_last else (OUTPUT, INPUT)
    expected = dict.fromkeys(init(4), HIDDEN) | {"bias": VECTOR, "readout": other}
    expected |= dict.fromkeys(("first", "depthwise", "positions", "embedding"), one)
    assert roles(init(4), init(16)) == expected


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


def test_names_tell_the_sides_that_grow_differently():
    def init(n, m):
        return {
            "weight": shape(8 * m, 8 * n),
            "kernel": shape(8 * n, 8 * m),
            "last": shape(3, 8 * n),
        }

    found = roles(init(1, 1), init(4, 2))
    assert found["weight"] == found["kernel"] == ("hidden", 4, 2)
    with pytest.raises(ValueError, match="^params must have names that tell .* got 'up' with"):
        growths({"up": shape(8, 8)}, {"up": shape(32, 16)})


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


@pytest.mark.parametrize("name", ["blocks/{}/{}", "Block_{}/Dense_{}", "blocks/{}/layers/{}"])
def test_a_block_that_base_lacks_has_the_shape_of_its_first(name):
    """Also if a path has two numbers, of which one counts blocks."""

    def init(count, width):
        its = {}
        for i in range(count):
            its[name.format(i, 0)] = shape(width, 4 * width)
            its[name.format(i, 1)] = shape(4 * width, width)
        return its

    found = growths(init(2, 8), init(6, 32))
    assert all(g.role == "hidden" and g.layers == (6, 2) and g.depth == 3 for g in found)
    bases = {g.path: g.base_path for g in found}
    assert bases[name.format(5, 1)] == name.format(0, 1)
    assert bases[name.format(1, 1)] == name.format(1, 1)
    assert all(g.depth == 1 for g in growths(init(2, 8), init(2, 32)))
    assert [g.depth for g in growths(init(4, 8), init(1, 32))] == [1 / 4] * 2


@pytest.mark.parametrize("count", [1, 2])
def test_the_first_module_of_haiku_has_no_number(count):
    def init(count, width):
        names = ["net/block", *(f"net/block_{i}" for i in range(1, count))]
        its = {f"{name}/~/linear": {"w": shape(width, 4 * width)} for name in names}
        its |= {f"{name}/~/linear_1": {"w": shape(4 * width, width)} for name in names}
        return its | {"linear": {"w": shape(width, 3)}}

    found = {g.path: g for g in growths(init(count, 4), init(6, 16))}
    blocks = [g for path, g in found.items() if path.startswith("net")]
    assert len(blocks) == 12 and {g.depth for g in blocks} == {6 / count}
    assert found["net/block_5/~/linear_1/w"].base_path == "net/block/~/linear_1/w"
    assert found["linear/w"].layers == (1, 1) and found["linear/w"].role == "output"


def test_layers_of_different_shapes_must_be_as_many():
    def init(*widths):
        return {f"Dense_{i}": shape(n, m) for i, (n, m) in enumerate(itertools.pairwise(widths))}

    with pytest.raises(ValueError, match="^base must have as many layers as params, or layers of"):
        growths(init(5, 8, 8, 3), init(5, 32, 32, 32, 3))


def stacked(count, width):
    return {
        "embedding": shape(50, width),
        "blocks": {
            "dense": {"kernel": shape(count, width, width), "bias": shape(count, width)},
            "norm": {"scale": shape(count, width)},
        },
        "head": shape(width, 50),
    }


def test_stacked_layers():
    wider = roles(stacked(2, 4), stacked(2, 16))
    assert wider["blocks/dense/kernel"] == HIDDEN and wider["blocks/norm/scale"] == VECTOR
    found = {g.path: g for g in growths(stacked(2, 4), stacked(8, 16), layers="blocks/.*")}
    kernel, bias = found["blocks/dense/kernel"], found["blocks/dense/bias"]
    assert kernel.role == "hidden" and kernel.layers == (8, 2) and kernel.fan_in == 4
    assert bias.role == "vector" and bias.depth == 4 and bias.width == 4
    assert found["head"].layers == (1, 1)


@pytest.mark.parametrize("grown", [(8, 16), (8, 32), (4, 8)])
def test_a_leaf_that_grows_unlike_any_kernel_must_be_named(grown):
    message = "^layers must match every leaf whose .* 'blocks/dense/kernel' grows .* write, for"
    for layers in (None, "blocks/.*/bias"):
        with pytest.raises(ValueError, match=message):
            growths(stacked(2, 4), stacked(*grown), layers=layers)
    assert growths(stacked(2, 4), stacked(*grown), layers="blocks/.*")


@pytest.mark.parametrize("grown", [(8, 4), (8, 8), (32, 16)])
def test_nothing_is_guessed_where_a_kernel_may_grow_so(grown):
    """A kernel of attention grows like four times as many layers of twice the width."""
    by_name = {g.path: g for g in growths(stacked(2, 4), stacked(*grown))}
    assert by_name["blocks/dense/kernel"].layers == (1, 1)


@pytest.mark.parametrize(
    "init",
    [
        lambda n: {"kernel": shape(4 * n, 4 * n), "bias": shape(4 * n)},
        lambda n: {"gate": shape(4 * n, 8 * n), "up": shape(4 * n, 8 * n)},
        lambda n: {"weight": shape(4 * n, 3, 3, 3), "bias": shape(4 * n, 1, 1)},
        lambda n: {k: shape(4 * n, 2 * n, 2) for k in "qkv"},
        lambda n: {"q": shape(2 * n, 4 * n, 2), "out": shape(2 * n, 2, 4 * n)},
        lambda n: {"q": shape(2 * n, 4 * n, 2), "b": shape(2 * n, 2)},
        lambda n: {"q": shape(4 * n, 2 * n, 2), "k": shape(4 * n, 1, 2), "head": shape(4 * n, 9)},
        lambda n: {"ih": shape(4 * n, 4 * n), "hh": shape(4 * n, 4 * n)},
        lambda n: {"experts": shape(3, 4 * n, 4 * n), "router": shape(4 * n, 3)},
    ],
)
def test_no_kernel_is_taken_for_layers(init):
    assert growths(init(1), init(4))
    if "out" in init(1):
        assert roles(init(1), init(4))["out"] == HIDDEN


def test_wrong_expressions():
    for layers in ("blo", ""):
        message = f"^layers must match the whole path of a leaf, got '{layers}'"
        with pytest.raises(ValueError, match=message):
            growths(stacked(2, 4), stacked(8, 16), layers=layers)
    with pytest.raises(ValueError, match="^layers must be a regular expression"):
        growths(stacked(2, 4), stacked(8, 16), layers="(")
    with pytest.raises(ValueError, match="^layers must match leaves with an axis of layers"):
        growths({"s": shape()}, {"s": shape()}, layers="s")
