"""Clipping by the norms of the steps before, against NumPy; what it costs and where it counts."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import adamw, clip_by_history, clipped, with_layers
from tests.catalogue.recipes import assert_close, stepper
from tests.catalogue.training import temporary

PARAMS = {"w": jnp.ones((3, 4, 5)), "b": jnp.ones(7)}
CLIPS = dict(decay=0.75)
STEPS = 30


def member():
    return adamw(1e-2, b1=0.5, b2=0.9)


def drawn(seed=0, spikes=True, size=1.0):
    """Gradients [STEPS, ...] of one level, with spikes of all and of one leaf, and NaN."""
    draw = np.random.default_rng(seed)
    g = {k: draw.standard_normal((STEPS, *p.shape)) * size for k, p in PARAMS.items()}
    if spikes:
        g["w"][12], g["b"][12], g["w"][20, 1] = g["w"][12] * 1e3, g["b"][12] * 1e2, 1e6 * size
        g["b"][16, 0] = np.nan
    return {k: x.astype(np.float32) for k, x in g.items()}


def at(grads, t):
    return jax.tree.map(lambda g: jnp.asarray(g[t]), grads)


class Judge:
    """The history of one norm, in float64: ZClip's averages of what was clipped to the limit."""

    def __init__(self, limit, sigmas=False, decay=0.75):
        self.limit, self.sigmas, self.decay = limit, sigmas, decay
        self.mean = self.variance = self.seen = self.clipped = 0

    def __call__(self, x):
        if not 0 < x < np.inf:
            return 1.0
        largest = self.limit * self.mean
        if self.sigmas:
            largest = self.mean + self.limit * max(self.variance**0.5, 1e-6 * self.mean)
        spike = self.seen * (1 - self.decay) >= 1 and x > largest
        kept, share = largest if spike else x, max(1 - self.decay, 1 / (self.seen + 1))
        d = kept - self.mean
        self.mean += share * d
        self.variance = (1 - share) * (self.variance + share * d * d)
        self.seen, self.clipped = self.seen + 1, self.clipped + spike
        return kept / x


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(tree)))


def parts(grads, per):
    """The parts of a tree that have a norm each, by path."""
    if per == "layer":
        return {"b": grads["b"]} | {f"w{k}": grads["w"][k] for k in range(3)}
    return dict(grads) if per == "leaf" else {"all": grads}


@pytest.mark.parametrize("sigmas", [False, True])
@pytest.mark.parametrize("per", ["tree", "leaf", "layer"])
@pytest.mark.parametrize("size", [1e-15, 1e10])
def test_gradients_are_clipped_as_a_plain_loop_clips_them(per, sigmas, size):
    """The inner step is the identity, which shows them."""
    limit = 4.0 if sigmas else 2.0
    tx = clip_by_history(adam_jax.chain(), limit, sigmas=sigmas, per_leaf=per != "tree", **CLIPS)
    tx = with_layers(tx, "w") if per == "layer" else tx
    grads, state, step = drawn(size=size), tx.init(PARAMS), jax.jit(tx.update)
    judges = {name: Judge(limit, sigmas) for name in parts(at(grads, 0), per)}
    for t in range(STEPS):
        g = at(grads, t)
        updates, state = step(g, state, PARAMS)
        factors = {name: judges[name](norm(x) / size) for name, x in parts(g, per).items()}
        expected = jax.tree.map(lambda x: np.asarray(x, np.float64), g)
        for name, f in factors.items():
            if name.startswith("w") and per == "layer":
                expected["w"][int(name[1])] *= f
            else:
                expected = {k: x * (f if name in (k, "all") else 1) for k, x in expected.items()}
        scale = {k: np.max(np.abs(x), initial=0, where=~np.isnan(x)) for k, x in expected.items()}
        for k, x in expected.items():
            np.testing.assert_allclose(updates[k], x, rtol=2e-5, atol=1e-6 * scale[k])
    assert (sum(judge.clipped for judge in judges.values()) >= 2) and judges
    counts = clipped(state)
    assert counts["total"] == len({12, 20}) if per == "tree" else counts["total"] >= 2
    if per == "layer":
        assert counts["gradients"]["w"] == [judges[f"w{k}"].clipped for k in range(3)]


@pytest.mark.parametrize("per_leaf", [False, True])
@pytest.mark.parametrize("through", ["step", "update"])
def test_updates_are_clipped_after_everything_else(through, per_leaf):
    """Their history is that of the inner transformation's own updates, whose state is its own."""
    tx = clip_by_history(member(), None, updates=1.5, per_leaf=per_leaf, **CLIPS)
    grads = drawn(spikes=False)
    grads["w"][15], grads["b"][15] = 30.0, 30.0
    judges = {name: Judge(1.5) for name in parts(PARAMS, "leaf" if per_leaf else "tree")}
    params, state, inner = PARAMS, tx.init(PARAMS), member().init(PARAMS)
    step = jax.jit(stepper(tx, through))
    for t in range(STEPS):
        g = at(grads, t)
        u, inner = member().update(g, inner, params)
        factors = {
            name: judges[name](norm(x)) for name, x in parts(u, "leaf" if per_leaf else "").items()
        }
        expected = {k: params[k] + x * factors.get(k, factors.get("all")) for k, x in u.items()}
        params, state = step(params, state, g)
        assert_close(params, expected)
    assert_close(state.inner_state, inner)
    assert clipped(state)["total"] >= sum(judge.clipped for judge in judges.values()) / 2 > 0


@pytest.mark.bits
@pytest.mark.parametrize("updates", [None, 1.5])
@pytest.mark.parametrize("per_leaf", [False, True])
def test_nothing_of_the_size_of_a_leaf_is_temporary(updates, per_leaf):
    """But the update, if it is measured: the sums that do not store it take XLA:CPU twice as long.
    Programs for accelerators store none (benchmarks/gpu.py)."""
    tx = clip_by_history(adamw(1e-3, weight_decay=0.1), updates=updates, per_leaf=per_leaf)
    params = {k: jnp.ones((64, 4096)) for k in "abc"}
    assert temporary(tx, params) < (4.1 if updates else 0.15)
    assert temporary(adam_jax.chain(adamw(1e-3), adam_jax.clip_by_global_norm(1.0)), params) > 4


@pytest.mark.parametrize(
    "inner",
    [
        lambda: adam_jax.chain(adamw(1e-2), adam_jax.ema_params(0.9)),
        lambda: adam_jax.master_residual(adamw(1e-2)),
        lambda: adam_jax.groups({"w": adamw(1e-2), "b": adam_jax.schedule_free_adamw(1e-2)}),
        lambda: optax.sgd(1e-2),
        lambda: adamw(1e-2, mu_dtype=jnp.int8, nu_dtype=jnp.int8),
    ],
)
def test_a_limit_on_updates_reaches_the_results_and_all_that_reads_them(inner):
    """With a limit of almost nothing, the parameters, their rest and their average stay."""
    dtype = jnp.bfloat16 if "Weights" in repr(inner().init(PARAMS)) else jnp.float32
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    tx = clip_by_history(inner(), None, updates=1e-20, decay=0.0)
    for through in ("step", "update")[: 1 + (dtype == jnp.float32)]:
        step, state = jax.jit(stepper(tx, through)), tx.init(params)
        grads = jax.tree.map(jnp.ones_like, params)
        first, state = step(params, state, grads)
        then, after = step(first, state, grads)
        last, after = step(then, after, grads)
        assert_close(last, first)
        assert np.any(np.asarray(first["w"] != params["w"])) or dtype == jnp.bfloat16
        for x in ("z", "rest"):  # The points of schedule-free, and the lower bits.
            old, new = (
                optax.tree.get_all_with_path(state, x),
                optax.tree.get_all_with_path(after, x),
            )
            jax.tree.map(np.testing.assert_array_equal, [v for _, v in new], [v for _, v in old])


@pytest.mark.usefixtures("standard_promotion")
def test_an_update_is_clipped_once_also_inside_a_chain():
    """Weights round their own results, although a stage follows."""
    ends, params = [], {"w": jnp.ones(64, jnp.bfloat16)}
    for more in ((), (optax.scale(1.0),)):
        tx = clip_by_history(
            adam_jax.chain(adam_jax.master_residual(adamw(lambda t: 0.01 * 10.0**t)), *more),
            None,
            updates=1.0,
            decay=0.0,
        )
        state, p = tx.init(params), params
        for _ in range(3):
            p, state = adam_jax.step(tx, {"w": jnp.ones(64, jnp.bfloat16)}, state, p)
        ends.append(np.asarray(p["w"], np.float32))
    np.testing.assert_allclose(*ends, atol=0.01)
    np.testing.assert_allclose(ends[0], 0.965, atol=0.005)


def test_counters_alarms_telemetry_and_steps_that_are_not_taken():
    tx = adam_jax.telemetry(clip_by_history(adamw(1e-2), warn=2, **CLIPS), every=100)
    tx = adam_jax.skip_nonfinite(tx)
    step, state, params = jax.jit(stepper(tx, "step")), tx.init(PARAMS), PARAMS
    sizes = [1.0] * 6 + [np.nan, 1e3, np.nan, 1e3, 1e3, 1.0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for size in sizes:
            before = state.inner_state
            params, state = step(params, state, jax.tree.map(lambda p: p * size, PARAMS))  # noqa: B023
            if np.isnan(size):
                jax.tree.map(np.testing.assert_array_equal, state.inner_state, before)
        jax.effects_barrier()
    assert ["2 optimizer steps in a row were clipped" in str(w.message) for w in caught] == [True]
    counts = {"consecutive": 0, "total": 3, "gradients": {"all": 3}}
    assert clipped(state) == adam_jax.measured(state)["clipped"] == counts


@pytest.mark.parametrize("per", ["tree", "layer"])
def test_a_spike_whose_square_overflows_is_clipped(per):
    """While the history begins, such norms do not enter it."""
    tx = clip_by_history(
        adam_jax.chain(), 2.0, sigmas=per == "tree", per_leaf=per != "tree", **CLIPS
    )
    tx = with_layers(tx, "w") if per == "layer" else tx
    state, step, updates = tx.init(PARAMS), jax.jit(tx.update), PARAMS
    for size in (1e30, *[1.0] * 6, 1e30):
        updates, state = step(jax.tree.map(lambda p: p * size, PARAMS), state)  # noqa: B023
    limit = 1.0 if per == "tree" else 2.0
    jax.tree.map(lambda u: np.testing.assert_allclose(u, limit, rtol=1e-5), updates)
    assert clipped(state)["total"] == 1


def test_a_new_level_is_accepted():
    for limit, sigmas in ((2.0, False), (3.0, True)):
        judge = Judge(limit, sigmas, 0.97)
        draw = np.random.default_rng(1)
        factors = [judge((1 if t < 200 else 10) * draw.uniform(0.8, 1.2)) for t in range(600)]
        assert factors[201] < 0.5 and min(factors[500:]) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(gradients=0.0), "gradients must be in"),
        (dict(gradients=None), "gradients or updates must be a number"),
        (dict(updates="2"), "updates must be a number"),
        (dict(decay=1.0), "decay must be in"),
        (dict(warn=0), "warn must be an integer ≥ 1"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        clip_by_history(adamw(1e-3), **arguments)
    with pytest.raises(ValueError, match="must be a HistoryState"):
        clip_by_history(adamw(1e-3)).update(PARAMS, adamw(1e-3).init(PARAMS), PARAMS)
