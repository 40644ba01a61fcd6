"""Each member that Keras has, compared with Keras, and docs/migrating/keras.md."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from tests.catalogue.migrating import check_arguments, pairs
from tests.catalogue.pages import DOCS

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras", reason="Keras is in a group of its own: make test-peers")

pytestmark = pytest.mark.usefixtures("x64", "standard_promotion")

MAX_FIRST = {"max_before_correction": True}
PAIRS = [
    ("Adam", {"epsilon": 1e-3}, adam_jax.adam, {"eps": 0.0, "eps_hat": 1e-3}),
    (
        *("Adam", {"epsilon": 1e-3, "amsgrad": True}),
        *(adam_jax.amsgrad, {"eps": 0.0, "eps_hat": 1e-3, **MAX_FIRST}),
    ),
    (
        *("AdamW", {"epsilon": 1e-3, "weight_decay": 0.1}),
        *(adam_jax.adamw, {"eps": 0.0, "eps_hat": 1e-3, "weight_decay": 0.1}),
    ),
    ("Nadam", {"epsilon": 1e-3}, adam_jax.nadam, {"eps": 1e-3, "momentum_decay": 1.0}),
    ("Adamax", {"epsilon": 0.0}, adam_jax.adamax, {"eps": 0.0}),
    ("Lion", {"beta_2": 0.95}, adam_jax.lion, {"b2": 0.95, "weight_decay": 0.0}),
]
IDS = [f"{name}-{i}" for i, (name, *_) in enumerate(PAIRS)]


@pytest.fixture(autouse=True)
def double_precision():
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx(before)


@pytest.mark.parametrize(
    ("name", "theirs", "alias", "ours"), PAIRS, ids=[name for name, *_ in PAIRS]
)
def test_the_same_200_steps(name, theirs, alias, ours):
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(200, 40)) * 10.0 ** rng.uniform(-3, 3, 40)
    optimizer = getattr(keras.optimizers, name)(1e-2, **theirs)
    variable = keras.Variable(np.ones(40), dtype="float64")
    optimizer.build([variable])
    tx = alias(1e-2, **ours)
    params, state, step = jnp.ones(40), tx.init(jnp.ones(40)), jax.jit(tx.step)
    for gradient in gradients:
        optimizer.apply([jnp.asarray(gradient)])
        params, state = step(jnp.asarray(gradient), state, params)
        np.testing.assert_allclose(params, np.asarray(variable.value), rtol=1e-9, atol=1e-14)


PAGE = DOCS / "migrating" / "keras.md"
CLASSES = {name: name.lower() for name in ("Adam", "AdamW", "Nadam", "Adamax", "Lion", "Lamb")}


def test_every_argument_is_there_with_its_defaults():
    check_arguments(PAGE, {getattr(keras.optimizers, name): ours for name, ours in CLASSES.items()})


@pytest.mark.parametrize(("theirs", "ours"), pairs(PAGE, "Keras"), ids=lambda code: code)
def test_the_pairs_of_the_page(theirs, ours):
    rng = np.random.default_rng(0)
    steps = 16 if "accumulation" in theirs else 200  # Keras recompiles each of these steps.
    gradients = rng.normal(size=(steps, 40)) * 10.0 ** rng.uniform(-3, 3, 40)
    optimizer = eval(theirs, {"k": keras.optimizers})
    variable = keras.Variable(np.ones(40), dtype="float64")
    optimizer.build([variable])
    tx = eval(ours, {"a": adam_jax, "optax": optax})
    params = jnp.ones(40)
    state, step = tx.init(params), jax.jit(lambda g, s, p: adam_jax.step(tx, g, s, p))
    for gradient in gradients:
        optimizer.apply([jnp.asarray(gradient)])
        params, state = step(jnp.asarray(gradient), state, params)
        np.testing.assert_allclose(params, np.asarray(variable.value), rtol=1e-9, atol=1e-14)
