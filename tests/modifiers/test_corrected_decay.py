"""AdamC: weight decay that falls with the learning rate."""

import functools
import inspect
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from adam_jax import corrected_weight_decay, transfer
from adam_jax.rules.base import at
from tests.catalogue import MEMBERS, oracles
from tests.catalogue.runs import gradients
from tests.catalogue.training import trained

STEPS, PEAK, LAMBDA = 12, 0.1, 0.3
PARAMS = {"head": jnp.linspace(-1.0, 1.0, 6), "block": jnp.linspace(0.5, 2.0, 12).reshape(3, 4)}


def cosine(count):
    """From 0.1 to 0 in 12 steps."""
    return PEAK / 2 * (1 + jnp.cos(math.pi / STEPS * jnp.asarray(count, float)))


def corrected_by_hand(count):
    """λ·α_t/α_max as a schedule, for members without the modifier."""
    return LAMBDA * cosine(count) / PEAK


def steps(tx, params=PARAMS, count=STEPS):
    return trained(tx, params, steps=count, through="update")


def check_same(tx, other, **how):
    (params, state), (expected, of_other) = (steps(x, **how) for x in (tx, other))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), params, expected)
    return state, of_other


def test_it_is_the_papers(x64):
    """Defazio 2025: θ - α_t·mû / (√nû + ε) - α_t²/α_max·λ·θ, in NumPy."""
    gs = gradients(STEPS, 30, seed=31)[:, 0].astype(np.float64)
    tx = corrected_weight_decay(adam_jax.adamw(cosine, weight_decay=LAMBDA), PEAK)
    params = jnp.linspace(-2.0, 2.0, 30)
    state = tx.init(params)
    theta = np.linspace(-2.0, 2.0, 30)
    for t, (g, u) in enumerate(zip(gs, oracles.adam(gs), strict=True)):
        rate = PEAK / 2 * (1 + np.cos(np.pi * t / STEPS))
        theta = theta - rate * u - rate**2 / PEAK * LAMBDA * theta
        params, state = adam_jax.step(tx, jnp.asarray(g), state, params)
        np.testing.assert_allclose(params, theta, rtol=1e-9, atol=1e-12)


def final_growth(tx):
    """The growth of a weight's norm, and of its gradient's norm, in the second half of a run.

    The loss depends only on the direction of the weight, and its gradient there is noise.
    """
    size, noise = 256, jax.random.normal(jax.random.key(0), (2000, 256))
    start = jnp.ones(size)

    def step(carry, xi):
        theta, state = carry
        norm = jnp.linalg.norm(theta)
        g = (xi - theta * (xi @ theta) / norm**2) / norm
        updates, state = tx.update(g, state, theta)
        return (theta + updates, state), (norm, jnp.linalg.norm(g))

    _, norms = jax.jit(lambda s: jax.lax.scan(step, s, noise))((start, tx.init(start)))
    return [float(jnp.mean(x[-50:]) / jnp.mean(x[900:1000])) for x in norms]


def falling(count):
    """0.1 for 1,000 steps, then linear to 0 in 1,000 steps."""
    return PEAK * jnp.clip(2 - jnp.asarray(count, float) / 1000, 0, 1)


def test_the_norm_of_a_scale_invariant_weight_stays_and_so_does_its_gradient():
    plain = adam_jax.adamw(falling, weight_decay=LAMBDA)
    weight, gradient = final_growth(plain)
    assert weight < 0.6 and gradient > 1.7
    weight, gradient = final_growth(corrected_weight_decay(plain, PEAK))
    assert weight == pytest.approx(1, abs=0.1) and gradient == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    "member", [m for m in MEMBERS if m.has("weight_decay")], ids=lambda m: m.name
)
def test_every_member_decays_by_a_number_that_falls(member):
    tx = corrected_weight_decay(member.alias(cosine, weight_decay=LAMBDA), PEAK)
    state, _ = check_same(tx, member.alias(cosine, weight_decay=corrected_by_hand))
    unmodified = member.alias(cosine, weight_decay=LAMBDA).init(PARAMS)
    chex.assert_trees_all_equal_structs(state, unmodified)


def test_schedule_free_with_its_warm_up():
    def tx(decay):
        return adam_jax.schedule_free_adamw(PEAK, warmup_steps=4, weight_decay=decay)

    by_hand = tx(lambda count: LAMBDA * jnp.minimum((jnp.asarray(count, float) + 1) / 4, 1))
    check_same(corrected_weight_decay(tx(LAMBDA), PEAK), by_hand)


def test_schedules_of_both_numbers():
    def decay(count):
        return LAMBDA / (1 + jnp.asarray(count, float))

    tx = corrected_weight_decay(adam_jax.adamw(cosine, weight_decay=decay), PEAK)
    by_hand = lambda count: decay(count) * cosine(count) / PEAK  # noqa: E731
    check_same(tx, adam_jax.adamw(cosine, weight_decay=by_hand))


def test_a_learning_rate_at_its_peak_leaves_the_decay_as_it_is():
    plain = adam_jax.adamw(3e-3, weight_decay=LAMBDA)
    params, _ = steps(corrected_weight_decay(plain, 3e-3))
    jax.tree.map(np.testing.assert_array_equal, params, steps(plain)[0])


def test_traced_numbers_and_programs_have_the_same_bits():
    """As for the number itself; XLA would multiply by the reciprocal of a constant α_max."""
    peaks = np.linspace(0.02, 0.13, 50, dtype=np.float32)

    def number(count, peak):
        tx = corrected_weight_decay(adam_jax.adamw(cosine, weight_decay=LAMBDA), peak)
        return at(tx.body.stages[1].rule.weight_decay, count)

    count = jnp.asarray(5)
    for peak in peaks:
        exact = number(count, float(peak))
        assert jax.jit(lambda count, p=float(peak): number(count, p))(count) == exact
        assert jax.jit(number)(count, peak) == exact
    assert number(count, 0.1) == pytest.approx(LAMBDA * float(cosine(5)) / 0.1, rel=1e-6)


def test_derivatives():
    def weight(peak):
        tx = corrected_weight_decay(adam_jax.adamw(0.1, weight_decay=LAMBDA), peak)
        theta = jnp.array(2.0)
        return tx.update(theta, tx.init(theta), theta)[0]

    # -α·(u + λ·α/peak·θ)
    assert jax.grad(weight)(0.2) == pytest.approx(0.1**2 * LAMBDA * 2.0 / 0.2**2, rel=1e-5)


def test_hyperparameters_in_the_state():
    factory = corrected_weight_decay(adam_jax.adamw, peak_learning_rate=PEAK)
    tx = adam_jax.with_hyperparams(factory)(cosine, weight_decay=LAMBDA)
    state, _ = check_same(tx, factory(cosine, weight_decay=LAMBDA))
    assert adam_jax.hyperparams(state)["weight_decay"] == np.float32(LAMBDA)
    constant = adam_jax.with_hyperparams(factory)(PEAK, weight_decay=LAMBDA)
    state = adam_jax.set_hyperparams(constant.init(PARAMS), learning_rate=PEAK / 4)
    new, _ = adam_jax.step(constant, PARAMS, state, PARAMS)
    quarter = adam_jax.adamw(PEAK / 4, weight_decay=LAMBDA / 4)
    expected, _ = adam_jax.step(quarter, PARAMS, quarter.init(PARAMS), PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), new, expected)


def adamc(learning_rate, weight_decay=LAMBDA, peak=PEAK):
    """The docstring's sample; without a peak, plain decay."""
    tx = adam_jax.adamw(learning_rate, weight_decay=weight_decay)
    return corrected_weight_decay(tx, peak) if peak else tx


def test_a_group_with_plain_decay():
    tx = adam_jax.groups(adamc, {"head": {"peak": None}}, learning_rate=cosine)
    params, state = steps(tx)
    for name, alone in {"head": adamc(cosine, peak=None), "block": adamc(cosine)}.items():
        expected, _ = steps(alone, PARAMS[name])
        np.testing.assert_array_equal(params[name], expected)
    plain = adam_jax.groups(adam_jax.adamw, {"head": {}}, learning_rate=cosine)
    chex.assert_trees_all_equal_structs(state, plain.init(PARAMS))
    inside = functools.partial(adam_jax.groups, adamc, {"head": {"peak": None}})
    check_same(adam_jax.with_hyperparams(inside)(learning_rate=cosine), tx)


@pytest.mark.parametrize("inside", [True, False])
def test_factors_of_a_larger_model_do_not_change_the_ratio(inside):
    base = {"in": jnp.ones((3, 4)), "mid": jnp.ones((4, 4))}
    params = {"in": jnp.ones((3, 8)), "mid": jnp.linspace(1.0, 2.0, 64).reshape(8, 8)}
    correct = functools.partial(corrected_weight_decay, peak_learning_rate=PEAK)
    plain = adam_jax.adamw(cosine, weight_decay=LAMBDA)
    tx = transfer.mup(correct(plain), base, params) if inside else None
    tx = tx or correct(transfer.mup(plain, base, params))
    by_hand = adam_jax.adamw(cosine, weight_decay=corrected_by_hand)
    check_same(tx, transfer.mup(by_hand, base, params), params=params)


def test_larger_batches_have_the_peak_of_the_scaled_schedule():
    made = corrected_weight_decay(transfer.scale_batch(adam_jax.adamw, 4), 2 * PEAK)
    tx = made(cosine, weight_decay=LAMBDA, b1=0.8, b2=0.99)
    assert inspect.signature(made) == inspect.signature(adam_jax.adamw)
    by_hand = transfer.scale_batch(adam_jax.adamw, 4)
    check_same(tx, by_hand(cosine, weight_decay=corrected_by_hand, b1=0.8, b2=0.99), count=3)


def test_errors():
    plain = adam_jax.adamw(PEAK, weight_decay=LAMBDA)
    with pytest.raises(ValueError, match=r"peak_learning_rate must be in .*, got 0.0: write the"):
        corrected_weight_decay(plain, 0.0)
    with pytest.raises(ValueError, match=r"decoupled weight decay, as corrected_weight_decay\(ad"):
        corrected_weight_decay(adam_jax.adam(PEAK, l2=LAMBDA), PEAK)
    with pytest.raises(ValueError, match="that multiplies its weight decay.*scale_decay=True"):
        corrected_weight_decay(adam_jax.adamw(PEAK, scale_decay=False), PEAK)
