"""Every member against the naive float64 version from its paper, and against Optax."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from tests.catalogue import MEMBERS, every_member, every_member_slowly, oracles, slowly
from tests.catalogue.runs import gradients, run, run_optax, ulps

STEPS, SIZE = 10_000, 600
KINDS = ("normal", "biased", "scales from 1e-8 to 1e8")


@pytest.mark.slow
@pytest.mark.bits
@pytest.mark.smoke
def test_adam_stays_within_4_ulp_of_the_paper(record_property):
    gs = gradients(STEPS, SIZE)
    exact = np.stack(list(oracles.adam(gs.astype(np.float64))))
    ours = ulps(run(adam_jax.scale_by_adam(), gs), exact)
    theirs = ulps(run_optax(optax.scale_by_adam(), gs), exact)
    for kind, a, b in zip(KINDS, ours.swapaxes(0, 1), theirs.swapaxes(0, 1), strict=True):
        medians = f"adam_jax {np.median(a):5.2f}   optax {np.median(b):6.2f}"
        record_property("printed", f"median error over {STEPS} steps, in ulp: {kind:24} {medians}")
        assert np.median(a) <= 4.0
    assert np.median(ours) < np.median(theirs)


@pytest.mark.bits
@every_member
def test_float32_updates_equal_the_naive_version(member):
    gs = gradients(200, 50, seed=1)
    exact = np.stack(list(member.naive(gs.astype(np.float64))))
    u = run(member.direction(), gs)
    assert np.median(ulps(u, exact)) <= 4.0
    # RAdam's first updates are not normalized, so the tolerance at zero scales with them.
    assert (np.abs(u - exact) <= 2e-6 * np.maximum(1, np.abs(exact).max(0))).all()


@every_member
def test_float64_updates_equal_the_naive_version(member, x64):
    gs = gradients(200, 50, seed=2).astype(np.float64)
    exact = np.stack(list(member.naive(gs)))
    u = run(member.direction(), gs)
    assert u.dtype == np.float64
    np.testing.assert_allclose(u, exact, rtol=1e-12, atol=1e-13)


ARGUMENTS = (
    *({"b1": 0.0}, {"b2": 0.0}, {"b1": 0.5, "b2": 0.9}, {"b3": 0.9}, {"eps": 0.1}),
    *({"eps_root": 1e-3}, {"bias_correction_mu": False, "bias_correction_nu": False}),
    *({"nesterov": True}, {"threshold": 8.0}, {"eps_hat": 1e-2}, {"mode": "refined"}),
    *({"mode": "smooth", "smooth_beta": 2.0}, {"use_clipping": False}, {"alpha": 2.0}),
    *({"initial_accumulator_value": 0.1}, {"gamma": 0.0}, {"gamma": 0.1}),
)


@every_member_slowly
def test_arguments_mean_what_the_paper_says(member, x64):
    gs = gradients(30, 20, seed=3).astype(np.float64)
    scale_by = getattr(adam_jax, member.scale_by)
    ours, theirs = (inspect.signature(f).parameters.keys() for f in (scale_by, member.oracle))
    tried = [a for a in ARGUMENTS if set(a) <= ours & theirs]
    assert len(tried) >= 3
    for arguments in tried:
        arguments = {**member.keywords, **member.ours, **arguments}
        exact = np.stack(list(member.oracle(gs, **arguments)))
        u = run(scale_by(**arguments), gs)
        np.testing.assert_allclose(u, exact, rtol=1e-11, atol=1e-13, err_msg=str(arguments))


@every_member_slowly
def test_a_rate_traced_from_the_start_in_double_precision(member, x64):
    gs = gradients(30, 20, seed=3).astype(np.float64)
    traced = jax.jit(lambda b1: run(member.direction(b1), gs))
    for b1 in (0.0, 0.4, 0.9):
        exact = np.stack(list(member.naive(gs, b1=b1)))
        np.testing.assert_allclose(traced(b1), exact, rtol=1e-11)


@slowly([m for m in MEMBERS if m.has_twin])
def test_whole_alias_equals_optax(member, x64):
    """In double precision: in single precision Optax's rounding, as of RAdam's ρ, reaches 1e-2."""
    gs = gradients(100, 50, seed=5).astype(np.float64)
    params = jnp.ones(gs.shape[1:])
    # Optax's schedules do not trace under strict promotion.
    schedule = adam_jax.schedules.inverse_sqrt_schedule(1e-2)
    for learning_rate in (1e-2, schedule):
        ours = run(member.alias(learning_rate), gs, params)
        theirs = run_optax(member.twin.alias(learning_rate), gs, params)
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-14)


@every_member
def test_the_count_saturates_without_harm(member):
    tx = member.direction()
    last = jnp.array(2**31 - 1, jnp.int32)
    start = tx.init(jnp.ones(3))
    counts = {name: last for name in start._fields if name not in member.slots}
    u, state = tx.update(jnp.ones(3), start._replace(**counts))
    assert member.counts(state) == [last] * len(counts)
    assert np.isfinite(u).all() and (u != 0).all()


def test_lamb_compares_norms_that_are_far_apart():
    """‖θ‖² / ‖u‖² overflows where ‖θ‖ / ‖u‖ does not."""
    params, grads = jnp.full(1000, 10.0), jnp.full(1000, 1.5e-25)
    tx = adam_jax.lamb(1e-3)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates, -1e-2, rtol=1e-5)


@pytest.mark.parametrize("size", [10.0, 1e10, 1e18])
def test_mars_clips_each_leaf_by_itself(size):
    direction = jnp.asarray([0.6, -0.8])
    grads = {"large": size * direction, "small": 0.5 * direction}
    tx = adam_jax.scale_by_mars()
    _, state = jax.jit(tx.update)(grads, tx.init(grads))
    np.testing.assert_allclose(state.mu["large"], 0.05 * direction, rtol=1e-6)
    np.testing.assert_allclose(state.mu["small"], 0.05 * 0.5 * direction, rtol=1e-6)


def test_laprops_updates_are_bounded_where_b1_is_above_b2_and_adams_are_not():
    b1, b2, bound = 0.99, 0.5, 2**0.5
    gs = np.where(np.arange(40) == 0, 1e6, 1.0).astype(np.float32)[:, None, None]
    assert np.abs(run(adam_jax.scale_by_laprop(b1, b2), gs)).max() <= bound * (1 + 1e-5)
    assert np.abs(run(adam_jax.scale_by_adam(b1, b2), gs)).max() > 1000 * bound
