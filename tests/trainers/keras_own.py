"""Keras' own tests of its optimizers, with ours in their place: python -m tests.trainers.keras_own.

Its wheel brings them. With OWN_TESTS_OF=ours, classes of ours have the names, arguments and
defaults of Keras', and step with the members in docs/migrating/keras.md.
"""
# pyright: reportMissingImports=false

import importlib
import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"  # Before the import.

import keras
import pytest

import adam_jax
from adam_jax.trainers.keras import Optimizer

DEFAULTS = dict(learning_rate=1e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-7, weight_decay=None)
MEMBERS = {
    "Adam": lambda amsgrad=False, eps=0.0, **own: (
        adam_jax.amsgrad(eps=0.0, eps_hat=eps, max_before_correction=True, **own)
        if amsgrad
        else adam_jax.adamw(eps=0.0, eps_hat=eps, **own)
    ),
    "Nadam": lambda **own: adam_jax.nadamw(momentum_decay=1.0, **own),
    "Adamax": adam_jax.adamaxw,
    "Lion": lambda eps, **own: adam_jax.lion(**own),
}
MEMBERS["AdamW"] = MEMBERS["Adam"]
OTHERS = {"AdamW": dict(weight_decay=0.004), "Lion": dict(beta_2=0.99)}
MODULES = ["adam", "adamw", "nadam", "adamax", "lion", "optimizer"]


def ours(name: str) -> type:
    def init(self, *args, **kwargs):
        given = DEFAULTS | OTHERS.get(name, {}) | kwargs
        given |= dict(zip(DEFAULTS, args, strict=False))
        numbers = {"b1": "beta_1", "b2": "beta_2", "eps": "epsilon"}
        own = {key: given.pop(keras_name) for key, keras_name in numbers.items()}
        own["weight_decay"] = given.pop("weight_decay") or 0.0
        if "amsgrad" in given:
            own["amsgrad"] = given.pop("amsgrad")
        rate = given.pop("learning_rate")
        member = adam_jax.with_hyperparams(
            lambda learning_rate: MEMBERS[name](learning_rate=learning_rate, **own)
        )
        Optimizer.__init__(self, member(1e-3), rate, **given)

    return type(name, (Optimizer,), {"__init__": init})


def pytest_configure():
    for name in MEMBERS if os.environ.get("OWN_TESTS_OF") == "ours" else ():
        module = importlib.import_module(f"keras.src.optimizers.{name.lower()}")
        made = ours(name)
        for place in (module, keras.optimizers, importlib.import_module("keras.src.optimizers")):
            setattr(place, name, made)


if __name__ == "__main__":
    folder = Path(keras.__file__).parent / "src" / "optimizers"
    files = [str(folder / f"{name}_test.py") for name in MODULES]
    sys.exit(
        pytest.main(["-q", "-p", "tests.trainers.keras_own", "-p", "no:cacheprovider", *files])
    )
