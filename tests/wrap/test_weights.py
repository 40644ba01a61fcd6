"""bfloat16 weights without a float32 copy: stochastic rounding and residuals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax.formats.rounding import Residual
from tests.catalogue import few
from tests.catalogue.low_precision import WEIGHTS as WRAPS
from tests.catalogue.low_precision import every_form_of_weights, gradients
from tests.catalogue.runs import raised
from tests.catalogue.training import trained

every_way = pytest.mark.parametrize("apply", ["step", "update"])


def params_of(dtype=jnp.bfloat16):
    w = jax.random.normal(jax.random.key(0), (48, 32)) / 8
    # float32 values that bfloat16 can represent, and a leaf that is float32 in both cases.
    w = w.astype(jnp.bfloat16).astype(dtype)
    return {"w": w, "b": jnp.zeros(32, dtype), "norm": jnp.ones(32, jnp.float32)}


def train(tx, params, apply="step", turns=100, gradients=gradients):
    with jax.numpy_dtype_promotion("standard"):
        return trained(tx, params, lambda params, turn: gradients(turn, params), turns, apply)


SCHEDULE = optax.linear_schedule(1e-3, 1e-5, 100)
MASK = {"w": True, "b": False, "norm": False}
INNER = {
    "adamw": adam_jax.adamw(1e-3, weight_decay=0.1),
    "clip, adamw": adam_jax.chain(adam_jax.clip_by_global_norm(1.0), adam_jax.adamw(1e-3)),
    "schedule": adam_jax.adamw(SCHEDULE, weight_decay=0.1, mask=MASK),
    "8-bit lion": adam_jax.lion(1e-4, mu_dtype=jnp.int8),
    "optax.sgd": optax.sgd(1e-3, momentum=0.9),
}


@pytest.mark.bits
@every_way
@few("inner", INNER, ["adamw"])
def test_16_bits_of_residual_are_float32_bit_for_bit(inner, apply):
    """Also with weight decay, clipping, schedules and masks: the inner member sees float32."""
    expected, _ = train(INNER[inner], params_of(jnp.float32), apply)
    params, state = train(adam_jax.master_residual(INNER[inner]), params_of(), apply)
    for name in ("w", "b"):
        assert params[name].dtype == jnp.bfloat16 and state.rest[name].dtype == jnp.int16
        joined = Residual(16).join(params[name], state.rest[name])
        np.testing.assert_array_equal(joined, expected[name])
    np.testing.assert_array_equal(params["norm"], expected["norm"])


@every_way
@every_form_of_weights
def test_small_updates_add_up(wrap, apply):
    """Updates of 1/50 of a bfloat16 ulp, all of one sign: with nearest rounding nothing moves."""

    def small(turn, params):
        return jax.tree.map(lambda p: jnp.full_like(p, 2.0**-7 / 50), params)

    start = {"w": jnp.ones((64, 64), jnp.bfloat16)}
    nearest, ours = (
        np.mean(train(tx, start, apply, gradients=small)[0]["w"].astype(jnp.float32))
        for tx in (optax.identity(), wrap(optax.identity()))
    )
    assert nearest == 1.0
    assert ours == pytest.approx(1 + 2 * 2.0**-7, rel=2.0**-10)


@pytest.mark.bits
@every_form_of_weights
def test_splitting_and_joining_again_changes_nothing(wrap):
    form = wrap(optax.identity()).body.form
    bits = np.arange(2**16, dtype=np.uint16)
    p = jax.lax.bitcast_convert_type(jnp.asarray(bits), jnp.bfloat16)
    finite = np.array(jnp.isfinite(p))
    rng = np.random.default_rng(0)
    rest = None if form.rest_dtype is None else jnp.zeros_like(p, form.rest_dtype)
    if isinstance(form, Residual):
        limit = 2 ** (form.bits - 1)
        rest = jnp.asarray(rng.integers(-limit, limit, 2**16), rest.dtype)
        finite &= np.abs(np.asarray(p, np.float32)) < 3e38
    split, kept = jax.jit(form.split)(form.join(p, rest), jnp.uint32(1))
    as_bits = jax.lax.bitcast_convert_type(split, jnp.uint16)
    # Zeros lose their sign in -0 + 0, and residuals that `split` never produces for them.
    same = finite & np.asarray(p != 0)
    assert same.sum() > 60_000
    np.testing.assert_array_equal(np.asarray(as_bits)[same], bits[same])
    if rest is not None:
        np.testing.assert_array_equal(np.asarray(kept)[same], np.asarray(rest)[same])
    joined = np.asarray(form.join(split, kept))
    special = ~np.isfinite(np.asarray(p, np.float32))
    np.testing.assert_array_equal(joined[special], np.asarray(p, np.float32)[special])


@pytest.mark.bits
def test_the_exact_parts_of_a_float32():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32)
    x = bits.view(np.float32)
    x = x[np.isfinite(x) & (np.abs(x) <= np.float32(jnp.finfo(jnp.bfloat16).max))]
    for form, error in ((Residual(16), 0.0), (Residual(8), 2.0**-15)):
        p, rest = form.split(jnp.asarray(x), jnp.uint32(0))
        joined = np.asarray(form.join(p, rest), np.float64)
        normal = np.abs(x) >= np.finfo(np.float32).tiny
        assert np.max(np.abs(joined / x.astype(np.float64) - 1)[normal]) <= error
        away = np.abs(np.asarray(p, np.float64)[normal] / x.astype(np.float64)[normal] - 1)
        assert away.max() <= 2.0**-8 + error
    np.testing.assert_array_equal(x, Residual(16).join(*Residual(16).split(x, None)))


@every_form_of_weights
def test_micro_steps_leave_the_weights_alone(wrap):
    tx = adam_jax.accumulate(wrap(adam_jax.adamw(1e-3)), every=3)
    params, state = params_of(), tx.init(params_of())
    step = jax.jit(lambda p, s, g: adam_jax.step(tx, g, s, p))
    for turn in range(2):
        after, state = step(params, state, gradients(turn, params))
        jax.tree.map(np.testing.assert_array_equal, after, params)
    after, state = step(params, state, gradients(2, params))
    assert int(state.inner_opt_state.count) == 1 and np.any(after["w"] != params["w"])


@every_form_of_weights
def test_no_gradient_no_change(wrap):
    tx = wrap(adam_jax.adamw(1e-2))
    params = params_of()
    grads = gradients(0, params) | {"b": None}
    after, state = adam_jax.step(tx, grads, tx.init(params), params)
    np.testing.assert_array_equal(after["b"], params["b"])
    updates, _ = tx.update(grads, tx.init(params), params)
    assert updates["b"] is None and updates["w"].dtype == jnp.float32
    assert np.any(after["w"] != params["w"]) and int(state.count) == 1


def test_rounding_is_the_seed_s_and_the_step_s():
    inner = adam_jax.adamw(1e-4)
    runs = [train(adam_jax.stochastic_rounding(inner, seed), params_of())[0] for seed in (0, 0, 1)]
    jax.tree.map(np.testing.assert_array_equal, runs[0], runs[1])
    assert np.mean(np.asarray(runs[0]["w"]) != np.asarray(runs[2]["w"])) > 0.1


PLAIN = optax.identity()
RESIDUAL = adam_jax.master_residual(PLAIN)


def update_of(tx=RESIDUAL, state=None, change=lambda p: p):
    """By default with the state of a 16-bit residual; the weights may change."""
    state = RESIDUAL.init(params_of()) if state is None else state
    params = jax.tree.map(change, params_of())
    tx.update(params, state, params)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: adam_jax.master_residual(adam_jax.adamw(1e-3), bits=12), ["bits", "12", "16"]),
        (lambda: adam_jax.stochastic_rounding(adam_jax.adamw(1e-3), -1), ["seed", "-1"]),
        (lambda: adam_jax.stochastic_rounding(adam_jax.adamw(1e-3), 2**32), ["seed", "2³²"]),
        (lambda: adam_jax.master_residual(1e-3), ["inner", "adamw"]),
        (lambda: adam_jax.ema_params(0.9, dtype=adam_jax.stochastic(jnp.int8)), ["dtype", "form"]),
        (lambda: adam_jax.accumulate(optax.sgd(1.0), 2, dtype=adam_jax.by_path({})), ["dtype"]),
        (lambda: RESIDUAL.update(params_of(), RESIDUAL.init(params_of())), ["params", "None"]),
        (lambda: update_of(state=PLAIN.init(params_of())), ["WeightsState", "init"]),
        (lambda: adam_jax.master_residual(PLAIN, bits=16.0), ["bits", "16.0"]),
        (lambda: update_of(adam_jax.master_residual(PLAIN, 8)), ["'b'", "int16", "int8", "init"]),
        (lambda: update_of(change=lambda p: p.astype(jnp.float32)), ["'b'", "int16", "nothing"]),
        (lambda: update_of(change=lambda p: p[..., :2]), ["'b'", "(2,)", "init"]),
    ],
)
def test_errors(make, words):
    message = raised(make)
    assert all(word in message for word in words), message


@every_form_of_weights
@every_way
def test_weights_of_other_dtypes_pass_through(wrap, apply):
    """float32 and float16 weights have no rest, and move as without the wrapper."""
    params = {"w": jnp.ones((8, 8)), "half": jnp.ones(8, jnp.float16)}
    inner = adam_jax.adamw(1e-3)
    moved, state = train(wrap(inner), params, apply, turns=3)
    expected, _ = train(inner, params, apply, turns=3)
    assert not jax.tree.leaves(state.rest)
    jax.tree.map(np.testing.assert_array_equal, moved, expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_weights_set_to_zero_from_outside_are_zero(bits):
    """Pruned or clamped weights: their residuals in the state are ignored."""
    form = Residual(bits)
    limit = 2 ** (bits - 1)
    rest = jnp.arange(-limit, limit).astype(form.rest_dtype)
    for zero in (0.0, -0.0):
        joined = form.join(jnp.full(rest.shape, zero, jnp.bfloat16), rest)
        assert np.all(np.isfinite(joined)) and np.abs(joined).max() < 1e-38
    for infinite in (np.inf, -np.inf):
        joined = form.join(jnp.full(rest.shape, infinite, jnp.bfloat16), rest)
        np.testing.assert_array_equal(joined, np.full(rest.shape, infinite))
    kept = optax.keep_params_nonnegative()
    tx = optax.chain(adam_jax.master_residual(optax.sgd(0.1), bits), kept)
    with jax.numpy_dtype_promotion("standard"):
        params, _ = train(tx, params_of(), apply="update", turns=20)
    assert all(np.all(np.isfinite(p)) for p in jax.tree.leaves(params))


@every_way
@every_form_of_weights
def test_leaves_that_have_no_gradient_are_left_to_what_is_inside(wrap, apply):
    params = {"n": jnp.arange(3), "w": jnp.ones((8, 8), jnp.bfloat16)}
    tx = wrap(optax.masked(optax.sgd(0.5), {"n": False, "w": True}))
    after, _ = train(tx, params, apply, turns=1)
    assert after["n"].dtype == params["n"].dtype


@pytest.mark.bits
def test_eight_bits_do_not_stand_still():
    """Steps of 1/200,000 of the weight, where 24-bit numbers are 1/65,536 apart."""
    tx, small = adam_jax.master_residual(PLAIN, bits=8), jnp.full((64, 64), 5e-6)
    params = jnp.ones((64, 64), jnp.bfloat16)
    params, state = train(tx, params, turns=200, gradients=lambda *_: small)
    masters = Residual(8).join(params, state.rest)
    assert float(masters.mean()) == pytest.approx(1.001, abs=2e-5)


@every_form_of_weights
@pytest.mark.parametrize("inner", WRAPS.values(), ids=WRAPS)
def test_a_second_form_of_weights_sees_float32_and_passes(wrap, inner):
    once, _ = train(wrap(INNER["adamw"]), params_of(), turns=3)
    twice, _ = train(wrap(inner(INNER["adamw"])), params_of(), turns=3)
    jax.tree.map(np.testing.assert_array_equal, twice, once)


@pytest.mark.bits
@pytest.mark.parametrize(
    ("tx", "error"),
    [(RESIDUAL, 0.0), (adam_jax.master_residual(PLAIN, 8), 2.0**-16)],
)
def test_float32_weights_are_those_that_were_stepped_and_split_again(tx, error):
    """Those of 16 bits are float32 training's own; one's own weights may be split to start with."""
    params, state = train(adam_jax.skip_nonfinite(tx), params_of())
    weights = jax.jit(adam_jax.float32_weights)(state, params)
    if tx is RESIDUAL:
        expected = train(PLAIN, params_of(jnp.float32))[0]
        jax.tree.map(np.testing.assert_array_equal, weights, expected)
    again, fresh = adam_jax.split_float32_weights(state, weights)
    jax.tree.map(np.testing.assert_array_equal, (again, fresh), (params, state))
    mine = jax.tree.map(lambda w: w * np.float32(1.2345), weights)
    split, fresh = adam_jax.split_float32_weights(tx.init(params), mine)
    assert jax.tree.map(lambda p: p.dtype, split) == jax.tree.map(lambda p: p.dtype, params)
    back = adam_jax.float32_weights(fresh, split)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=error, atol=0)  # noqa: E731
    jax.tree.map(close, back, mine)
    with pytest.raises(ValueError, match="at 'w', the state keeps .* of shape"):
        adam_jax.float32_weights(state, dict(params, w=params["w"][:3]))
