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

PAGE = DOCS / "migrating" / "keras.md"
CLASSES = {name: name.lower() for name in ("Adam", "AdamW", "Nadam", "Adamax", "Lion", "Lamb")}
# Expressions as in the page's table, with other numbers.
PAIRS = [
    ("k.Adam(1e-2, epsilon=1e-3)", "a.adam(1e-2, eps=0.0, eps_hat=1e-3)"),
    (
        "k.Adam(1e-2, epsilon=1e-3, amsgrad=True)",
        "a.amsgrad(1e-2, eps=0.0, eps_hat=1e-3, max_before_correction=True)",
    ),
    (
        "k.AdamW(1e-2, epsilon=1e-3, weight_decay=0.1)",
        "a.adamw(1e-2, eps=0.0, eps_hat=1e-3, weight_decay=0.1)",
    ),
    ("k.Nadam(1e-2, epsilon=1e-3)", "a.nadam(1e-2, eps=1e-3, momentum_decay=1.0)"),
    ("k.Adamax(1e-2, epsilon=0.0)", "a.adamax(1e-2, eps=0.0)"),
    ("k.Lion(1e-2, beta_2=0.95)", "a.lion(1e-2, b2=0.95, weight_decay=0.0)"),
]


@pytest.fixture(autouse=True)
def double_precision():
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx(before)


def test_every_argument_is_there_with_its_defaults():
    check_arguments(PAGE, {getattr(keras.optimizers, name): ours for name, ours in CLASSES.items()})


@pytest.mark.parametrize(("theirs", "ours"), PAIRS + pairs(PAGE, "Keras"), ids=lambda code: code)
def test_the_same_200_steps(theirs, ours):
    rng = np.random.default_rng(0)
    steps = 16 if "accumulation" in theirs else 200  # Keras recompiles each of these steps.
    gradients = rng.normal(size=(steps, 40)) * 10.0 ** rng.uniform(-3, 3, 40)
    optimizer = eval(theirs, {"k": keras.optimizers})
    variable = keras.Variable(np.ones(40), dtype="float64")
    optimizer.build([variable])
    tx = eval(ours, {"a": adam_jax, "optax": optax})
    params = jnp.ones(40)
    state, step = tx.init(params), jax.jit(tx.step)
    for gradient in gradients:
        optimizer.apply([jnp.asarray(gradient)])
        params, state = step(jnp.asarray(gradient), state, params)
        np.testing.assert_allclose(params, np.asarray(variable.value), rtol=1e-9, atol=1e-14)
