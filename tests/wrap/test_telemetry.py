"""Telemetry's measurements equal NumPy's, and measuring changes no step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import adam_jax
from adam_jax import adamw, measured, telemetry
from tests.catalogue.recipes import assert_close, gradients, parameters, stepper
from tests.catalogue.training import temporary

NAMES = {
    "gradient_rms",
    "update_rms",
    "parameter_rms",
    "update_to_parameter",
    "cosine",
    "lost_to_rounding",
}


def flat(tree):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def naive(grads, updates, params, moved):
    g, u, p, n = (flat(x) for x in (grads, updates, params, moved))
    return {
        "gradient_rms": np.sqrt(np.mean(g**2)),
        "update_rms": np.sqrt(np.mean(u**2)),
        "parameter_rms": np.sqrt(np.mean(p**2)),
        "update_to_parameter": np.linalg.norm(u) / np.linalg.norm(p),
        "cosine": g @ u / np.linalg.norm(g) / np.linalg.norm(u),
        "lost_to_rounding": np.sum((u != 0) & (n == p)) / np.sum(u != 0),
    }


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("through", ["step", "update"])
def test_the_statistics_are_those_of_numpy(through, dtype):
    plain = adamw(1e-2, b2=0.9, eps=1.0, weight_decay=0.1)
    tx = telemetry(plain, every=3)
    params = parameters(dtype)
    stacked = gradients(params, dtype, bad=False)
    state, expected, other = tx.init(params), params, plain.init(params)
    step, plain_update = jax.jit(stepper(tx, through)), jax.jit(plain.update)
    plain_step = jax.jit(stepper(plain, "step"))
    assert measured(state) == {"step": 0, "groups": {}}
    for i in range(7):
        grads = jax.tree.map(lambda g, i=i: g[i], stacked)
        wide = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        updates, _ = plain_update(wide, other, expected)
        before = expected
        expected, other = plain_step(expected, other, grads)
        params, state = step(params, state, grads)
        if through == "step":
            assert_close(params, expected)
            jax.tree.map(np.testing.assert_array_equal, state.inner_state, other)
        params, state = expected, state._replace(inner_state=other)
        record = measured(state)
        assert record["step"] == (i + 1) // 3 * 3
        if i + 1 != 6:
            continue
        assert set(record["groups"]) == {"w", "b", "deep"}
        for key, actual in record["groups"].items():
            trees = (t[key] for t in (grads, updates, before, expected))
            assert actual == pytest.approx(naive(*trees), rel=1e-4), key
            assert set(actual) == NAMES
            assert (actual["lost_to_rounding"] > 0) == (dtype == jnp.bfloat16)


def test_groups_are_named_by_expressions():
    tx = telemetry(adamw(1e-3), 1, {"vectors": "b", "first": "w|b"})
    assert tx == telemetry(adamw(1e-3), 1, {"vectors": "b", "first": "w|b"})
    params = parameters()
    _, state = adam_jax.step(tx, params, tx.init(params), params)
    groups = measured(state)["groups"]
    assert list(groups) == ["first", "other", "vectors"]
    rms = np.sqrt(np.mean(np.square(params["b"])))
    assert groups["vectors"]["parameter_rms"] == pytest.approx(rms)


def test_in_a_recipe_it_measures_optimizer_steps_also_those_that_are_skipped():
    inner = adam_jax.chain(adam_jax.clip_by_global_norm(1.0), adamw(1e-2))
    tx = adam_jax.accumulate(telemetry(adam_jax.skip_nonfinite(inner), 2), 2)
    params = parameters()
    stacked = gradients(params, bad=False)
    step = jax.jit(stepper(tx, "step"))
    state, steps = tx.init(params), []
    for i in range(12):
        grads = jax.tree.map(lambda g, i=i: g[i] * (np.nan if i == 10 else 1), stacked)
        params, state = step(params, state, grads)
        steps.append(measured(state)["step"])
    assert steps == [0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6]
    last = measured(state)["groups"]["w"]
    assert np.isnan(last["gradient_rms"]) and last["update_rms"] == 0
    assert set(last) == NAMES


def test_scan_vmap_and_gradients_that_are_not_there():
    tx = telemetry(adamw(1e-2), 2)
    params = parameters()
    grads = dict(params, b=None)

    def trained(scale):
        def body(carry, _):
            scaled = jax.tree.map(lambda g: g * scale, grads)
            return adam_jax.step(tx, scaled, carry[1], carry[0]), None

        return jax.lax.scan(body, (params, tx.init(params)), None, length=5)[0][1]

    one = measured(jax.jit(trained)(1.0))
    both = measured(jax.jit(jax.vmap(trained))(jnp.array([1.0, 2.0])))
    assert one["step"] == 4 and both["step"] == [4, 4]
    assert both["groups"]["w"]["gradient_rms"][1] == pytest.approx(
        2 * one["groups"]["w"]["gradient_rms"]
    )
    assert one["groups"]["b"]["cosine"] == 0


def test_sums_of_many_equal_terms_do_not_stand_still():
    """Sequential float32 sums of ones stop at 2^24."""
    params = {"x": jnp.full(2**25, 0.25)}
    tx = telemetry(optax.sgd(1.0), 1)
    _, state = jax.jit(stepper(tx, "step"))(params, tx.init(params), params)
    group = measured(state)["groups"]["x"]
    assert group["parameter_rms"] == pytest.approx(0.25, rel=1e-5)
    assert group["cosine"] == pytest.approx(-1, rel=1e-5)


def test_nothing_of_the_size_of_a_leaf_is_temporary():
    inner = adam_jax.chain(adam_jax.clip_by_global_norm(1.0), adamw(1e-3), adam_jax.ema_params(0.9))
    everything = adam_jax.accumulate(telemetry(adam_jax.skip_nonfinite(inner), 100), 4)
    params = {name: jnp.ones(30_000) for name in "abc"}
    for tx in (telemetry(adamw(1e-3), 100), everything):
        assert temporary(tx, params) < 0.1


ADAM, GRADS = telemetry(adam_jax.adam(1e-3)), parameters()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: telemetry(adamw(1e-3), 0), "every must be an integer ≥ 1"),
        (
            lambda: telemetry(adamw(1e-3), patterns={"a": "("}),
            r"patterns\['a'\] must be a regular expression, got '\('",
        ),
        (lambda: telemetry(adamw), "inner must be an Optax transformation"),
        (lambda: measured(adamw(1e-3).init(parameters())), "one telemetry in it, got 0"),
        (lambda: ADAM.update(GRADS, ADAM.init(GRADS)), "params must be given"),
        (lambda: ADAM.update(GRADS, adamw(1e-3).init(GRADS), GRADS), "must be a TelemetryState"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_telemetry_of_leaves_without_a_state_and_without_a_parameter():
    params = {"w": jnp.ones(3), "b": jnp.ones(2), "none": None}
    grads = {"w": jnp.ones(3), "b": jnp.ones(2), "none": None}
    frozen = adam_jax.groups(adamw, {"b": None}, learning_rate=1e-3)
    for inner in (adamw(1e-3), frozen):
        tx = telemetry(inner, 1)
        _, state = jax.jit(stepper(tx, "step"))(params, tx.init(params), grads)
        groups = adam_jax.measured(state)["groups"]
        assert set(groups) == {"w", "b"} and all(set(g) == NAMES for g in groups.values())


def test_telemetry_takes_no_step_to_begin_with():
    """A step that requires an extra argument does not require it in `init`."""
    tx = telemetry(optax.chain(adamw(1e-3), contrib.reduce_on_plateau()), 1)
    with jax.debug_nans(True):
        state = tx.init({"w": jnp.ones(3)})
    assert adam_jax.measured(state) == {"step": 0, "groups": {}}
