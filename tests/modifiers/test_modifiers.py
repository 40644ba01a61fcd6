"""Modifiers: the property that each paper is about, on every member that accepts the modifier."""

import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from tests.catalogue import MEMBERS, every_member_slowly, of_each_kind, oracles, slowly
from tests.catalogue.modifiers import MODIFIERS
from tests.catalogue.runs import gradients, run
from tests.catalogue.training import trained


def modifiable(name):
    """The members that accept this modifier; the others raise an error that says why."""
    allowed = {
        "atan2": lambda m: m.divides,
        "cautious_weight_decay": lambda m: m.decays,
        "corrected_weight_decay": lambda m: m.decays,
    }
    return [m for m in MEMBERS if allowed.get(name, lambda m: True)(m)]


def pairs(accepted, members=MEMBERS):
    """Members and modifiers."""
    return pytest.mark.parametrize(
        ("member", "name"),
        [
            pytest.param(m, name, id=f"{m.name}-{name}")
            for name in MODIFIERS
            for m in members
            if (m in modifiable(name)) == accepted
        ],
    )


@pairs(accepted=True)
def test_on_every_member_with_the_members_own_state(member, name):
    modifier = MODIFIERS[name]
    plain = member.alias(0.1)
    tx = modifier(plain)
    params = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "b": jnp.array(2.0)}
    state = tx.init(params)
    chex.assert_trees_all_equal_structs(state, plain.init(params))
    _, new = jax.eval_shape(tx.update, params, state, params)
    chex.assert_trees_all_equal_structs(new, state)
    assert tx == modifier(member.alias(0.1)) != plain
    assert pickle.loads(pickle.dumps(tx)) == tx
    # Modifying the factory gives the same transformation.
    made = modifier(member.alias)(0.1)
    assert made == tx


@pairs(accepted=True, members=of_each_kind(MEMBERS))
def test_every_kind_of_member_goes_downhill(member, name):
    start = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "b": jnp.array(2.0)}
    tx = MODIFIERS[name](member.alias(0.1))
    moved, _ = trained(tx, start, lambda p, _: jax.tree.map(lambda x: 2 * x, p), 2, "update")
    norms = [sum(jnp.sum(x**2) for x in jax.tree.leaves(p)) for p in (moved, start)]
    assert norms[0] < norms[1]


@pairs(accepted=False)
def test_members_that_cannot_be_modified_say_why(member, name):
    with pytest.raises(ValueError, match="^tx must "):
        MODIFIERS[name](member.alias(0.1))


@every_member_slowly
def test_cautious_updates_never_point_against_the_gradient(member):
    gs = gradients(20, 40, seed=11)[:, 0]
    plain, tx = member.direction(), adam_jax.cautious(member.direction())
    u, raw = run(tx, gs), np.asarray(run(plain, gs))
    assert (u * gs >= 0).all()
    aligned = raw * gs > 0
    kept = np.maximum(aligned.mean(-1, keepdims=True), 1e-3)
    np.testing.assert_allclose(u, np.where(aligned, raw / kept, 0), rtol=1e-5)


@every_member_slowly
def test_grams_has_the_size_of_the_update_and_the_sign_of_the_gradient(member):
    gs = gradients(20, 40, seed=11)[:, 0]
    gs[5:8, :10] = 0
    raw, u = (run(tx, gs) for tx in (member.direction(), adam_jax.grams(member.direction())))
    np.testing.assert_allclose(u, np.sign(gs) * np.abs(raw), rtol=1e-6)
    assert (np.sign(raw) != np.sign(gs)).any()


def test_grams_of_complex_numbers_has_the_direction_of_the_gradient():
    gs = np.array([[1 + 1j, 3j, -2.0], [1 - 1j, 1.0, 0.0]], np.complex64)
    raw, u = (
        run(tx, gs) for tx in (adam_jax.scale_by_adam(), adam_jax.grams(adam_jax.scale_by_adam()))
    )
    direction = gs / np.where(gs == 0, 1, np.abs(gs))
    np.testing.assert_allclose(u, direction * np.abs(raw), rtol=1e-6)


@pytest.mark.parametrize("scaled", [True, False])
def test_cautious_weight_decay_only_where_the_update_shrinks_the_weight(scaled):
    params = jnp.array([2.0, -2.0, 3.0, -3.0])
    grads = jnp.array([1.0, 1.0, -1.0, -1.0])
    tx = adam_jax.adamw(0.1, weight_decay=0.5, scale_decay=scaled)
    plain, _ = tx.update(grads, tx.init(params), params)
    undecayed, _ = (adam := adam_jax.adam(0.1)).update(grads, adam.init(params))
    modified = adam_jax.cautious_weight_decay(tx)
    u, _ = modified.update(grads, modified.init(params), params)
    shrinks = np.asarray(undecayed * params < 0)
    assert shrinks.tolist() == [True, False, False, True]
    np.testing.assert_allclose(u, np.where(shrinks, plain, undecayed), rtol=1e-6)


def test_update_rms_is_that_of_stable_adamw(x64):
    """Wortsman et al. 2023, algorithm 2, in NumPy: α / max(1, RMS(g / max(√v, ε)))."""
    gs = gradients(60, 30, seed=12)[:, 0].astype(np.float64)
    gs[40] *= 1e3
    u = run(adam_jax.clip_update_rms(adam_jax.scale_by_adam(eps=1e-12)), gs)
    exact, divided = (np.stack(list(oracles.adam(gs, b1, eps=1e-12))) for b1 in (0.9, 0.0))
    rms = np.sqrt(np.mean(divided**2, axis=-1, keepdims=True))
    np.testing.assert_allclose(u, exact / np.maximum(1.0, rms), rtol=1e-9)
    plain = run(adam_jax.scale_by_adam(eps=1e-12), gs)
    assert np.abs(plain[40]).mean() > 3 * np.abs(u[40]).mean()
    loose = adam_jax.clip_update_rms(adam_jax.scale_by_adam(eps=1e-12), threshold=1e6)
    np.testing.assert_array_equal(run(loose, gs), plain)


def test_update_rms_of_radam_is_that_of_the_divided_gradient():
    """Also in the first steps, where u is the average itself."""
    gs = gradients(3, 30, seed=12)[:, 0] * 100
    u = run(adam_jax.clip_update_rms(adam_jax.scale_by_radam(), threshold=0.5), gs)
    plain = run(adam_jax.scale_by_radam(), gs)
    np.testing.assert_allclose(u[0], plain[0] * 0.5, rtol=1e-5)


@slowly([m for m in MEMBERS if m.divides])
def test_atan2_needs_no_epsilon(member, x64):
    """Independent of the gradient's scale, at most a·π/2, and close to u where u is small."""
    gs = gradients(30, 20, seed=13)[:, 0].astype(np.float64)
    tx = adam_jax.atan2(member.direction(), a=2.0)
    u = np.asarray(run(tx, gs))
    if member.scale_invariant:
        np.testing.assert_allclose(run(tx, gs * 2.0**-60), u, rtol=1e-6, atol=1e-9)
    assert np.isfinite(u).all()
    if member.bounded:
        assert np.abs(u).max() <= np.pi + 1e-12


def test_atan2_of_adam_is_the_papers(x64):
    gs = gradients(30, 20, seed=13)[:, 0].astype(np.float64)
    tx = adam_jax.atan2(adam_jax.scale_by_adam(), a=1.25, b=0.5)
    quotients = np.stack(list(oracles.adam(gs, eps=0.0)))
    np.testing.assert_allclose(run(tx, gs), 1.25 * np.arctan(quotients / 0.5), rtol=1e-10)


def test_they_stack_in_any_order_that_makes_sense():
    params, tx = jnp.linspace(-1.0, 1.0, 20), adam_jax.adamw(0.1)
    for modifier in MODIFIERS.values():
        tx = modifier(tx)
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    assert (updates * params <= 0).all()
    inside_out = adam_jax.atan2(adam_jax.clip_update_rms(adam_jax.adamw(0.1)))
    assert inside_out == adam_jax.clip_update_rms(adam_jax.atan2(adam_jax.adamw(0.1)))


@pytest.mark.parametrize("name", MODIFIERS)
def test_complex_leaves_and_a_derivative_at_zero_gradients(name):
    def moved(rate, params):
        return trained(MODIFIERS[name](adam_jax.adamw(rate)), params, steps=2)[0]

    with jax.debug_nans(True):
        assert moved(0.1, jnp.array([1 + 1j, 0])).dtype == jnp.complex64
    assert jax.grad(lambda rate: jnp.sum(moved(rate, jnp.zeros(3))))(0.1) == 0


def test_errors():
    with pytest.raises(ValueError, match=r"tx must be a member of adam_jax, got .*cautious\(adamw"):
        adam_jax.cautious(optax.adam(0.1))
    with pytest.raises(ValueError, match="tx must be a member .* got WithHyperparams"):
        adam_jax.grams(adam_jax.with_hyperparams(adam_jax.adam)(0.1))
    with pytest.raises(ValueError, match="with accumulators, .* got ScaleByLearningRate"):
        adam_jax.cautious(adam_jax.scale_by_learning_rate(1.0))
    with pytest.raises(ValueError, match="threshold must be in"):
        adam_jax.clip_update_rms(adam_jax.adam(0.1), threshold=0.0)
    with pytest.raises(ValueError, match="a must be in"):
        adam_jax.atan2(adam_jax.adam, a=-1.0)
