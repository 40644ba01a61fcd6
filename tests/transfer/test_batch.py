"""The hyperparameters that `scale_batch` returns, and runs with them."""

import copy
import functools
import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import adamw
from adam_jax.transfer import mup, scale_batch
from tests.transfer.blocks import PARAMS, assert_close, stepped

NUMBERS = {"learning_rate": 3e-4, "b2": 0.98, "weight_decay": 0.1, "eps_root": 1e-12}
SCHEDULES = {
    "float": lambda count: 0.1 / (1 + count),
    "warmup cosine": optax.warmup_cosine_decay_schedule(0.0, 0.1, 64, 640, 0.01),
    "piecewise": optax.piecewise_constant_schedule(0.1, {160: 0.1, 320: 0.5}),
    "inverse root": adam_jax.schedules.inverse_sqrt_schedule(0.1),
    "trapezoid": optax.join_schedules(
        [optax.linear_schedule(0, 0.1, 64), lambda _: 0.1, optax.linear_schedule(0.1, 0, 256)],
        [64, 384],
    ),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def numbers(x):
    return {name: value for name, value in x.items() if type(value) is float}


def test_each_number_has_its_power_of_the_factor():
    passed = {"mask": np.array(True), "mu_dtype": jnp.bfloat16, "nesterov": True}
    scaled = scale_batch(adamw, 4).hyperparameters(**NUMBERS, eps_hat=1e-7, **passed)
    expected = {
        "learning_rate": 6e-4,
        "b1": 0.6,  # A default, like eps.
        "b2": 0.92,
        "eps": 5e-9,
        "eps_root": 2.5e-13,
        "eps_hat": 5e-8,
        "weight_decay": 0.2,
    }
    assert numbers(scaled) == pytest.approx(expected, rel=1e-12)
    assert {name: scaled[name] for name in passed} == passed
    assert scaled.keys() == inspect.signature(adamw).parameters.keys()


def test_what_belongs_to_the_loss_or_is_a_ratio_stays():
    assert scale_batch(adam_jax.adam, 4).hyperparameters(1e-3, l2=0.1)["l2"] == 0.1
    assert scale_batch(adam_jax.radam, 4).hyperparameters(1e-3)["threshold"] == 5.0
    mixed = scale_batch(adam_jax.ademamix, 4).hyperparameters(1e-3, b3=0.9999)
    assert (mixed["alpha"], mixed["b3"]) == pytest.approx((5.0, 0.9996), rel=1e-12)


def test_decay_that_the_learning_rate_does_not_multiply_is_proportional_to_the_batch():
    scaled = scale_batch(adamw, 4).hyperparameters(1e-3, weight_decay=1e-4, scale_decay=False)
    assert scaled["weight_decay"] == pytest.approx(4e-4, rel=1e-12)


def test_an_average_of_parameters_and_optax_have_the_rule_too():
    averaged = scale_batch(adam_jax.ema_params, 8).hyperparameters(0.999)
    assert numbers(averaged) == pytest.approx({"decay": 0.992}, rel=1e-12)
    ours = scale_batch(adamw, 8).hyperparameters(1e-3)
    optaxs = scale_batch(optax.adamw, 8).hyperparameters(1e-3)
    assert numbers(optaxs) == {name: ours[name] for name in numbers(optaxs)}


@pytest.mark.parametrize("factor", [1 / 64, 1 / 8, 3.0])
def test_there_and_back_is_the_identity_and_so_is_one(factor):
    scaled = scale_batch(adamw, factor).hyperparameters(**NUMBERS, b1=0.8)
    back = scale_batch(adamw, 1 / factor).hyperparameters(**scaled)
    given = scale_batch(adamw, 1).hyperparameters(**NUMBERS, b1=0.8)
    assert given == dict(NUMBERS, b1=0.8) | {k: x for k, x in given.items() if k not in NUMBERS}
    assert numbers(back) == pytest.approx(numbers(given), rel=1e-12)


def test_the_complement_of_a_decay_rate_near_one_keeps_its_digits():
    scaled = scale_batch(adamw, 1 / 64).hyperparameters(1e-3, b2=0.9999)
    assert 1 - scaled["b2"] == pytest.approx((1 - 0.9999) / 64, rel=1e-10)


def test_arrays_stay_arrays():
    # equinox.filter_jit traces arrays but not numbers.
    given = {"learning_rate": jnp.float32(0.1), "b1": jnp.float32(0.9), "b2": np.float32(0.98)}
    scaled = scale_batch(adamw, 4).hyperparameters(**given)
    assert [isinstance(scaled[name], jax.Array) for name in given] == [True, True, False]
    assert [float(scaled[name]) for name in given] == pytest.approx([0.2, 0.6, 0.92], rel=1e-6)


def test_traced_numbers():
    def move(rate, b2):
        tx = scale_batch(adamw, 4)(rate, b2=b2)
        return tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))[0]

    moved = jax.vmap(move)(jnp.array([0.1, 0.2]), jnp.array([0.9, 0.99]))
    np.testing.assert_allclose(moved[:, 0], [-0.20004, -0.40008], rtol=1e-5)


@every_schedule
def test_schedules_run_faster_and_higher(schedule):
    scaled = scale_batch(adamw, 4).hyperparameters(schedule)["learning_rate"]
    counts = jnp.arange(0, 200, 7)
    expected = 2 * np.array([float(schedule(jnp.float32(4 * count))) for count in counts])
    for given in (counts, counts.astype(jnp.float32)):
        np.testing.assert_allclose(jax.vmap(scaled)(given), expected, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(scaled(7), expected[1], rtol=1e-6)
    np.testing.assert_allclose(jax.jit(scaled)(jnp.int32(7)), expected[1], rtol=1e-6)


def test_schedules_of_decay_rates_of_decay_and_of_ratios():
    schedule = optax.linear_schedule(0.9, 0.99, 80)
    scaled = scale_batch(adam_jax.ademamix, 4).hyperparameters(
        1e-3, b3=schedule, alpha=schedule, weight_decay=schedule
    )
    values = [float(scaled[name](10)) for name in ("b3", "alpha", "weight_decay")]
    assert values == pytest.approx([1 - 4 * (1 - 0.945), 0.945, 2 * 0.945], rel=1e-6)
    early = scale_batch(adam_jax.ademamix, 9).hyperparameters(1e-3, b3=lambda count: 0.5)["b3"]
    assert float(early(0)) == 0.0


def test_scaled_factories_and_schedules_compare_and_pickle():
    schedule = adam_jax.schedules.inverse_sqrt_schedule(0.1)
    first, second = (scale_batch(adamw, 4) for _ in range(2))
    assert first == second and hash(first) == hash(second) and first.__name__ == "adamw"
    assert first(schedule) == second(schedule) != scale_batch(adamw, 2)(schedule)
    scaled = first.hyperparameters(schedule)["learning_rate"]
    for copied in (pickle.loads(pickle.dumps(scaled)), copy.deepcopy(scaled)):
        assert copied == scaled
    assert pickle.loads(pickle.dumps(first)) == first


SCALED = scale_batch(adamw, 4)
BY_HAND = functools.partial(adamw, 0.02, b1=0.6, b2=0.92, eps=5e-9, weight_decay=0.2)
GIVEN = {"learning_rate": 0.01, "b2": 0.98, "weight_decay": 0.1}
BIAS = {".*bias": {"b2": 0.98}}


@pytest.mark.parametrize(
    "tx",
    {
        "itself": SCALED(**GIVEN),
        "partial": scale_batch(functools.partial(adamw, b2=0.98), 4)(0.01, weight_decay=0.1),
        "groups": adam_jax.groups(SCALED, BIAS, **GIVEN),
        "numbers of the new batch": scale_batch(adam_jax.with_hyperparams(adamw), 4)(**GIVEN),
        "numbers of the old batch": adam_jax.with_hyperparams(SCALED)(**GIVEN),
        "mup around": mup(SCALED, PARAMS, PARAMS)(**GIVEN),
        "mup inside": scale_batch(mup(adamw, PARAMS, PARAMS), 4)(**GIVEN),
        "schedules": SCALED(lambda _: 0.01, b2=0.98, weight_decay=lambda _: 0.1),
    }.items(),
    ids=lambda item: item[0],
)
def test_every_way_to_write_it_steps_the_same(tx):
    assert_close(stepped(tx[1], PARAMS)[0], stepped(BY_HAND(), PARAMS)[0], rtol=2e-6)


def test_a_group_of_its_own_is_scaled_too():
    tx = adam_jax.groups(SCALED, {".*bias": {"b2": 0.95}}, **GIVEN)
    bias, expected = (stepped(x, PARAMS)[0]["out"]["bias"] for x in (tx, BY_HAND(b2=1 - 4 * 0.05)))
    np.testing.assert_allclose(bias, expected, rtol=2e-6)


WITHOUT_THE_RULE = [
    *(adam_jax.lion, adam_jax.scale_by_lion, adam_jax.lamb, adam_jax.adan, adam_jax.adabelief),
    *(adam_jax.schedule_free_adamw, adam_jax.mars_adamw, adam_jax.cautious(adam_jax.lion)),
    *(functools.partial(adam_jax.lion, b1=0.9), optax.sgd, optax.sign_sgd, optax.optimistic_adam),
    *(optax.adagrad, optax.lion),
]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scale_batch(adamw, 16)(1e-3), "at most 10, where b1 = 0.9 becomes 0, got 16"),
        (lambda: adam_jax.with_hyperparams(scale_batch(adamw, 16))(1e-3), "at most 10, where b1"),
        (
            lambda: scale_batch(adam_jax.nadam, 2)(1e-3, momentum_decay=0.004),
            "momentum_decay has no rule for other batch sizes, got 0.004",
        ),
        (lambda: scale_batch(adamw, 2)(1e-3, b1=1.5), r"b1 must be in \[0, 1\]"),
        (lambda: scale_batch(adamw, 0), "factor must be in .*, got 0.0"),
        (lambda: scale_batch(adamw(1e-3), 2), "factory must be a function"),
        (
            lambda: scale_batch(functools.partial(adamw, 1e-3), 2),
            "factory must name all its arguments, got adamw",
        ),
        (
            lambda: scale_batch(functools.partial(adam_jax.groups, adamw, {}), 2),
            "factory must name all its arguments, got groups",
        ),
        *((functools.partial(scale_batch, f, 2), "rule does not hold") for f in WITHOUT_THE_RULE),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_rmsprop_of_optax_is_scaled_and_a_number_that_nobody_passes_is_no_error():
    scaled = scale_batch(optax.rmsprop, 4).hyperparameters
    found = scaled(1e-2)
    expected = {"learning_rate": 0.02, "decay": 0.6, "eps": 2.5e-9, "initial_scale": 0.0}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert scaled(1e-2, eps_in_sqrt=False)["eps"] == pytest.approx(5e-9)
    with pytest.raises(ValueError, match="initial_scale has no rule"):
        scaled(1e-2, initial_scale=0.1)


def test_functions_of_the_user_are_theirs_to_judge():
    def sgd(learning_rate):
        return optax.sgd(learning_rate)

    assert scale_batch(sgd, 4).hyperparameters(1e-2) == {"learning_rate": 0.02}


def test_the_largest_factor_leaves_no_average():
    assert scale_batch(adamw, 10).hyperparameters(1e-3)["b1"] == pytest.approx(0, abs=1e-9)
    scaled = scale_batch(adam_jax.adam, 100).hyperparameters(1e-3, b1=0.99, b2=0.9999)
    assert scaled["b1"] == 0.0


# The law behind it: the loss after the same number of examples is the same.

# The noise of an example is 30, and the gradient at most about 1, so noise dominates the gradient
# even in batches of 8. ε is a third of √nu, and weights decay as fast as the loss moves them.
NOISE, EXAMPLES = 30.0, 4096
SETTINGS = {"learning_rate": 0.03, "eps": 10.0, "weight_decay": 0.03}


def scaled_numbers(factor, **settings):
    return numbers(scale_batch(adamw, factor).hyperparameters(**settings))


@functools.cache
def losses(batch_size, noise=NOISE, **settings):
    """Early, middle and final losses, each the mean over 64 parameters and 100 seeds."""
    tx, steps = adamw(**settings), EXAMPLES // batch_size

    def body(carry, key):
        params, state = carry
        g = params + jax.random.normal(key, params.shape) * (noise / np.sqrt(batch_size))
        params, state = adam_jax.step(tx, g, state, params)
        return (params, state), jnp.mean(params**2)

    def run(key):
        params = jnp.ones(64)
        return jax.lax.scan(body, (params, tx.init(params)), jax.random.split(key, steps))[1]

    keys = jax.random.split(jax.random.key(batch_size), 100)
    by_step = np.asarray(jnp.mean(jax.jit(jax.vmap(run))(keys), axis=0))
    return by_step[[steps // 8 - 1, steps // 2 - 1, steps - 1]]


@pytest.mark.slow
def test_after_the_same_examples_the_loss_is_the_same():
    scaled = scaled_numbers(8, **SETTINGS)
    np.testing.assert_allclose(losses(8, **scaled), losses(1, **SETTINGS), rtol=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("left_out", [("learning_rate",), ("eps",), ("weight_decay",), SETTINGS])
def test_and_without_the_rule_for_any_of_the_numbers_it_is_not(left_out):
    scaled = scaled_numbers(8, **SETTINGS) | {name: SETTINGS[name] for name in left_out}
    assert np.max(np.abs(losses(8, **scaled) / losses(1, **SETTINGS) - 1)) > 0.2


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "low", "high"), [(10.0, 0.96, 1.06), (2.0, 1.3, 3.0)])
def test_the_rule_ends_where_noise_is_no_longer_most_of_the_gradient(noise, low, high):
    settings = {"learning_rate": 1e-3 * noise}
    scaled = scaled_numbers(8, **settings)
    ratios = losses(8, noise, **scaled) / losses(1, noise, **settings)
    assert np.all((low < ratios) & (ratios < high))
