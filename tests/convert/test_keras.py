"""Converting states shaped like Keras's and bitsandbytes', without either library."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from adam_jax import convert
from benchmarks.codecs import dynamic_map
from tests.catalogue.oracles import nadam_product
from tests.catalogue.runs import raised

PARAMS = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
NAMES = {path: f"sequential/{path}" for path in ("dense/kernel", "dense/bias")}


def variables(*slots, optimizer="adam", steps=7, **others):
    """NumPy arrays in the form `{v.path: v for v in optimizer.variables}`."""
    rng = np.random.default_rng(0)
    found = {f"{optimizer}/iteration": np.array(steps), f"{optimizer}/learning_rate": np.array(1.0)}
    for name, shape in (("kernel", (3, 2)), ("bias", (2,))):
        for slot in slots:
            key = f"{optimizer}/sequential_dense_{name}_{slot}"
            found[key] = rng.uniform(size=shape).astype(np.float32)
    return found | others


ADAM = variables("momentum", "velocity")
HAT = {"eps": 0.0, "eps_hat": 1e-7}
MEMBERS = {
    "adam": (ADAM, adam_jax.adam(1e-3, **HAT)),
    "amsgrad": (
        variables("momentum", "velocity", "velocity_hat"),
        adam_jax.amsgrad(1e-3, max_before_correction=True, **HAT),
    ),
    "nadam": (
        variables("momentum", "velocity", variable_3=np.float32(nadam_product(7, 0.9, 1.0))),
        adam_jax.nadam(1e-3, momentum_decay=1.0),
    ),
    "adamax": (variables("momentum", "norm"), adam_jax.adamax(1e-3, eps=0.0)),
    "lion": (variables("momentum", optimizer="lion"), adam_jax.lion(1e-3)),
    "lamb": (variables("momentum", "velocity"), adam_jax.lamb(1e-3)),
}
SLOTS = {"mu": "momentum", "nu": "velocity", "nu_max": "velocity_hat"}


@pytest.mark.parametrize("name", MEMBERS)
def test_each_variable_finds_its_place(name):
    found, tx = MEMBERS[name]
    state = convert.from_keras(found, PARAMS, tx, names=NAMES)[0]
    assert int(state.count) == 7
    for slot in set(state._fields) - {"count"}:
        theirs = "norm" if (name, slot) == ("adamax", "nu") else SLOTS[slot]
        [key] = [k for k in found if k.endswith(f"kernel_{theirs}")]
        np.testing.assert_array_equal(getattr(state, slot)["dense"]["kernel"], found[key])


def test_variables_of_keras_have_paths():
    class Variable:
        def __init__(self, path, x):
            self.path, self.x = path, x

        def __array__(self, dtype=None, copy=None):
            return np.array(self.x, dtype)

    tx = adam_jax.chain(adam_jax.clip_by_global_norm(1.0), adam_jax.adam(lambda count: 1e-3))
    state = convert.from_keras([Variable(*x) for x in ADAM.items()], PARAMS, tx, names=NAMES)
    assert int(state[1][0].count) == int(state[1][1].count) == 7
    text = raised(lambda: convert.from_keras(list(ADAM.values()), PARAMS, tx, names=NAMES))
    assert "ndarray" in text and "v.path" in text


def without(word):
    return {key: x for key, x in ADAM.items() if word not in key}


NADAM = variables("momentum", "velocity", variable=np.float32(0.5))
ERRORS = {
    "missing": (without("bias_velocity"), adam_jax.adam, ["missing", "dense_bias_velocity"]),
    "extra": (MEMBERS["amsgrad"][0], adam_jax.adam, ["extra", "kernel_velocity_hat"]),
    "misshapen": (
        ADAM | {"adam/sequential_dense_bias_velocity": np.ones(3)},
        adam_jax.adam,
        ["misshapen", "bias_velocity (3,) for (2,)"],
    ),
    "no iteration": (without("iteration"), adam_jax.adam, ["iteration"]),
    "amsgrad": (MEMBERS["amsgrad"][0], adam_jax.amsgrad, ["max_before_correction=True"]),
    "nadam": (NADAM, adam_jax.adam, ["momentum_decay", "1.0"]),
    "yogi": (ADAM, adam_jax.yogi, ["Keras", "YogiSquares"]),
    "adan": (ADAM, adam_jax.adan, ["Keras", "ScaleByAdanState"]),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_keras_list_the_paths(name):
    found, alias, words = ERRORS[name]
    text = raised(lambda: convert.from_keras(found, PARAMS, alias(1e-3), names=NAMES))
    assert all(word in text for word in words), text


# bitsandbytes


def coded(x, signed, block=256):
    """Codes, scales and map of an array, quantized by searching the map."""
    values = dynamic_map(signed)
    flat = np.pad(x.ravel(), (0, -x.size % block)).reshape(-1, block)
    scale = np.abs(flat).max(1).astype(np.float32)
    shares = (flat / scale[:, None]).ravel()[: x.size]
    codes = np.abs(shares[:, None] - values).argmin(1).astype(np.uint8).reshape(x.shape)
    return codes, scale, values


def entry(*moments, wrapped=True, block=256):
    inside = {}
    for i, x in enumerate(moments, start=1):
        signed = i == 1
        inside[f"state{i}"], inside[f"absmax{i}"], inside[f"qmap{i}"] = coded(x, signed, block)
    return {"step": 7} | ({"__bnb_optimizer_quant_state__": inside} if wrapped else inside)


def state_dict(*entries):
    names = ["w", "b"][: len(entries)]
    group = {"params": list(range(len(entries))), "param_names": names}
    return {"state": dict(enumerate(entries)), "param_groups": [group]}


RNG = np.random.default_rng(0)
MU = RNG.normal(size=(64, 65)).astype(np.float32)
NU = np.square(RNG.normal(size=(64, 65))).astype(np.float32)
SMALL = {"step": 7, "state1": np.arange(3.0), "state2": np.arange(3.0) ** 2}
BOTH = {"w": jnp.ones((64, 65)), "b": jnp.ones(3)}


def decoded(x, signed, block=256):
    codes, scale, values = coded(x, signed, block)
    return values[codes] * np.repeat(scale, block)[: x.size].reshape(x.shape)


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("block", [256, 2048])
def test_codes_are_decoded(wrapped, block):
    tx = adam_jax.adamw(1e-3)
    saved = state_dict(entry(MU, NU, wrapped=wrapped, block=block), SMALL)
    state = convert.from_bitsandbytes(saved, BOTH, tx)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(BOTH))
    np.testing.assert_array_equal(state[0].mu["w"], decoded(MU, True, block))
    np.testing.assert_array_equal(state[0].nu["w"], decoded(NU, False, block))
    np.testing.assert_array_equal(state[0].nu["b"], np.arange(3.0) ** 2)


def test_other_layouts_and_other_forms():
    plain, saved = adam_jax.adamw(1e-3), state_dict(entry(MU, NU), SMALL)
    turned = BOTH | {"w": jnp.ones((65, 64))}
    names = {"w": convert.Layout("w", (1, 0))}
    state = convert.from_bitsandbytes(saved, turned, plain, names=names)[0]
    np.testing.assert_array_equal(state.nu["w"], decoded(NU, False).T)
    in_8_bits = adam_jax.adamw(1e-3, mu_dtype=jnp.int8, nu_dtype=jnp.int8)
    again = convert.from_bitsandbytes(saved, turned, in_8_bits, names=names)[0].nu["w"]
    away = np.asarray(again.format.decode(again, jnp.float32)) - decoded(NU, False).T
    assert 0 < np.linalg.norm(away) < 0.1 * np.linalg.norm(NU)


def test_lion_and_ademamix():
    lion = convert.from_bitsandbytes(state_dict(entry(MU)), {"w": BOTH["w"]}, adam_jax.lion(1e-3))
    np.testing.assert_array_equal(lion[0].mu["w"], decoded(MU, True))
    two = [coded(x, True) for x in (MU, -MU)]
    both = entry(MU, NU, wrapped=False)
    both |= {"state1": np.stack([x[0] for x in two]), "absmax1": np.stack([x[1] for x in two])}
    tx = adam_jax.ademamix(1e-3)
    state = convert.from_bitsandbytes(state_dict(both), {"w": BOTH["w"]}, tx)[0]
    np.testing.assert_array_equal(state.m1["w"], decoded(MU, True))
    np.testing.assert_array_equal(state.m2["w"], decoded(-MU, True))
    np.testing.assert_array_equal(state.nu["w"], decoded(NU, False))
    assert int(state.count) == int(state.count_m2) == 7


def test_errors_of_bitsandbytes():
    plain, good = adam_jax.adamw(1e-3), entry(MU, NU, wrapped=False)
    for broken, words in (
        (good | {"absmax2": np.ones(4)}, ["w/nu", "256", "2048", "(4,)"]),
        ({k: x for k, x in good.items() if k != "qmap1"}, ["w/mu", "qmap"]),
        ({k: x for k, x in good.items() if k != "state2"}, ["missing: 'w/nu'"]),
        (entry(MU.T, NU.T), ["misshapen", "(65, 64) for (64, 65)"]),
    ):
        saved = state_dict(broken, SMALL)
        text = raised(lambda saved=saved: convert.from_bitsandbytes(saved, BOTH, plain))
        assert all(word in text for word in words), text
    text = raised(lambda: convert.from_bitsandbytes(state_dict(good), BOTH, adam_jax.amsgrad(1e-3)))
    assert "bitsandbytes" in text and "ScaleByAmsgradState" in text
    assert math.ceil(MU.size / 256) == 17  # The last block is not full.
