"""Decay rates from half-lives, weight decay from time scales, and the inverses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from adam_jax.transfer import (
    decay_rate_of_half_life,
    half_life_of_decay_rate,
    scale_batch,
    time_scale_of_weight_decay,
    weight_decay_of_time_scale,
)


def test_half_lives_by_hand():
    assert half_life_of_decay_rate(0.5) == 1.0
    assert half_life_of_decay_rate(0.25, batch_size=64) == pytest.approx(32.0, rel=1e-15)
    assert half_life_of_decay_rate(0.0, batch_size=64) == 0.0
    assert decay_rate_of_half_life(2.0) == pytest.approx(0.5**0.5, rel=1e-15)
    # Marek et al. 2025: 0.95 for 512 sequences corresponds to 0.9999 for one.
    half_life = half_life_of_decay_rate(0.95, batch_size=512)
    assert decay_rate_of_half_life(half_life) == pytest.approx(0.9999, abs=5e-7)


@pytest.mark.parametrize("complement", [1e-12, 1e-9, 1e-6, 1e-3, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("batch_size", [1, 37, 2**22])
def test_half_life_and_back(complement, batch_size):
    b = 1 - complement
    back = decay_rate_of_half_life(half_life_of_decay_rate(b, batch_size), batch_size)
    # Near 1, a ulp is 1e-4 of the complement of 1 - 1e-12.
    assert 1 - back == pytest.approx(1 - b, rel=1e-12, abs=2.3e-16)


def test_half_lives_near_one_are_those_of_the_complement():
    # log(1 - x) = -x - x²/2: no digit of 1 - b is lost.
    b = 1 - 2.0**-40
    assert half_life_of_decay_rate(b) == pytest.approx(np.log(2) / (2.0**-40 + 2.0**-81), rel=1e-14)


def test_an_average_has_forgotten_half_after_its_half_life():
    b = decay_rate_of_half_life(48, batch_size=4)
    average = adam_jax.ema_params(b, debias=False)
    state, params = average.init(jnp.ones(())), jnp.zeros(())
    for _ in range(12):
        _, state = average.update(jnp.zeros(()), state, params)
    np.testing.assert_allclose(state.ema, 0.5, rtol=1e-6)


def test_scaled_batches_keep_half_lives_to_first_order():
    for complement, rtol in ((1e-3, 4e-3), (1e-5, 4e-5)):
        scaled = scale_batch(adam_jax.adamw, 8).hyperparameters(1e-3, b2=1 - complement)
        kept = half_life_of_decay_rate(scaled["b2"], batch_size=8)
        assert kept == pytest.approx(half_life_of_decay_rate(1 - complement), rel=rtol)


def test_time_scales_by_hand_and_back():
    assert time_scale_of_weight_decay(0.1, 0.01) == pytest.approx(1000.0, rel=1e-15)
    assert time_scale_of_weight_decay(0.1, 0.01, batch_size=64) == pytest.approx(64e3, rel=1e-15)
    assert weight_decay_of_time_scale(64e3, 0.01, batch_size=64) == pytest.approx(0.1, rel=1e-15)
    for weight_decay in (1e-6, 0.3, 10.0):
        time_scale = time_scale_of_weight_decay(weight_decay, 3e-4, 512)
        back = weight_decay_of_time_scale(time_scale, 3e-4, 512)
        assert back == pytest.approx(weight_decay, rel=1e-15)


def test_weights_without_gradients_have_decayed_to_a_third_after_the_time_scale():
    weight_decay = weight_decay_of_time_scale(4000, 0.01, batch_size=4)
    tx = adam_jax.adamw(0.01, weight_decay=weight_decay)
    params = jnp.ones(3)

    def body(carry, _):
        params, state = carry
        return adam_jax.step(tx, jnp.zeros(3), state, params), None

    (params, _), _ = jax.lax.scan(body, (params, tx.init(params)), length=1000)
    np.testing.assert_allclose(params, np.exp(-1), rtol=1e-3)


@pytest.mark.parametrize("factor", [1 / 8, 2, 8])
def test_scaled_batches_keep_the_time_scale(factor):
    scaled = scale_batch(adam_jax.adamw, factor).hyperparameters(3e-4, weight_decay=0.1)
    numbers = scaled["weight_decay"], scaled["learning_rate"]
    kept = time_scale_of_weight_decay(*numbers, batch_size=64 * factor)
    assert kept == pytest.approx(time_scale_of_weight_decay(0.1, 3e-4, batch_size=64), rel=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: half_life_of_decay_rate(1.0), r"decay_rate must be in \[0, 1\), got 1.0"),
        (lambda: half_life_of_decay_rate(0.9, 0), "batch_size must be in .*, got 0.0"),
        (lambda: decay_rate_of_half_life(0.0), "half_life must be in .*, got 0.0"),
        (lambda: decay_rate_of_half_life(1e17), "half_life must be at most 1e16 optimizer steps"),
        (lambda: decay_rate_of_half_life(1e3, -1.0), "batch_size must be in .*, got -1.0"),
        (lambda: time_scale_of_weight_decay(0.0, 0.1), "weight_decay must be in .*, got 0.0"),
        (lambda: weight_decay_of_time_scale(1e3, 0.0), "learning_rate must be in .*, got 0.0"),
        (lambda: weight_decay_of_time_scale(0, 0.1), "time_scale must be in .*, got 0.0"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
