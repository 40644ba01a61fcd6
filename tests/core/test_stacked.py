"""Leaves that hold several layers: each layer is stepped like a separate leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax.core.stacked import Layers, looks_stacked
from tests.catalogue import few
from tests.tools.layer_cases import SHAPES, cases, differences, nestings, separate, stacked

CASES = {name: (make, dtype) for name, make, dtype in cases()}
# One case for each form of state and each reduction; python -m tests.tools.layer_cases runs all.
SELECTED = (
    *("adamw, float32", "adamw, int8", "adan, bfloat16", "adamw, factored", "mars_adamw, int4"),
    *("cautious(lamb)", "stochastic_rounding(adamw, float32)", "groups(lamb)"),
    *("recipe(lamb masked)", "accumulate int8(adamw, float32)", "adamw, block means"),
)


@pytest.mark.bits
@few("name", SELECTED, ["adamw, float32", "adamw, int8", "recipe(lamb masked)"])
def test_each_layer_is_stepped_as_a_leaf_bit_for_bit(name):
    make, dtype = CASES[name]
    assert differences(make(), dtype or jnp.float32) == {}


@pytest.mark.bits
@pytest.mark.parametrize("seed", [1, 2])
def test_an_average_in_a_skipped_and_accumulated_step_bit_for_bit(seed):
    """The step of a scalar layer was added outside of its own loop, with other bits."""
    tx = adam_jax.chain(adam_jax.laprop(1e-2, weight_decay=1e-4), adam_jax.ema_params(0.9))
    assert differences(adam_jax.accumulate(adam_jax.skip_nonfinite(tx), 2), seed=seed) == {}


@pytest.mark.bits
@pytest.mark.slow
def test_random_nestings_bit_for_bit():
    found = {name: differences(tx, seed=seed) for name, tx, seed in nestings(12)}
    assert not any(found.values()), found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lamb, float32", "mars_adamw, float32", "cautious(lamb)"])
def test_undeclared_layers_are_one_tensor(name):
    make, _ = CASES[name]
    tx, params, grads = make(), stacked(separate()), stacked(separate(1))
    whole = tx.update(grads, tx.init(params), params)[0]
    its = adam_jax.with_layers(tx, "blocks/.*")
    by_layer = its.update(grads, its.init(params), params)[0]
    assert not np.allclose(whole["blocks"]["kernel"], by_layer["blocks"]["kernel"], rtol=1e-3)


def test_two_axes_of_layers_are_as_one():
    tx = adam_jax.chain(adam_jax.clip_by_global_norm(0.5), adam_jax.lamb(1e-2, nu_dtype=jnp.int8))
    draw = np.random.default_rng(0)
    params, grads = (
        {"w": jnp.asarray(draw.standard_normal((6, 64, 64)), jnp.float32)} for _ in "ab"
    )
    two = jax.tree.map(lambda x: x.reshape(2, 3, 64, 64), (params, grads))
    one_axis = adam_jax.with_layers(tx, "w")
    two_axes = adam_jax.with_layers(tx, {"w": 2})
    assert one_axis != two_axes
    u, _ = jax.jit(one_axis.update)(grads, one_axis.init(params), params)
    v, state = jax.jit(two_axes.update)(two[1], two_axes.init(two[0]), two[0])
    np.testing.assert_array_equal(u["w"], v["w"].reshape(6, 64, 64))
    assert state[1][0].nu["w"].codes.shape == (2, 3, 64, 64)


def test_masks_see_one_layer():
    params = stacked(separate())
    seen = []

    def mask(params):
        seen.append(jax.tree.map(np.shape, params))
        return adam_jax.decay_mask(params)

    tx = adam_jax.with_layers(adam_jax.adamw(1.0, weight_decay=0.5, mask=mask), "blocks/.*")
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    assert seen[-1]["blocks"] == SHAPES
    decayed = {name: bool(np.any(x)) for name, x in updates["blocks"].items()}
    assert decayed == {"bias": False, "kernel": True, "out": True, "scale": False}


def test_factored_means_are_of_one_layer():
    params = {"w": jnp.ones((300, 128, 256))}
    tx = adam_jax.adamw(1e-3, nu_dtype=adam_jax.Factored())
    nu = adam_jax.with_layers(tx, "w").init(params)[0].nu["w"]
    assert (nu.rows.shape, nu.columns.shape) == ((300, 128), (300, 256))


def test_states_are_converted_by_layer():
    params = {"w": jnp.ones((300, 128, 256)), "b": jnp.ones((64, 128))}
    tx = adam_jax.with_layers(adam_jax.adamw(1e-3), ".*")
    forms = dict(mu_dtype=jnp.int8, nu_dtype=adam_jax.Factored())
    converted = adam_jax.convert_state(tx.init(params), **forms, layers=".*")
    wanted = adam_jax.with_layers(adam_jax.adamw(1e-3, **forms), ".*").init(params)
    assert jax.tree.structure(converted) == jax.tree.structure(wanted)
    assert jax.tree.map(np.shape, converted) == jax.tree.map(np.shape, wanted)


def test_small_layers_stay_float32_however_many():
    params = {"bias": jnp.ones((64, 128))}
    tx = adam_jax.chain(
        adam_jax.accumulate(adam_jax.adamw(1e-3, mu_dtype=jnp.int8), 2, dtype=jnp.int8),
        adam_jax.ema_params(0.9, dtype=jnp.int8),
    )
    (whole, _), (one, ema) = tx.init(params), adam_jax.with_layers(tx, "bias").init(params)
    assert whole.acc_grads["bias"].codes.dtype == jnp.int8
    assert one.acc_grads["bias"].dtype == one.inner_opt_state[0].mu["bias"].dtype == jnp.float32
    assert ema.ema["bias"].dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize(
    "around",
    [
        lambda tx: adam_jax.with_layers(tx(1e-2), "blocks/.*"),
        lambda tx: adam_jax.with_layers(tx, "blocks/.*")(1e-2),
        lambda tx: adam_jax.with_hyperparams(adam_jax.with_layers(tx, "blocks/.*"))(1e-2),
        lambda tx: adam_jax.with_layers(adam_jax.with_hyperparams(tx)(1e-2), "blocks/.*"),
        lambda tx: adam_jax.with_layers(adam_jax.groups(tx, {}, learning_rate=1e-2), "blocks/.*"),
        lambda tx: adam_jax.groups(adam_jax.with_layers(tx, "blocks/.*"), {}, learning_rate=1e-2),
        lambda tx: adam_jax.sharding.offload(adam_jax.with_layers(tx(1e-2), "blocks/.*")),
        lambda tx: adam_jax.with_layers(adam_jax.sharding.offload(tx(1e-2)), "blocks/.*"),
        lambda tx: optax.chain(adam_jax.with_layers(tx(1e-2), "blocks/.*")),
    ],
)
def test_it_is_said_inside_or_outside(around):
    params, grads = stacked(separate()), stacked(separate(1))
    plain = adam_jax.with_layers(adam_jax.lamb(1e-2), "blocks/.*")
    expected = jax.jit(plain.update)(grads, plain.init(params), params)[0]
    tx = around(adam_jax.lamb)
    actual = jax.jit(tx.update)(grads, tx.init(params), params)[0]
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_gradients_that_are_missing():
    tx = adam_jax.with_layers(adam_jax.lamb(1e-2, mu_dtype=jnp.int8), "blocks/.*")
    params, grads = stacked(separate()), stacked(separate(1))
    grads["blocks"]["kernel"] = None
    new, _ = adam_jax.step(tx, grads, tx.init(params), params)
    np.testing.assert_array_equal(new["blocks"]["kernel"], params["blocks"]["kernel"])
    assert not np.array_equal(new["blocks"]["out"], params["blocks"]["out"])


def test_telemetry_measures_a_stacked_leaf_as_a_whole():
    params, grads = stacked(separate()), stacked(separate(1))
    whole = adam_jax.telemetry(adam_jax.adamw(1e-2), 1)
    found = []
    for tx in (whole, adam_jax.with_layers(whole, "blocks/.*")):
        _, state = adam_jax.step(tx, grads, tx.init(params), params)
        found.append(adam_jax.measured(state)["groups"])
    assert sorted(found[0]) == ["a", "blocks", "z"]
    for name, group in found[0].items():
        assert found[1][name] == pytest.approx(group, rel=1e-5)


def test_random_bits_of_layers_differ():
    tx = adam_jax.adamw(1e-2, nu_dtype=adam_jax.stochastic(jnp.bfloat16))
    params = {"w": jnp.ones((4, 64, 64))}
    state = adam_jax.with_layers(tx, "w").init(params)
    update = jax.jit(adam_jax.with_layers(tx, "w").update)
    nu = np.asarray(update({"w": params["w"] * 1.001}, state, params)[1][0].nu["w"].values)
    assert all(not np.array_equal(nu[0], other) for other in nu[1:])


def test_layers_of_mup_are_said_once():
    shapes = {"blocks": {"kernel": (2, 16, 16), "bias": (2, 16)}}
    base = jax.tree.map(jnp.ones, shapes, is_leaf=lambda x: isinstance(x, tuple))
    params = {"blocks": {"kernel": jnp.ones((8, 64, 64)), "bias": jnp.ones((8, 64))}}
    factory = adam_jax.with_layers(adam_jax.adamw, "blocks/.*")
    once = adam_jax.transfer.mup(factory, base, params)(1e-2)
    twice = adam_jax.transfer.mup(adam_jax.adamw, base, params, layers="blocks/.*")(1e-2)
    assert once.body.choice == twice.body.choice
    assert once.body.layers == Layers.of("blocks/.*")
    assert adam_jax.transfer.mup(factory(1e-2), base, params).body == once.body
    with pytest.raises(ValueError, match="one axis"):
        adam_jax.transfer.mup(adam_jax.with_layers(adam_jax.adamw, {"blocks/.*": 2}), base, params)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("nothing", "must match the whole path of a leaf, got 'nothing'"),
        ({"bias": 2}, r"got 2 for 'bias' with the shape \(3,\)"),
        ({"bias": 0}, r"layers\['bias'\]"),
        ({"(": 1}, "regular expression"),
        (["bias"], "must be a regular expression, or a dict"),
    ],
)
def test_wrong_layers(layers, message):
    params = {"bias": jnp.ones(3)}
    with pytest.raises(ValueError, match=message):
        adam_jax.with_layers(adam_jax.adamw(1e-3), layers).init(params)


@pytest.mark.parametrize("tx", [optax.adam(1e-3), optax.chain(optax.adam(1e-3)), None])
def test_other_libraries_are_refused(tx):
    with pytest.raises(ValueError, match="tx must be"):
        adam_jax.with_layers(tx, ".*")


STACKED = {"blocks": {"attention": {"kernel": (12, 64, 3, 8)}, "norm": {"scale": (12, 64)}}}
NOT_STACKED = {
    "a square kernel": {"dense": {"kernel": (64, 64), "bias": (64,)}},
    "norms": {"scale": (64,), "bias": (64,)},
    "a convolution": {"conv": {"kernel": (3, 3, 8, 16), "bias": (16,)}},
    "attention": {"query": {"kernel": (64, 8, 8), "bias": (8, 8)}, "out": {"kernel": (8, 8, 64)}},
    "a gated layer": {"gate": (64, 256), "up": (64, 256), "down": (256, 64)},
    "embeddings": {"tokens": (1000, 64), "positions": (128, 64)},
    "one leaf": {"kernel": (12, 64, 64)},
}


def _arrays(shapes):
    return jax.tree.map(jnp.ones, shapes, is_leaf=lambda x: isinstance(x, tuple))


def test_what_looks_stacked_is_said():
    params = _arrays(STACKED | {"head": {"kernel": (64, 10)}})
    assert looks_stacked(params) == {"blocks": 12}
    tx, said = adam_jax.adamw(1e-3), "with_layers(tx, 'blocks/.*')"
    assert said in "".join(adam_jax.inspect.advise(params, tx).warnings)
    declared = adam_jax.with_layers(tx, "blocks/.*")
    hidden = adam_jax.with_hyperparams(adam_jax.with_layers(adam_jax.adamw, "blocks/.*"))(1e-3)
    for tx in (declared, hidden):
        assert said not in "".join(adam_jax.inspect.advise(params, tx).warnings)


@pytest.mark.parametrize("name", NOT_STACKED)
def test_what_does_not_look_stacked(name):
    assert looks_stacked(_arrays(NOT_STACKED[name])) == {}


def test_a_whole_tree_may_look_stacked():
    assert looks_stacked(_arrays(STACKED["blocks"])) == {"": 12}
