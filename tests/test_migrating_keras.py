"""docs/migrating/keras.md: its arguments are Keras', and its pairs make the same steps."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from tests.migrating import check_arguments, pairs
from tests.pages import DOCS

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras", reason="Keras is in a group of its own: make test-peers")

from tests.test_keras import double_precision  # noqa: E402, F401

PAGE = DOCS / "migrating" / "keras.md"
CLASSES = {name: name.lower() for name in ("Adam", "AdamW", "Nadam", "Adamax", "Lion", "Lamb")}

pytestmark = pytest.mark.usefixtures("x64", "standard_promotion")


def test_every_argument_is_there_with_its_defaults():
    check_arguments(PAGE, {getattr(keras.optimizers, name): ours for name, ours in CLASSES.items()})


@pytest.mark.parametrize(("theirs", "ours"), pairs(PAGE, "Keras"), ids=lambda code: code)
def test_the_same_numbers(theirs, ours):
    rng = np.random.default_rng(0)
    steps = 16 if "accumulation" in theirs else 200  # Keras compiles each of these anew.
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
