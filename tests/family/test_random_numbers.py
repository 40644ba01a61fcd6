"""Random hyperparameters of any kind: as the Python number, or refused by the argument's name.

ROUNDS=2000 python -m pytest tests/family/test_random_numbers.py   # a long run
"""

import collections
import functools
import inspect
import os
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from tests.catalogue import MEMBERS
from tests.catalogue.training import trained

ROUNDS = int(os.environ.get("ROUNDS", "80"))
OPTIMIZERS = [
    getattr(adam_jax, name) for name in sorted({m.name.partition("-")[0] for m in MEMBERS})
]
USUAL = {"learning_rate": [0.0, 1e-3, 0.1, 1.0], "b1": [0.0, 0.5, 0.9], "b2": [0.5, 0.99, 0.9999]}
UNUSUAL = [1.0, 1.5, -1.0, 1e-30, 1e30, 1e300, np.nan, np.inf, -np.inf]
NUMBERS = {
    "float": float,
    "int": lambda x: int(x) if abs(x) < 1e18 else 3,
    "one in an array": lambda x: np.array([x], np.float32),
    **{d: np.dtype(d).type for d in ("float16", "float32", "float64")},
    **{f"jax {d}": functools.partial(jnp.asarray, dtype=d) for d in ("bfloat16", "float32")},
    "jax int32": lambda x: jnp.int32(1),
    "int8": lambda x: np.int8(1),
}
OTHERS = {
    "complex": lambda x: complex(x, 0.0),
    "jax complex64": jnp.complex64,
    "two in an array": lambda x: jnp.array([x, x]),
    "bool": lambda x: True,
    "jax bool": lambda x: jnp.array(True),
    "str": str,
    "key": lambda x: jax.random.key(0),
}
AROUND = {
    "alone": lambda f: f,
    "with_hyperparams": adam_jax.with_hyperparams,
    "cautious": adam_jax.cautious,
    "groups": lambda f: functools.partial(adam_jax.groups, f, {"b": {}}),
}
PARAMS = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.array([0.1, -0.1])}


def moved(factory, argument, x, traced=False):
    """The parameters after some steps; None if the argument is refused by its name."""

    def run(x):
        tx = factory(**{"learning_rate": 0.01, argument: x})
        return trained(tx, PARAMS, jit=False)[0]

    try:
        return (jax.jit(run) if traced else run)(x)
    except (ValueError, TypeError) as error:
        assert argument in str(error), f"{argument}={x}"
        return None


def arguments(optimizer):
    """Those that are numbers."""
    defaults = {name: p.default for name, p in inspect.signature(optimizer).parameters.items()}
    flags = [name for name, x in defaults.items() if isinstance(x, bool)]
    numbers = [name for name, x in defaults.items() if isinstance(x, (int, float))]
    return ["learning_rate", *(name for name in numbers if name not in flags)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is read as such")
def test_random_numbers(standard_promotion):
    draw, found = random.Random(0), collections.Counter()
    for turn in range(ROUNDS):
        optimizer = draw.choice(OPTIMIZERS)
        argument = draw.choice(arguments(optimizer))
        usual = USUAL.get(argument, [0.0, 1e-8, 1e-3, 0.5])
        value = float(draw.choice(usual + UNUSUAL * (draw.random() < 0.3)))
        kind = draw.choice([*NUMBERS, *OTHERS])
        around = draw.choice(list(AROUND))
        if around == "groups" and optimizer is adam_jax.schedule_free_adamw:
            continue  # `groups` refuses it, by its own message.
        factory = AROUND[around](optimizer)
        traced = draw.random() < 0.3 and kind not in ("str", "complex")
        case = f"{turn}: {around} {optimizer.__name__} {argument} {kind} {value} {traced=}"
        with np.errstate(all="ignore"):
            x = (NUMBERS | OTHERS)[kind](value)
        number = kind in NUMBERS
        expected = moved(factory, argument, float(np.asarray(x).item())) if number else None
        with np.errstate(over="ignore"):  # JAX makes float32 of a traced 1e300.
            actual = moved(factory, argument, x, traced)
        if actual is None:
            assert expected is None, f"{case} is refused"
            found["refused"] += 1
        elif expected is None:
            assert number and traced, f"{case} is taken"
        else:
            low = np.dtype(getattr(x, "dtype", float)).itemsize < 4
            for name, p in expected.items():
                rtol = 2e-3 if low else 1e-4
                np.testing.assert_allclose(actual[name], p, rtol=rtol, atol=1e-6, err_msg=case)
            found["right"] += 1
    assert min(found["right"], found["refused"]) > ROUNDS / 5
