"""Storage dtypes: the dtypes of inputs and outputs, and of the arithmetic in between."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from tests.catalogue import (
    MAGNITUDES,
    every_kind_of_state,
    every_member,
    every_member_slowly,
    every_twin,
)

LOW = [jnp.bfloat16, jnp.float16]
every_low = pytest.mark.parametrize("low", LOW, ids=lambda d: d.__name__)


def dtypes(tree):
    return jax.tree.map(lambda x: x.dtype, tree)


@every_kind_of_state
@every_low
@pytest.mark.smoke
def test_16_bit_parameters_get_float32_moments_and_keep_their_dtype(member, low):
    tx = member.alias(lambda count: jnp.asarray(1e-2))
    params = jnp.array([1.0, -2.0], low)
    state = tx.init(params)
    assert all(x.dtype == jnp.float32 for x in member.moments(state).values())
    for grads in (params, params.astype(jnp.float32)):
        updates, new = jax.eval_shape(tx.update, grads, state, params)
        assert updates.dtype == grads.dtype
        assert dtypes(new) == dtypes(state)
        updates = jnp.zeros_like(updates)
        assert optax.apply_updates(params.astype(grads.dtype), updates).dtype == grads.dtype


@every_kind_of_state
@pytest.mark.parametrize(
    ("mu", "nu"),
    [(None, None), (jnp.float16, jnp.bfloat16), (jnp.float32, jnp.bfloat16), (None, jnp.float32)],
    ids=str,
)
def test_the_state_has_the_dtypes_asked_for_and_keeps_them(member, mu, nu):
    tx = member.alias(1e-2, **member.stored(mu, nu))
    for own in (jnp.float32, jnp.bfloat16):
        params = jnp.array([1.0, -2.0], own)
        state = tx.init(params)
        for slot, x in member.moments(state).items():
            assert x.dtype == ((nu if slot in MAGNITUDES else mu) or own)
        for grads in (params, params.astype(jnp.float32)):
            new = jax.eval_shape(tx.update, grads, state, params)[1]
            assert dtypes(new) == dtypes(state)


@every_member_slowly
def test_a_bfloat16_state_reads_the_unrounded_moments(member):
    """Moments are rounded after computing the update, so the first step equals that of float32."""
    # Accumulators with another initial value are already rounded.
    start = {"initial_accumulator_value": 0.0} if member.has("initial_accumulator_value") else {}
    g = jnp.linspace(-1.0, 1.0, 101)
    low = member.direction(**member.stored(jnp.bfloat16, jnp.bfloat16), **start)
    high = member.direction(**start)
    u, state = low.update(g, low.init(g))
    expected, exact = high.update(g, high.init(g))
    chex.assert_trees_all_equal(u, expected)
    for slot, x in member.moments(exact).items():
        chex.assert_trees_all_equal(getattr(state, slot), x.astype(jnp.bfloat16))


@every_member_slowly
def test_bfloat16_gradients_of_float32_parameters_lose_nothing_more(member):
    params, grads = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.3, -0.7, 1.1], jnp.bfloat16)
    tx = member.alias(1e-3)
    updates, _ = tx.update(grads, tx.init(params), params)
    wide, _ = tx.update(grads.astype(jnp.float32), tx.init(params), params)
    assert updates.dtype == jnp.float32
    chex.assert_trees_all_equal(updates, wide)


@every_member
def test_float16_survives_what_optax_does_not(member):
    """In float16, eps = 1e-8 and the square of a small gradient are both zero: 0/0."""
    params = jnp.ones(3, jnp.float16)
    grads = jnp.array([0.0, 1e-3, 6e-8], jnp.float16)
    u, _ = (tx := member.direction()).update(grads, tx.init(params))
    (exact,) = member.naive([np.asarray(grads, np.float64)])
    np.testing.assert_allclose(u.astype(np.float32), exact, rtol=1e-3)


def test_a_number_is_not_rounded_to_the_dtype_of_a_leaf():
    """α·u in bfloat16, α = 1e-3: rounding α first (9.9945e-4) gives different bits for many u."""
    g = jax.random.normal(jax.random.key(0), (1000,)).astype(jnp.bfloat16)
    by_rate = adam_jax.scale_by_learning_rate(lambda count: jnp.asarray(1e-3))
    ours, _ = by_rate.update(g, by_rate.init(g))
    exact = (-1e-3 * np.asarray(g, np.float64)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(ours, exact)
    rounded = jnp.asarray(-1e-3, jnp.bfloat16) * g
    assert (np.asarray(rounded) != exact).sum() > 50


@every_kind_of_state
def test_step_adds_before_it_rounds(member):
    """bfloat16: rounding the update first, as optax.apply_updates must, can be one ulp off."""
    params = jax.random.normal(jax.random.key(0), (4000,)).astype(jnp.bfloat16)
    grads = jax.random.normal(jax.random.key(1), (4000,)).astype(jnp.bfloat16)
    tx = member.alias(0.03)
    _, before = tx.update(params, tx.init(params), params)
    stepped, state = adam_jax.step(tx, grads, before, params)
    wide = tx.update(grads.astype(jnp.float32), before, params)[0]
    exact = (params.astype(jnp.float32) + wide).astype(jnp.bfloat16)
    # One or two of 4,000 differ: the step uses a fused multiply-add without intermediate rounding.
    assert (stepped != exact).sum() <= 4
    updates, same = tx.update(grads, before, params)
    rounded_twice = optax.apply_updates(params, updates)
    assert 10 < (rounded_twice != exact).sum() < 800
    chex.assert_trees_all_equal(state, same)


@every_member_slowly
@pytest.mark.smoke
def test_step_equals_update_and_apply_in_float32(member):
    params = {"a": jnp.linspace(-1.0, 1.0, 1000), "none": None}
    tx = member.alias(0.03)
    grads = jax.tree.map(jnp.sin, params)
    stepped, state = jax.jit(adam_jax.step)(tx, grads, tx.init(params), params)
    updates, same = jax.jit(tx.update)(grads, tx.init(params), params)
    chex.assert_trees_all_close(stepped, optax.apply_updates(params, updates), atol=2e-7)
    chex.assert_trees_all_equal(state, same)


@every_kind_of_state
def test_mixed_dtypes_in_one_tree(member, x64):
    params = {
        "f64": jnp.array([1.0, 2.0], jnp.float64),
        "f32": jnp.array([1.0, 2.0], jnp.float32),
        "bf16": jnp.array([1.0, 2.0], jnp.bfloat16),
        "c64": jnp.array([1.0 + 1j, 2.0], jnp.complex64),
        "c128": jnp.array([1.0 + 1j, 2.0], jnp.complex128),
        "number": 3.0,
        "empty": jnp.zeros((0, 4)),
        "none": None,
    }
    tx = member.alias(1e-2)
    state = tx.init(params)
    updates, new = jax.jit(tx.update)(params, state, params)
    assert dtypes(new) == dtypes(state)
    for name in ("f64", "f32", "bf16", "c64", "c128"):
        assert updates[name].dtype == params[name].dtype
    for slot, moment in member.moments(state).items():
        real = slot in MAGNITUDES
        assert moment["c64"].dtype == (jnp.float32 if real else jnp.complex64)
        assert moment["c128"].dtype == (jnp.float64 if real else jnp.complex128)
        assert moment["f64"].dtype == jnp.float64
    chex.assert_tree_all_finite(updates)


@every_member_slowly
def test_complex_gradients_share_the_size_of_their_two_parts(member, x64):
    g = jnp.array([3.0 + 4.0j, -1.0j])
    tx = member.direction()
    state = turned = tx.init(g)
    for exact in member.naive([np.asarray(g), np.asarray(2 * g)]):
        u, state = tx.update(g, state)
        np.testing.assert_allclose(u, exact, rtol=1e-12, atol=1e-15)
        turned_u, turned = tx.update(g * 1j, turned)
        if member.starts_at_zero:
            np.testing.assert_allclose(turned_u, u * 1j, rtol=1e-12, atol=1e-15)
        g = 2 * g


@every_twin
def test_a_complex_nu_from_an_optax_checkpoint_goes_on(member):
    g = jnp.array([3.0 + 4.0j, -1.0j], jnp.complex64)
    theirs = member.twin.direction()
    state = theirs.init(g)
    assert all(x.dtype == jnp.complex64 for x in member.moments(state).values())
    tx = member.direction()
    u, new = tx.update(g, state)
    np.testing.assert_allclose(u, tx.update(g, tx.init(g))[0], rtol=1e-6)
    assert dtypes(new) == dtypes(state)


@every_member
def test_a_none_gradient_leaves_its_parameter_and_state_alone(member):
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    grads = {"a": jnp.ones(3), "b": None}
    tx = member.alias(1e-2)
    state = tx.init(params)
    updates, new = tx.update(grads, state, params)
    assert updates["b"] is None
    for slot, moment in member.moments(new).items():
        chex.assert_trees_all_equal(moment["b"], member.moments(state)[slot]["b"])
    stepped, _ = adam_jax.step(tx, grads, new, params)
    chex.assert_trees_all_equal(stepped["b"], params["b"])
    assert (stepped["a"] < 1.0).all()


@every_member
def test_nan_gradients_stay_visible(member):
    tx = member.direction()
    g = jnp.array([jnp.nan, 1.0, jnp.inf, -jnp.inf])
    _, state = tx.update(g, tx.init(g))
    for again in (g, jnp.ones(4)):
        u, state = tx.update(again, state)
        assert np.isnan(u[0]) and np.isfinite(u[1])
        assert member.hides_infinity or again is not g or not np.isfinite(u[2:]).any()
    for bad in (2, 3):
        assert not all(np.isfinite(x[bad]) for x in member.moments(state).values())


@every_member
def test_under_debug_nans(member):
    params = {"zero": jnp.zeros(3), "one": jnp.ones(3)}
    with jax.debug_nans(True):
        tx = member.alias(1e-2)
        updates, _ = tx.update(params, tx.init(params), params)
        jax.block_until_ready(updates)
    assert not member.starts_at_zero or (updates["zero"] == 0).all()
    assert np.isfinite(updates["one"]).all()


@every_member
def test_a_complex_gradient_is_not_halved_in_silence(member):
    """Optax silently drops the imaginary part of mu for a real mu_dtype."""
    g = jnp.array([3.0 + 4.0j, -1.0j], jnp.complex64)
    tx = member.direction(mu_dtype=jnp.float32)
    with pytest.raises(ValueError, match="mu_dtype must be complex.*complex64"):
        tx.update(g, tx.init(g))
    tx = member.direction(mu_dtype=jnp.complex64)
    assert getattr(tx.update(g, tx.init(g))[1], member.slots[0]).dtype == jnp.complex64


def test_numpy_parameters_in_double_precision_are_jaxs():
    params = {"w": np.ones(3), "b": np.float64(1.0)}
    tx = adam_jax.adam(1e-2)
    state = tx.init(params)
    updates, _ = tx.update(params, state, params)
    assert updates["w"].dtype == state[0].mu["b"].dtype == jnp.float32


def test_gradients_whose_squares_are_zero_without_epsilon():
    """1e-20 squared is 0 in float32, so nu is 0 and the division is 0/0."""
    tx = adam_jax.adam(1e-3, eps=0.0)
    params = jnp.ones(2)
    updates, _ = tx.update(jnp.array([1e-20, 1e-3]), tx.init(params))
    np.testing.assert_allclose(updates, [0.0, -1e-3], rtol=1e-5)
