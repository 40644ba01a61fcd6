"""Quantized moments follow gradients that grow, shrink, or spike once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from adam_jax.formats.blockwise import Blocks
from benchmarks.precision.moving_gradients import BOUND, FORMS, rows
from tests.catalogue.pages import DOCS, table
from tests.catalogue.scripts import tables

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("member", "b2", "forms"), [("adopt", 0.99, FORMS), ("adam", 0.997, ["int8", "int4"])]
)
def test_updates_are_those_of_float32(member, b2, forms):
    for row in rows((member,), (b2,), list(forms)):
        assert row["worst"] == pytest.approx(1, abs=BOUND), row


def stochastic_slots(tx):
    state = tx.init(jnp.ones((64, 128)))
    slots = state._asdict() if hasattr(state, "_asdict") else state[0]._asdict()
    return {k for k, x in slots.items() if isinstance(x, Blocks) and x.format.stochastic}


def test_where_rounding_is_stochastic():
    int8, int4 = ({"mu_dtype": d, "nu_dtype": d} for d in (jnp.int8, jnp.int4))
    assert stochastic_slots(adam_jax.scale_by_adam(**int8)) == {"nu"}
    assert stochastic_slots(adam_jax.scale_by_adam(b2=0.95, **int8)) == set()
    assert stochastic_slots(adam_jax.scale_by_adam(b1=0.999, **int8)) == {"mu", "nu"}
    assert stochastic_slots(adam_jax.scale_by_ademamix(**int8)) == {"m2", "nu"}
    assert stochastic_slots(adam_jax.scale_by_adan(**int8)) == {"m", "n"}
    assert stochastic_slots(adam_jax.scale_by_adan(**int4)) == {"m", "v", "n"}
    assert stochastic_slots(adam_jax.scale_by_lion(mu_dtype=jnp.int8)) == {"mu"}
    assert stochastic_slots(adam_jax.scale_by_lion(b2=0.95, mu_dtype=jnp.int8)) == set()
    assert stochastic_slots(adam_jax.scale_by_adam(**int4)) == {"mu", "nu"}
    assert stochastic_slots(adam_jax.scale_by_adam(b1=0.4, b2=0.4, **int4)) == set()
    # b2 is traced or may change.
    for b2 in (jnp.float32(0.9), np.float64(0.9)):
        assert stochastic_slots(adam_jax.scale_by_adam(b2=b2, **int8)) == {"nu"}
    made = adam_jax.with_hyperparams(adam_jax.scale_by_adam)(b2=0.9, **int8)
    assert made.init(jnp.ones((64, 128))).inner_state.nu.format.stochastic
    traced = jax.eval_shape(
        lambda b2: adam_jax.scale_by_adam(b2=b2, **int8).init(jnp.ones((64, 128))), 0.9
    )
    assert traced.nu.format.stochastic
    converted = adam_jax.convert_state(
        adam_jax.scale_by_adam().init(jnp.ones((64, 128))), nu_dtype=jnp.int8
    )
    assert converted.nu.format.stochastic


@pytest.mark.parametrize("make", [adam_jax.amsgrad, adam_jax.adamaxw])
def test_four_bits_are_refused_where_a_maximum_is_taken(make):
    """Updates were 13 % (adamax) and 27 % (amsgrad) too small."""
    params = {"w": jnp.ones((64, 128)), "b": jnp.ones(128)}
    tx = make(1e-3, mu_dtype=jnp.int4, nu_dtype=jnp.int8)
    state = tx.init(params)
    with pytest.raises(ValueError, match="at 'w', nu_dtype must not be 4 bits .* write jnp.int8"):
        make(1e-3, nu_dtype=jnp.int4).init(params)
    coarse = adam_jax.convert_state(state, nu_dtype=adam_jax.stochastic(jnp.int4))
    with pytest.raises(ValueError, match="at 'w', the state has nu.* in 4 bits .*jnp.int8"):
        tx.update(params, coarse, params)
    again = adam_jax.convert_state(coarse, nu_dtype=jnp.int8)
    assert tx.update(params, again, params)[1][0].nu["w"].format == state[0].nu["w"].format


def test_the_script(tmp_path):
    printed, [found] = tables("precision.moving_gradients", tmp_path)
    assert "| adopt | int4 |" in printed and BOUND == 0.1
    assert len(found) == 4 and all(abs(row["worst"] - 1) < BOUND for row in found)


def test_clipping_by_the_norm_keeps_a_spike_out_of_the_factors():
    """As documented: unclipped, updates in the spike's row and column are thousands."""

    def largest(tx):
        def step(state, t):
            g = 1e-3 * jax.random.normal(jax.random.fold_in(jax.random.key(0), t), (256, 256))
            u, state = tx.update(jnp.where(t == 20, g.at[3, 5].set(1e4), g), state)
            return state, jnp.abs(u).max()

        _, us = jax.lax.scan(step, tx.init(jnp.zeros((256, 256))), jnp.arange(60))
        return float(us[21:].max())

    member = adam_jax.scale_by_adam(nu_dtype=adam_jax.Factored())
    assert largest(member) > 100
    assert largest(adam_jax.chain(adam_jax.clip_by_global_norm(1.0), member)) < 2


@functools.cache
def of_noise(b1, dtype):
    """The RMS of Adam's updates in the last 50 of 400 steps of noise of many sizes."""
    shape = 64, 256
    sizes = jnp.asarray(10 ** np.random.default_rng(0).uniform(-1, 0, shape), jnp.float32)
    tx = adam_jax.scale_by_adam(b1, mu_dtype=dtype)

    def step(state, key):
        u, state = tx.update(jax.random.normal(key, shape) * sizes, state)
        return state, jnp.mean(u**2)

    squares = jax.lax.scan(step, tx.init(sizes), jax.random.split(jax.random.key(0), 400))[1]
    return float(jnp.sqrt(jnp.mean(squares[-50:])))


def test_mu_of_noise_has_the_size_that_the_docs_say():
    text = "relative to that of float32, after 400 steps of noise:"
    rows = {row["`b1`"]: row for row in table(DOCS / "low-precision.md", text)}
    forms = {
        "`mu_dtype=jnp.int8`": adam_jax.Quantized("int8", min_size=0),
        "`mu_dtype=jnp.int4`": adam_jax.Quantized("int4", min_size=0),
        "`jnp.int4`, rounded to nearest": adam_jax.Quantized("int4", min_size=0, stochastic=False),
    }
    assert list(rows) == list(forms)
    for name, form in forms.items():
        for b1, ratio in list(rows[name].items())[1:]:
            found = of_noise(float(b1), form) / of_noise(float(b1), jnp.float32)
            assert found == pytest.approx(float(ratio), rel=0.01 if "int8" in name else 0.06), b1
