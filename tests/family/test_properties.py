"""Properties for arbitrary gradients, on every member whose catalogue row claims them."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.catalogue import MEMBERS, every_kind_of_state, of_each_kind, slowly

search = settings(max_examples=15, derandomize=True, deadline=None, database=None)

# Odd sizes: XLA's vectorized loops have a remainder, which must have the same bits.
STEPS, SIZE = 4, 21
SMALLEST, LARGEST = (float(np.float32(x)) for x in (1e-6, 1e6))
sizes = st.floats(SMALLEST, LARGEST, width=32)
numbers = st.just(0.0) | sizes | sizes.map(lambda x: -x)


def float32(*shape, elements=numbers):
    return arrays(np.float32, shape, elements=elements, fill=st.nothing())


params_and_gradients = float32(1 + STEPS, SIZE).map(lambda x: (x[0], x[1:]))


def having(holds):
    return slowly([m for m in MEMBERS if holds(m)])


def updates(tx, params, gs, like=None):
    """The updates of all steps at fixed parameters; `like` replaces them in `init`."""

    def body(state, g):
        u, state = tx.update(g, state, params)
        return state, u

    like = params if like is None else like
    return jax.lax.scan(body, tx.init(like), gs)[1]


run = jax.jit(updates, static_argnums=0)


@having(lambda member: member.scale_invariant)
@search
@given(params_and_gradients, st.integers(-10, 10))
def test_no_update_depends_on_the_scale_of_the_gradients(member, drawn, exponent):
    params, gs = drawn
    tx = member.function(1.0, **(member.keywords | member.ours | member.without_eps))
    u = run(tx, params, gs)
    np.testing.assert_array_equal(run(tx, params, gs * np.float32(2.0**exponent)), u)
    assert np.isfinite(u).all()


@having(lambda member: member.starts_at_zero)
@search
@given(params_and_gradients)
def test_the_opposite_gradients_give_the_opposite_updates(member, drawn):
    params, gs = drawn
    tx = member.alias(1.0)
    np.testing.assert_array_equal(run(tx, -params, -gs), -run(tx, params, gs))


@slowly([*of_each_kind(MEMBERS), *(m for m in MEMBERS if not m.elementwise)])
@search
@given(params_and_gradients, st.permutations(range(SIZE)))
def test_permuted_and_reshaped_gradients_give_permuted_and_reshaped_updates(member, drawn, order):
    params, gs = drawn
    tx = member.alias(1.0)
    u = run(tx, params, gs)
    permuted = run(tx, params[order], gs[:, order])
    reshaped = run(tx, params.reshape(3, 7), gs.reshape(STEPS, 3, 7)).reshape(STEPS, SIZE)
    # Only sums over a leaf may be rounded in another order. Where the terms of mu cancel, an update
    # is as exact as they are.
    tol = 0 if member.elementwise else 1e-6
    np.testing.assert_allclose(permuted, u[:, order], rtol=tol, atol=tol)
    np.testing.assert_allclose(reshaped, u, rtol=tol, atol=tol)


@every_kind_of_state
@search
@given(params_and_gradients)
def test_one_leaf_or_two_makes_no_difference(member, drawn):
    params, gs = drawn
    tx = member.alias(1.0)
    whole = run(tx, params, gs)
    halves = run(tx, (params[:10], params[10:]), (gs[:, :10], gs[:, 10:]))
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), whole)


@having(lambda member: member.starts_at_zero)
@search
@given(params_and_gradients)
def test_nothing_moves_before_its_first_gradient(member, drawn):
    _, gs = drawn
    gs[:, 0] = 0
    u = run(member.alias(1.0), np.zeros(SIZE, np.float32), gs)
    still = ~np.logical_or.accumulate(gs != 0)
    np.testing.assert_array_equal(u[still], 0)


@having(lambda member: not member.needs_params)
@search
@given(params_and_gradients)
def test_the_parameters_are_not_read(member, drawn):
    params, gs = drawn
    tx = member.alias(1.0)
    np.testing.assert_array_equal(run(tx, None, gs, like=params), run(tx, params, gs))


@having(lambda member: member.bounded)
@search
@given(float32(SIZE, elements=sizes | sizes.map(lambda x: -x)))
def test_a_constant_gradient_gives_steps_of_size_one(member, g):
    tx = member.function(1.0, **(member.keywords | member.ours | member.without_eps))
    u = run(tx, np.zeros(SIZE, np.float32), np.stack([g] * STEPS))
    np.testing.assert_allclose(u, np.stack([-np.sign(g)] * STEPS), rtol=1e-5)


# The bound of Kingma & Ba 2015, section 2.1, holds in their "most severe case", zeros and then a
# spike. Smaller gradients before the spike are worse: they add to mu in proportion to their size,
# but to nu in proportion to its square. Gradients that grow by b2/b1 a step are the worst case.

LONG, WIDTH = 64, 5
# b1 ≤ b2 implies the paper's own condition b1² < √b2.
rates = st.tuples(
    st.just(0.0) | st.floats(0.0, 1.0, width=32), st.floats(0.125, 0.9990234375, width=32)
).map(lambda drawn: (np.float32(drawn[0]) * np.float32(drawn[1]), np.float32(drawn[1])))


def papers_bound(b1, b2):
    b1, b2 = float(b1), float(b2)
    return max(1.0, (1 - b1) / np.sqrt(1 - b2))


def exact_bound(b1, b2):
    """float64[LONG, 1]: the largest |u| of each step, by the Cauchy-Schwarz inequality.

    Σ b1ᵏ·g_k ≤ √(Σ (b1²/b2)ᵏ · Σ b2ᵏ·g_k²), with g_k the gradient k steps ago. For the largest
    gradient instead of a sum of squares: Σ b1ᵏ·g_k ≤ Σ (b1/b2)ᵏ · max b2ᵏ·g_k.
    """
    b1, b2 = float(b1), float(b2)
    k = np.arange(LONG)
    of_m, of_v = np.cumsum(b1**k), np.cumsum(b2**k)
    of_squares = np.sqrt(np.cumsum((b1**2 / b2) ** k) * of_v)
    of_largest = np.cumsum((b1 / b2) ** k)
    return (np.maximum(of_squares, of_largest) / of_m)[:, None]


@having(lambda member: member.bounded)
def test_no_update_is_beyond_its_bound(member):
    @jax.jit
    def sizes_of_updates(b1, b2, gs):
        return jnp.abs(updates(member.direction(b1, b2), None, gs, like=jnp.zeros(WIDTH)))

    @search
    @given(rates, float32(WIDTH), st.integers(0, LONG - 1))
    @example((np.float32(0.9), np.float32(0.999)), np.ones(WIDTH, np.float32), LONG - 1)
    def zeros_and_a_spike(b1_b2, spike, when):
        gs = np.zeros((LONG, WIDTH), np.float32)
        gs[when] = spike
        assert sizes_of_updates(*b1_b2, gs).max() <= papers_bound(*b1_b2) * (1 + 1e-5)

    @search
    @given(rates, float32(8, WIDTH), st.integers(0, LONG - 8))
    def any_gradients(b1_b2, some, when):
        gs = np.zeros((LONG, WIDTH), np.float32)
        gs[when : when + 8] = some
        assert (sizes_of_updates(*b1_b2, gs) <= exact_bound(*b1_b2) * (1 + 1e-5)).all()

    zeros_and_a_spike()
    any_gradients()
