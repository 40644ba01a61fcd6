"""Every finite gradient gives a finite update, and what a large one leaves behind is forgotten."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from tests.catalogue import every_member

STEPS, SPIKE = 24, 3
SIDE = 32
FORMS = {
    "float32": (jnp.float32, jnp.float32),
    "int8": (adam_jax.Quantized(min_size=1), adam_jax.Quantized(min_size=1)),
    "int4": (adam_jax.Quantized("int4", min_size=1), adam_jax.Quantized("int4", min_size=1)),
    "bfloat16": (adam_jax.stochastic(jnp.bfloat16), adam_jax.stochastic(jnp.bfloat16)),
    "Factored": (jnp.float32, adam_jax.Factored(1, 1)),
}
# What storage itself costs an update: 16 bits a half of the distance of two numbers, for 24 steps.
TOLERANCE = dict.fromkeys(FORMS, 0.01) | {"bfloat16": 0.03, "int4": 0.01}
LARGEST = float(np.finfo(np.float32).max)


def sequences():
    """float64[STEPS] each: constant, of alternating sign, one large gradient among ones."""
    ones, signs = np.ones(STEPS), (-1.0) ** np.arange(STEPS)
    found = {}
    for size in (1e18, 1e20, 1e30, 3e38):
        found |= {f"constant {size:g}": size * ones, f"alternating {size:g}": size * signs}
        found[f"spike {size:g}"] = np.where(np.arange(STEPS) == SPIKE, size, ones)
    return found


def updates(tx, gs, params=None):
    """float64[STEPS, ...], of gradients [STEPS, ...]."""
    params = jnp.ones(gs.shape[1:], gs.dtype) if params is None else params

    def step(state, g):
        u, state = tx.update(g, state, params)
        return state, u

    state, us = jax.jit(lambda gs: jax.lax.scan(step, tx.init(params), gs))(gs)
    return np.asarray(us.astype(jnp.float32), np.float64), state


@every_member
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_updates_are_those_of_the_algorithm(member, form, dtype):
    if form == "Factored" and not member.has("nu_dtype"):
        pytest.skip("no second moment to factor")
    tx = member.direction(**member.stored(*FORMS[form]))
    rows = np.stack(list(sequences().values()), axis=1)  # [STEPS, sequences]
    gs = jnp.asarray(rows.astype(np.float32)).astype(dtype)
    gs = jnp.broadcast_to(gs[:, :, None, None], (*gs.shape, SIDE, SIDE))
    us = np.stack([updates(tx, gs[:, i])[0][:, 0, 0] for i in range(rows.shape[1])], axis=1)
    assert np.isfinite(us).all()
    exact = np.stack(list(member.naive(np.asarray(gs[:, :, 0, 0], np.float64))))
    # RAdam's first updates are the average of gradients itself, and so have their bound.
    representable = np.abs(exact) < 2e18
    assert representable[:, 0].all() and representable.mean() > 0.8
    # An update that is rounded to bfloat16 itself.
    rtol = TOLERANCE[form] + (2**-8 if dtype == jnp.bfloat16 else 0)
    np.testing.assert_allclose(us[representable], exact[representable], rtol, atol=1e-12)
