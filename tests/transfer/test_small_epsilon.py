"""An ε of 1e-18, as in wide and deep models, and gradients down to 1e-17.

For b2 = 0.999, a gradient of 1e-17 adds (1-b2)·g² = 1e-37 to nu. The smallest normal float32
number, 1.2e-38, corresponds to a gradient of 3.4e-18; smaller gradients may leave nu at zero.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adam_jax.transfer import mup
from tests.catalogue import MEMBERS, of_each_kind, slowly, slowly_with
from tests.catalogue.runs import run

EPS, STEPS, SIZE = 1e-18, 8, 8192  # Smaller leaves stay float32 under int8.
DIVIDING = [member for member in MEMBERS if member.has("eps") and member.elementwise]
every_dividing = slowly(DIVIDING)
every_stored = slowly_with(
    "form",
    [*((m, "float32") for m in DIVIDING), *((m, "int8") for m in of_each_kind(DIVIDING))],
)
every_size = pytest.mark.parametrize("size", [1e-12, 1e-15, 1e-17])


def gradients(member, size):
    if member.name.startswith(("adabelief", "adan")):
        size *= 10  # Their nu averages differences, which are smaller.
    rng = np.random.default_rng(0)
    x = rng.uniform(0.5, 2.0, (STEPS, SIZE)) * rng.choice([-1.0, 1.0], (STEPS, SIZE))
    return (size * x).astype(np.float32)


def settings(member):
    others = {"eps_root": 0.0, "initial_accumulator_value": 0.0}
    return {"eps": EPS} | {name: x for name, x in others.items() if member.has(name)}


def stored(member, form):
    return {} if form == "float32" else member.stored(jnp.int8, jnp.int8)


def exact(member, gs, factor=1.0):
    numbers = member.ours | settings(member)
    numbers |= {name: numbers[name] * factor for name in ("eps", "eps_hat") if name in numbers}
    return np.stack(list(member.naive(gs.astype(np.float64), **numbers)))


def assert_same(updates, expected, form="float32"):
    assert updates.dtype == np.float32 and np.isfinite(updates).all()
    updates, sizes = np.asarray(updates), np.abs(expected)
    largest = np.max(sizes, axis=1, keepdims=True)
    if form == "float32":
        # Where the terms of mu cancel, an update is as exact as they are.
        assert np.all(np.abs(updates - expected) <= 1e-4 * sizes + 1e-5 * largest)
    else:
        large = (sizes > largest / 4) & (sizes > 0)
        assert np.mean(large) > 0.4
        np.testing.assert_allclose(updates[large], expected[large], rtol=0.3)


@every_size
@every_stored
def test_updates_equal_the_naive_version(member, size, form):
    gs = gradients(member, size)
    tx = member.direction(**settings(member), **stored(member, form))
    assert_same(run(tx, gs, jnp.ones(SIZE)), exact(member, gs), form)


@every_stored
def test_the_factor_of_a_width_of_16_makes_it_smaller_still(member, form):
    gs, narrow, wide = gradients(member, 1e-17), (8, 4), (128, 64)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (narrow, wide)]
    decay = {"weight_decay": 0.0} if member.has("weight_decay") else {}
    given = settings(member) | stored(member, form) | decay
    tx = mup(member.alias, *shapes)(learning_rate=-16.0, **given)  # Becomes -1.
    updates = run(tx, gs.reshape(STEPS, *wide), jnp.ones(wide)).reshape(STEPS, SIZE)
    assert_same(updates, exact(member, gs, 1 / 16), form)
    if form == "float32" and member.name != "adopt":  # Its ε has no effect under √nu.
        with pytest.raises(AssertionError):
            assert_same(updates, exact(member, gs))


@every_dividing
def test_squares_that_are_zero_leave_the_update_finite_and_bounded(member):
    gs = gradients(member, 1e-18)
    updates = np.asarray(run(member.direction(**settings(member)), gs, jnp.ones(SIZE)))
    assert np.isfinite(updates).all()
    assert np.max(np.abs(updates)) <= 4.0
