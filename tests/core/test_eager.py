"""A step without `jit` makes no more calls than Optax's, and equals the compiled step."""

import contextlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import adam_jax
from tests.catalogue import every_member_slowly
from tests.catalogue.recipes import stepper
from tests.catalogue.training import trained

pytestmark = pytest.mark.usefixtures("standard_promotion")
COSINE = optax.cosine_decay_schedule(1e-3, 1000)
PAIRS = {
    "adam": (adam_jax.adam(1e-3), optax.adam(1e-3)),
    "adamw": (adam_jax.adamw(1e-3), optax.adamw(1e-3)),
    "adamw, schedule": (adam_jax.adamw(COSINE), optax.adamw(COSINE)),
    "amsgrad": (adam_jax.amsgrad(1e-3), optax.amsgrad(1e-3)),
    "adopt": (adam_jax.adopt(1e-3), contrib.adopt(1e-3)),
    "radam": (adam_jax.radam(1e-3), optax.radam(1e-3)),
    "nadam": (adam_jax.nadam(1e-3), optax.nadam(1e-3)),
    "nadam, decay": (adam_jax.nadam(1e-3, momentum_decay=0.004), optax.nadam(1e-3)),
}


def calls_in_the_program(around):
    def f(x):
        with around():
            return jnp.where(x > 0, x, jnp.clip(x, -1, 1))

    return sum("jit" in str(e.primitive) for e in jax.make_jaxpr(f)(jnp.ones(3)).jaxpr.eqns)


def test_jnp_functions_are_calls_in_a_program_except_under_disable_jit():
    assert calls_in_the_program(contextlib.nullcontext) == 2, "core/leaf.py needs no disable_jit"
    assert calls_in_the_program(jax.disable_jit) == 0


def calls(step, *args):
    """The number of Python and C calls of one step: proportional to its time, and deterministic."""
    for _ in range(3):
        step(*args)
    count = 0

    def counted(frame, event, arg):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        step(*args)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("through", ["step", "update"])
@pytest.mark.parametrize(
    ("name", "leaves"), [*((name, 6) for name in PAIRS), ("adamw", 1), ("adamw", 50)]
)
def test_an_eager_step_costs_no_more_than_optaxs(name, leaves, through):
    params = {str(i): jnp.ones(10) for i in range(leaves)}
    ours, theirs = (
        calls(stepper(tx, through), params, tx.init(params), params) for tx in PAIRS[name]
    )
    assert ours <= theirs


@every_member_slowly
def test_an_eager_step_is_the_compiled_one(member):
    params = {"w": jnp.linspace(-2.0, 2.0, 10), "b": jnp.ones(3)}
    eager, compiled = (trained(member.alias(COSINE), params, jit=jit) for jit in (False, True))
    assert jax.tree.structure(eager) == jax.tree.structure(compiled)
    for a, e in zip(jax.tree.leaves(eager), jax.tree.leaves(compiled), strict=True):
        assert (a.dtype, a.weak_type) == (e.dtype, e.weak_type)
        np.testing.assert_allclose(a, e, rtol=2e-6, atol=1e-9)


def test_leaves_may_lie_on_different_devices():
    tx, devices = adam_jax.adamw(COSINE), jax.devices()[:2]
    params = {str(i): jax.device_put(jnp.ones(3), d) for i, d in enumerate(devices)}
    state, updates = tx.init(params), {}
    for _ in range(2):
        params, state = adam_jax.step(tx, params, state, params)
        updates, state = tx.update(params, state, params)
    for tree in (params, updates, state[0].mu):
        assert [x.devices() for x in tree.values()] == [{d} for d in devices]
