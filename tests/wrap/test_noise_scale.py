"""The gradient noise scale, against the formulas of its paper in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax import accumulate, adamw, estimate_noise_scale, noise_scale, skip_nonfinite
from tests.catalogue.recipes import STEPS, looped, parameters
from tests.catalogue.training import temporary

EVERY = 5


def drawn(params):
    """Gradients [STEPS, ...] with a mean, of sizes within a factor of 4: no spikes."""
    draw = np.random.default_rng(1)
    size = draw.uniform(0.5, 2, STEPS)

    def stack(p):
        x = 0.5 + draw.standard_normal((STEPS, *p.shape))
        return jnp.asarray(x * size.reshape(-1, *[1] * p.ndim), jnp.float32)

    return jax.tree.map(stack, params)


def flat(stacked):
    return np.concatenate(
        [np.reshape(g, (STEPS, -1)) for g in jax.tree.leaves(stacked)], 1, dtype=float
    )


class Judge:
    """McCandlish et al. 2018, appendix A: |g|² of small batches, and of the large one they make."""

    def __init__(self, decay):
        self.decay, self.noise, self.square = decay, 0.0, 0.0

    def __call__(self, batch, w):
        """Gradients [k, n] with their sizes [k]; with equal ones |gᵢ|² is that of a batch of w."""
        total, k = w.sum(), len(w)
        big = np.sum((w @ batch / total) ** 2)
        small = w @ np.sum(batch**2, 1) / total
        pairs = (total**2 - np.sum(w**2)) / 2  # Σ wᵢ·wⱼ
        square = (total**2 * big - np.sum((w * norm_of(batch)) ** 2)) / 2  # Σ wᵢ·wⱼ·⟨gᵢ, gⱼ⟩
        self.square = self.decay * self.square + np.array([pairs, square])
        self.noise = self.decay * self.noise + np.array([k, total, total * small])

    def scale(self):
        (pairs, square), (k, total, small) = self.square, self.noise
        return (small - total * square / pairs) / k / (square / pairs)


def norm_of(batch):
    return np.sqrt(np.sum(batch**2, 1))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("every", [1, 2])
def test_micro_batches(weighted, every):
    """In units of the weights; and the inner transformation's steps are its own."""
    params = parameters()
    stacked = drawn(params)
    w = np.random.default_rng(0).uniform(0.5, 2, STEPS) if weighted else np.ones(STEPS)
    w = w.astype(np.float32)
    judge, g = Judge(0.9), flat(stacked)
    tx = estimate_noise_scale(accumulate(adamw(1e-2), EVERY), decay=0.9, every=every)
    moved, state = looped(tx, params, stacked, weight=w)
    for n in range(0, STEPS // EVERY, every):
        part = slice(n * EVERY, (n + 1) * EVERY)
        judge(g[part], w[part].astype(float))
    np.testing.assert_allclose(noise_scale(state), judge.scale(), rtol=2e-4)
    expected, inner = looped(accumulate(adamw(1e-2), EVERY), params, stacked, weight=w)
    jax.tree.map(np.testing.assert_array_equal, (moved, state.inner_state), (expected, inner))
    assert state.count == STEPS // EVERY


def test_with_equal_weights_these_are_the_formulas_of_the_paper():
    batch = np.random.default_rng(0).standard_normal((8, 5)) + 1
    judge, small, big = Judge(0.0), np.mean(norm_of(batch) ** 2), norm_of(batch.mean(0)[None]) ** 2
    judge(batch, np.ones(8))
    noise, square = (small - big) / (1 - 1 / 8), (8 * big - small) / (8 - 1)
    np.testing.assert_allclose(judge.scale(), noise / square)


@pytest.mark.parametrize("spikes", [False, True])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_a_quadratic_with_known_noise(scale, spikes):
    """Within 5 % after 200 steps of 4 micro-batches of two examples, also after wrong batches."""
    n, theta = 1000, jnp.ones(1000)
    h = jnp.linspace(0.5, 2, n)
    sigma = jnp.sqrt(scale / n) * jnp.linalg.norm(h)
    tx = estimate_noise_scale(accumulate(adamw(1e-6, weight_decay=0.0), 4), decay=0.99, every=1)

    def micro_step(carry, row):
        key, factor = row
        noise = jnp.mean(sigma * jax.random.normal(key, (2, n)), 0)
        grads = jax.grad(lambda x: 0.5 * jnp.sum(h * x**2) + jnp.sum(noise * x))(carry[0])
        grads = jnp.where(factor > 1, factor * noise, grads)
        return tx.step(grads, carry[1], carry[0], weight=2.0), None

    keys = jax.random.split(jax.random.key(0), 800)
    factors = jnp.ones(800).at[jnp.array([301, 602, 790])].set(1e3 if spikes else 1.0)
    (_, state), _ = jax.lax.scan(micro_step, (theta, tx.init(theta)), (keys, factors))
    assert noise_scale(state) == pytest.approx(scale, rel=0.05)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("inner", [adamw, optax.adamw])
def test_devices_are_micro_batches(inner):
    """Every device passes its own gradient; the inner transformation steps with their mean."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    params, judge = parameters(), Judge(0.9)
    stacked = jax.tree.map(lambda g: g[:40].reshape(5, 8, *g.shape[1:]), drawn(params))
    tx = estimate_noise_scale(inner(1e-2), "data", decay=0.9, every=1)

    def step(params, state, grads):
        return adam_jax.step(tx, jax.tree.map(lambda g: g[0], grads), state, params)

    mapped = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), P(), P("data")), out_specs=P()))
    state, moved, means = tx.init(params), params, jax.tree.map(lambda g: g.mean(1), stacked)
    expected, its = params, inner(1e-2).init(params)
    for t in range(5):
        moved, state = mapped(moved, state, jax.tree.map(lambda g, t=t: g[t], stacked))
        mean = jax.tree.map(lambda g, t=t: g[t], means)
        expected, its = adam_jax.step(inner(1e-2), mean, its, expected)
        columns = [np.reshape(g[t], (8, -1)) for g in jax.tree.leaves(stacked)]
        judge(np.concatenate(columns, 1, dtype=float), np.ones(8))
    np.testing.assert_allclose(noise_scale(state), judge.scale(), rtol=2e-4)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), moved, expected
    )


@pytest.mark.parametrize("outside", [False, True])
def test_bad_gradients_do_not_enter(outside):
    """Nor those of steps that are not taken, nor squares that overflow."""
    params = parameters()
    stacked = drawn(params)
    stacked["w"] = stacked["w"].at[5::15].set(1e30).at[::11].set(jnp.nan)
    tx = adamw(1e-2) if outside else skip_nonfinite(adamw(1e-2))
    tx = estimate_noise_scale(accumulate(tx, EVERY), every=1)
    _, state = looped(skip_nonfinite(tx) if outside else tx, params, stacked)
    assert 0 < noise_scale(state) < np.inf


def test_records_have_it():
    tx = adam_jax.telemetry(adamw(1e-2), every=1)
    tx = estimate_noise_scale(accumulate(tx, EVERY), every=1)
    params = parameters()
    assert np.isnan(adam_jax.measured(tx.init(params))["noise_scale"])
    _, state = looped(tx, params, drawn(params))
    assert adam_jax.measured(state)["noise_scale"] == noise_scale(state) > 0


@pytest.mark.bits
def test_nothing_of_the_size_of_a_leaf_is_temporary():
    params = {k: jnp.ones((64, 4096)) for k in "abc"}
    assert temporary(estimate_noise_scale(accumulate(adamw(1e-3), 4)), params) < 0.1


def test_errors():
    with pytest.raises(ValueError, match=r"inner must be accumulate\(...\) if axis is None"):
        estimate_noise_scale(adamw(1e-3))
    with pytest.raises(ValueError, match="decay must be in"):
        estimate_noise_scale(accumulate(adamw(1e-3), 4), decay=1.0)
    with pytest.raises(ValueError, match="every must be an integer"):
        estimate_noise_scale(accumulate(adamw(1e-3), 4), every=0)
    with pytest.raises(ValueError, match="the state must have one estimate_noise_scale"):
        noise_scale(adamw(1e-3).init(parameters()))
