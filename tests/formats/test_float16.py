"""float16 is refused for magnitudes, because squares of ordinary gradients underflow in it."""

import jax
import jax.numpy as jnp
import optax
import pytest

import adam_jax
from adam_jax.formats.dense import Dense
from tests.catalogue import MAGNITUDES, MEMBERS, every
from tests.catalogue.runs import raised

every_keeping = every([m for m in MEMBERS if set(m.slots) & set(MAGNITUDES)])
HALF = {"w": jnp.ones((4, 3), jnp.float16)}


@every_keeping
@pytest.mark.parametrize("dtype", [jnp.float16, "float16", Dense(jnp.dtype("float16"))])
def test_refused_where_it_is_written(member, dtype):
    message = raised(lambda: member.alias(1e-2, nu_dtype=dtype))
    assert message.startswith("nu_dtype ") and "float16" in message
    assert "stochastic(jnp.bfloat16)" in message


@every_keeping
@pytest.mark.parametrize("spec", [None, adam_jax.by_path({"w": None}), "by path"])
def test_refused_where_a_parameter_would_bring_it(member, spec):
    spec = adam_jax.by_path({"w": jnp.float16}) if spec == "by path" else spec
    tx = member.alias(1e-2, nu_dtype=spec)
    message = raised(lambda: tx.init(HALF))
    assert message.startswith("at 'w', nu_dtype ") and "float16" in message


def test_refused_by_convert_state():
    state = adam_jax.adam(1e-2).init(HALF)
    message = raised(lambda: adam_jax.convert_state(state, nu_dtype=jnp.float16))
    assert message.startswith("nu_dtype ") and "float16" in message


@pytest.mark.parametrize("name", ["adam", "amsgrad", "adamax", "adan", "radam", "adabelief"])
def test_an_optax_state_in_float16_says_how_to_go_on(name):
    theirs, ours = getattr(optax, name)(1e-2), getattr(adam_jax, name)(1e-2)
    state = theirs.init(HALF)
    for step in (ours.update, ours.step, jax.jit(ours.update)):
        message = raised(lambda step=step: step(HALF, state, HALF))
        assert message.startswith("at 'w', ") and "float16" in message
        assert "adam_jax.convert_state(state, nu_dtype=jnp.float32)" in message
    converted = adam_jax.convert_state(state, nu_dtype=jnp.float32)
    moved = adam_jax.convert.from_optax(state, HALF, ours)
    for state in (converted, moved):
        updates, new = ours.update(HALF, state, HALF)
        assert jnp.isfinite(updates["w"]).all()
        assert all(x.dtype != jnp.float16 for x in jax.tree.leaves(getattr(new[0], "nu", ())))


def test_float16_averages_of_gradients_stay():
    """Averages fit into the range of float16."""
    for dtype in (jnp.float16, None):
        tx = adam_jax.adam(1e-2, mu_dtype=dtype)
        _, state = tx.update(HALF, tx.init(HALF), HALF)
        assert state[0].mu["w"].dtype == jnp.float16
