"""Parameters in Haliax' NamedArrays: every array of the state is one with axis names of its own."""

import contextlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import adam_jax

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Of its imports.
    hax = pytest.importorskip("haliax", reason="Haliax is among the peers: make test-peers")

CODES = adam_jax.Quantized(min_size=0)
STORED = {
    "int8": dict(mu_dtype=CODES, nu_dtype=CODES),
    "factored": dict(nu_dtype=adam_jax.Factored(1, 1)),
    "float32": {},
}
MAPPING = {"embed": "data"}


def named(x):
    return isinstance(x, hax.NamedArray)


@contextlib.contextmanager
def on_devices(mapping):
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=jax.devices()[:4])
    with jax.set_mesh(mesh), hax.axis_mapping(mapping):
        yield


@pytest.mark.parametrize("storage", STORED)
@pytest.mark.parametrize("width", [32, 384])
@pytest.mark.parametrize("told", [None, {}, MAPPING])
def test_a_state_is_placed_and_stepped_by_its_names(storage, width, told):
    """Whether or not the devices were known when it was made: `told` is the mapping then."""
    embed, mlp = hax.Axis("embed", width), hax.Axis("mlp", 8)
    x = jnp.sin(jnp.arange(8.0 * width)).reshape(8, width)
    bare = {"kernel": x, "turned": x.T, "bias": x[0]}
    axes = {"kernel": (mlp, embed), "turned": (embed, mlp), "bias": (embed,)}
    params = {key: hax.named(bare[key], axes[key]) for key in axes}
    tx = adam_jax.adamw(0.1, **STORED[storage])
    with on_devices(told) if told is not None else contextlib.nullcontext():
        state = jax.jit(tx.init)(params)
    with on_devices(MAPPING):
        placed = hax.shard((params, state))
        step = jax.jit(lambda p, s: adam_jax.step(tx, p, s, p))
        new, after = step(*step(*step(*placed)))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    inside = [x for x in jax.tree.leaves(placed[1], is_leaf=named) if named(x)]
    assert all(isinstance(x.array, jax.Array) for x in inside)
    large = [x.array for x in inside if x.array.size >= 8 * width]
    assert large and all(x.addressable_shards[0].data.size == x.size // 4 for x in large)
    expected = bare, tx.init(bare)
    for _ in range(3):
        expected = adam_jax.step(tx, expected[0], expected[1], expected[0])
    for key, p in expected[0].items():  # Three steps of 0.1, with other blocks.
        bound = 2e-2 if storage == "int8" else 1e-6
        np.testing.assert_allclose(new[key].array, p, rtol=1e-6, atol=bound)


def test_groups_select_by_the_path_of_the_named_array():
    params = {"a": hax.ones(hax.Axis("x", 4)), "b": hax.ones(hax.Axis("x", 4))}
    tx = adam_jax.groups(adam_jax.adamw, {"a": {"learning_rate": 0.0}}, learning_rate=0.1)
    new, _ = adam_jax.step(tx, params, tx.init(params), params)
    assert (new["a"].array == 1).all() and (new["b"].array < 1).all()
