"""Every finite gradient gives a finite update, and the moments recover from a large one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax.rules.base import rules_in
from tests.catalogue import MEMBERS, every_member_slowly, of_each_kind, slowly_with

STEPS, SPIKE = 24, 3
SIDE = 32
FORMS = {
    "float32": (jnp.float32, jnp.float32),
    "int8": (adam_jax.Quantized(min_size=1), adam_jax.Quantized(min_size=1)),
    "int4": (adam_jax.Quantized("int4", min_size=1), adam_jax.Quantized("int4", min_size=1)),
    "bfloat16": (adam_jax.stochastic(jnp.bfloat16), adam_jax.stochastic(jnp.bfloat16)),
    "Factored": (jnp.float32, adam_jax.Factored(1, 1)),
    "BlockMeans": (jnp.float32, adam_jax.BlockMeans(0)),
}
LARGEST = float(np.finfo(np.float32).max)


def sequences():
    """float64[STEPS] each: constant, of alternating sign, and ones with a single large gradient."""
    ones, signs = np.ones(STEPS), (-1.0) ** np.arange(STEPS)
    found = {}
    for size in (1e18, 1e20, 1e30, 3e38):
        found |= {f"constant {size:g}": size * ones, f"alternating {size:g}": size * signs}
        found[f"spike {size:g}"] = np.where(np.arange(STEPS) == SPIKE, size, ones)
    return np.stack(list(found.values()))


def updates(tx, gs, params=None):
    """float32[STEPS, ...] for gradients [STEPS, ...], and the last state."""
    params = jnp.ones(gs.shape[1:], gs.dtype) if params is None else params

    def step(state, g):
        u, state = tx.update(g, state, params)
        return state, u

    state, us = jax.lax.scan(step, tx.init(params), gs)
    return us.astype(jnp.float32), state


def first_elements(member, leaves):
    """float64[sequences, STEPS]: the naive updates of one element of each leaf."""
    return np.stack([[u[0, 0] for u in member.naive(gs)] for gs in leaves])


# A form sees the bounded terms of a rule, which differ between kinds of state alone.
@slowly_with(
    "form",
    [
        *((m, "float32") for m in MEMBERS),
        *((m, form) for m in of_each_kind(MEMBERS) for form in FORMS if form != "float32"),
    ],
)
def test_updates_are_those_of_the_algorithm(member, form):
    means = form in ("Factored", "BlockMeans")
    if means and not member.has("nu_dtype"):
        pytest.skip("no second moment to take means of")
    tx = member.direction(**member.stored(*FORMS[form]))
    if form == "int4" and member.scale_by in ("scale_by_amsgrad", "scale_by_adamax"):
        with pytest.raises(ValueError, match="write jnp.int8"):
            tx.init(jnp.ones((SIDE, SIDE)))
        return
    # 16-bit storage adds an error of up to half a ulp in each of 24 steps.
    rtol = 0.03 if form == "bfloat16" else 0.01
    # The gradient is widened before a storage form is involved: bfloat16 with one form is enough.
    dtypes = {jnp.float32: 0} | ({jnp.bfloat16: 2**-8} if form == "float32" else {})
    for dtype, its_own in dtypes.items():
        gs = jnp.asarray(sequences().astype(np.float32)).astype(dtype)
        leaves = jnp.broadcast_to(gs[:, :, None, None], (*gs.shape, SIDE, SIDE))
        us = jax.jit(jax.vmap(lambda g: updates(tx, g)[0]))(leaves)[:, :, 0, 0]
        us = np.asarray(us, np.float64)
        assert np.isfinite(us).all()
        exact = first_elements(member, np.asarray(leaves, np.float64))
        # RAdam's first updates are the average of gradients, and have its range.
        representable = np.abs(exact) < 2e18
        if means and member.scale_by in ("scale_by_belief", "scale_by_adan"):
            # Means are at most 5e36; squared differences of clipped gradients can be larger.
            largest = np.maximum.accumulate(np.abs(np.asarray(gs, np.float64)), axis=1)
            representable &= largest < 8e17
            assert representable.any()
        else:
            assert representable.mean() > (0.8 if member.name == "radam" else 0.999)
        size = np.abs(exact)
        if form == "bfloat16":  # Relative to the largest average so far.
            size = np.maximum.accumulate(np.where(representable, size, 0), axis=1)
        error = np.abs(us - exact)[representable]
        assert np.all(error <= (rtol + its_own) * size[representable] + 1e-12)


@every_member_slowly
def test_moments_forget_a_large_gradient_at_their_rate(member):
    """They forget it like a gradient of 1e15, whose square float32 can represent."""
    tx = member.direction()
    largest = 2.31e18 if all(rule.squares for rule in rules_in(tx)) else 5.4e36
    spikes = np.ones((2, 40), np.float32)
    spikes[:, SPIKE] = [1e15, 1e38]
    _, state = jax.jit(jax.vmap(lambda g: updates(tx, g)))(jnp.asarray(spikes)[..., None])
    for moment in member.moments(state).values():
        small, large = np.asarray(moment, np.float64)[:, 0]
        assert np.isfinite(large)
        power = 2 if np.log10(max(small, 1)) > 16 else 1
        assert abs(large) <= abs(small) * (largest / 1e15) ** power * 1.01 + 1


def test_what_is_not_squared_is_exact_up_to_the_largest_numbers():
    gs = np.asarray([1e30, 3e30, -1e29, 1e30, 3e36, -3e36], np.float32)
    for member in (m for m in MEMBERS if m.name in ("adamax", "lion")):
        us, _ = updates(member.direction(), jnp.asarray(gs)[:, None])
        exact = list(member.naive(gs.astype(np.float64)))
        np.testing.assert_allclose(us[:, 0], exact, rtol=1e-5)


@pytest.mark.parametrize("name", ["adam", "adabelief", "adan"])
def test_complex_gradients(name):
    [member] = [m for m in MEMBERS if m.name == name]
    gs = jnp.asarray([1 + 1j, 3e38 - 3e38j, -3e38 + 3e38j, 1], jnp.complex64)[:, None]
    tx = member.direction()
    state = tx.init(gs[0])
    for g in gs:
        us, state = tx.update(g, state, gs[0])
        assert np.isfinite(np.asarray(us)).all()


def test_float16_averages_saturate():
    tx = adam_jax.scale_by_adam(b1=0.5, mu_dtype=jnp.float16)
    us, state = updates(tx, jnp.asarray([1.0, 1e6, 1.0, 1.0] + [1.0] * 40)[:, None])
    assert np.isfinite(np.asarray(us)).all() and abs(float(state.mu[0]) - 1) < 0.01


@pytest.mark.parametrize("size", [1e20, 3e38])
def test_clipping_keeps_the_direction_of_a_large_gradient(size):
    g = {"a": jnp.asarray([0.6 * size, 1.0]), "b": jnp.asarray([-0.8 * size])}
    tx = adam_jax.clip_by_global_norm(2.0)
    clipped, _ = jax.jit(tx.update)(g, tx.init(g))
    np.testing.assert_allclose(clipped["a"], [1.2, 0], rtol=1e-6, atol=1e-15)
    np.testing.assert_allclose(clipped["b"], [-1.6], rtol=1e-6)
    loose = adam_jax.clip_by_global_norm(1.7 * size if size < 1e30 else LARGEST)
    kept, _ = jax.jit(loose.update)(g, loose.init(g))
    np.testing.assert_allclose(kept["b"], g["b"], rtol=1e-6)


def test_a_norm_past_the_largest_number_is_not_infinite():
    g = jnp.full((4096,), 3.0)
    tx = adam_jax.skip_nonfinite(adam_jax.clip_by_global_norm(1.0))
    state = tx.init(g)
    for scale in (1e38, 1.0, 1e38, 1.0, 1.0, 1.0, 1.0):
        clipped, state = jax.jit(tx.update)(g * scale, state)
        assert adam_jax.skipped(state).total == 0
        np.testing.assert_allclose(np.linalg.norm(np.asarray(clipped, np.float64)), 1, rtol=1e-5)
    _, state = jax.jit(tx.update)(g.at[7].set(jnp.inf), state)
    assert adam_jax.skipped(state).total == 1


def test_an_average_of_micro_batches_of_opposite_sign():
    tx = adam_jax.accumulate(optax.sgd(1.0), every=2)
    state = tx.init(jnp.zeros(1))
    for g, expected in ((3e38, 0.0), (-3e38, 0.0), (3e38, 0.0), (3e38, -3e38)):
        u, state = jax.jit(tx.update)(jnp.asarray([g]), state, jnp.zeros(1))
        np.testing.assert_allclose(u, [expected], rtol=1e-6)


@pytest.mark.parametrize("form", ["float32", "int8", "Factored", "BlockMeans"])
def test_random_sizes_through_step(form):
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.uniform(-37, 38.5, (STEPS, 64, SIDE)) * rng.choice(
        [-1, 1], (STEPS, 64, SIDE)
    )
    gs = jnp.asarray(np.clip(sizes, -LARGEST, LARGEST), jnp.float32)
    tx = adam_jax.skip_nonfinite(
        adam_jax.chain(
            adam_jax.clip_by_global_norm(1e30),
            adam_jax.adamw(1e-3, mu_dtype=FORMS[form][0], nu_dtype=FORMS[form][1]),
        )
    )
    params = jnp.ones((64, SIDE))

    def step(carry, g):
        return adam_jax.step(tx, g, carry[1], carry[0]), None

    (params, state), _ = jax.jit(lambda c, gs: jax.lax.scan(step, c, gs))(
        (params, tx.init(params)), gs
    )
    assert np.isfinite(np.asarray(params)).all() and adam_jax.skipped(state).total == 0
    assert np.abs(np.asarray(params) - 1).max() < 40 * STEPS * 1e-3
