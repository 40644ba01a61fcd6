"""Decay rates that move: the correction is the product of the rates that were applied."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from tests.catalogue import MEMBERS, oracles, slowly, training
from tests.catalogue.runs import run

STEPS = 200
OF_SQUARES = {
    "power law": lambda count: 1 - (count + 1.0) ** -0.8,
    "jump": lambda count: jnp.where(count < 5, 0.5, 0.999),
    "half-life": lambda count: 0.5 ** (jnp.minimum(count + 10.0, 60.0) / 1e4),
}
OF_GRADIENTS = {
    "warm-up": optax.linear_schedule(0.85, 0.95, 50),
    "cycle": lambda count: 0.95 - 0.05 * jnp.sin(count / 20.0),
    "across a half": lambda count: 0.5 + 0.3 * jnp.cos(count / 7.0),
}
BY_SCHEDULE = [m for m in MEMBERS if m.name != "lamb"]  # Its direction is Adam's.


def rates_of(member):
    arguments = inspect.signature(member.oracle).parameters
    return [name for name in ("b1", "b2", "b3") if name in arguments]


def applied(schedule):
    """The numbers of all steps and of the next, as float32 computes them in a program."""
    numbers = jax.jit(jax.vmap(schedule))(jnp.arange(STEPS + 1))
    return np.asarray(numbers, np.float64)


def judged(member, gradients, numbers):
    rates = {name: oracles.Moving(x) for name, x in numbers.items()}
    steps = member.naive(gradients.astype(np.float64), **rates)
    updates = []
    for t in range(1, len(gradients) + 1):
        for rate in rates.values():
            rate.t = t
        updates.append(next(steps))
    return np.stack(updates)


@pytest.mark.parametrize(("squares", "averages"), list(zip(OF_SQUARES, OF_GRADIENTS, strict=True)))
@slowly(BY_SCHEDULE, quick=["adamw", "nadam"])
def test_against_products_in_float64(member, averages, squares, standard_promotion):
    schedules = dict.fromkeys(rates_of(member), OF_SQUARES[squares])
    schedules["b1"] = OF_GRADIENTS[averages]
    gradients = np.random.default_rng(0).standard_normal((STEPS, 40)).astype(np.float32)
    numbers = {name: applied(schedule) for name, schedule in schedules.items()}
    expected = judged(member, gradients, numbers)
    scale_by = getattr(adam_jax, member.scale_by)
    tx = scale_by(**(member.keywords | member.ours | schedules))
    updates = np.asarray(run(tx, gradients, gradients[0]), np.float64)
    moved = expected != 0
    ulp = np.spacing(np.abs(expected[moved]).astype(np.float32)).astype(np.float64)
    assert np.median(np.abs(updates - expected)[moved] / ulp) < 3


JUMP = OF_SQUARES["jump"]
RAMP = OF_GRADIENTS["warm-up"]


def test_of_a_constant_gradient_every_step_is_exact(standard_promotion):
    without = {"b1": 0.9, "eps": 0.0}
    power = adam_jax.schedules.power_law_schedule(0.8)
    in_state = adam_jax.with_hyperparams(adam_jax.adam)
    for tx in (
        adam_jax.adam(1.0, b2=JUMP, **without),
        adam_jax.adam(1.0, b2=power, **without),
        in_state(1.0, b2=JUMP, **without),
    ):
        np.testing.assert_allclose(run(tx, np.ones((20, 3), np.float32)), -1, rtol=4e-7)


SET = {
    "set_hyperparams": lambda state: adam_jax.set_hyperparams(state, b2=0.999),
    "as Optax": lambda s: s._replace(hyperparams=s.hyperparams | {"b2": jnp.float32(0.999)}),
}


@pytest.mark.parametrize("changed", SET.values(), ids=SET)
def test_a_rate_that_is_set_in_the_middle_of_a_run(changed):
    tx = adam_jax.with_hyperparams(adam_jax.adamw)(1.0, b2=0.5, weight_decay=0.0)
    gradients = np.random.default_rng(0).standard_normal((30, 40)).astype(np.float32)
    state, updates, step = tx.init(gradients[0]), [], jax.jit(tx.update)
    for t, g in enumerate(gradients):
        state = changed(state) if t in (5, 12) else state  # The second changes nothing.
        u, state = step(g, state, jnp.ones_like(g))
        updates.append(np.asarray(u, np.float64))
    expected = -judged(MEMBERS[0], gradients, {"b2": [0.5] * 5 + [0.999] * 26})
    np.testing.assert_allclose(updates, expected, rtol=3e-5, atol=1e-6)


TWO = {"w": jnp.full((2, 3), 0.5), "b": jnp.full(3, -0.5)}
OTHERS = {"b1": RAMP, "b2": JUMP}


def waves(params, turn):
    del params
    return jax.tree.map(lambda p: jnp.cos(p * 40 + turn), TWO)


trained = functools.partial(training.trained, params=TWO, gradients=waves, steps=8)
equal, close = (
    chex.assert_trees_all_equal,
    functools.partial(chex.assert_trees_all_close, rtol=1e-5),
)


@pytest.mark.bits
def test_the_same_bits_outside_a_program_in_hyperparams_and_by_layer(standard_promotion):
    tx = adam_jax.adamw(0.1, **OTHERS)
    expected, state = trained(tx)
    equal(trained(tx, jit=False), (expected, state))
    equal(trained(adam_jax.with_hyperparams(adam_jax.adamw)(0.1, **OTHERS))[0], expected)
    equal(trained(adam_jax.with_layers(tx, "w"))[0], expected)
    equal(trained(adam_jax.with_hyperparams(adam_jax.nadamw)(0.1, **OTHERS))[0],
          trained(adam_jax.nadamw(0.1, **OTHERS))[0])  # fmt: skip
    decay = OTHERS | {"momentum_decay": 0.004}
    close(trained(adam_jax.with_hyperparams(adam_jax.nadamw)(0.1, **decay))[0],
          trained(adam_jax.nadamw(0.1, **decay))[0])  # fmt: skip
    mesh = jax.make_mesh((3,), ("data",))
    specs = {"w": jax.P(None, "data"), "b": jax.P("data")}
    placed = jax.device_put(TWO, {k: jax.NamedSharding(mesh, x) for k, x in specs.items()})
    sharded = training.trained(tx, placed, lambda p, t: jax.tree.map(
        lambda x, like: jax.device_put(x, like.sharding), waves(p, t), placed), 8)  # fmt: skip
    equal(sharded[0], expected)


def test_each_group_has_its_own_schedule(standard_promotion):
    tx = adam_jax.groups(adam_jax.adamw, {"b": {"b2": RAMP}}, learning_rate=0.1, **OTHERS)
    params, state = trained(tx)
    equal(params["w"], trained(adam_jax.adamw(0.1, **OTHERS))[0]["w"])
    equal(params["b"], trained(adam_jax.adamw(0.1, b1=RAMP, b2=RAMP))[0]["b"])
    assert set(state[0].past) == {"past_b1", "past_b2"}  # Equal schedules share their past.


def test_other_batch_sizes(standard_promotion):
    def times_two(schedule):
        return lambda count: 1 - 2 * (1 - schedule(2.0 * count))

    rate, decay = 0.1 * 2**0.5, 1e-4 * 2**0.5
    small = {"learning_rate": rate, "eps": 1e-8 / 2**0.5, "weight_decay": decay}
    scaled = {name: times_two(schedule) for name, schedule in OTHERS.items()}
    expected, _ = trained(adam_jax.adamw(**small, **scaled))
    scale, inject = adam_jax.transfer.scale_batch, adam_jax.with_hyperparams
    close(trained(scale(adam_jax.adamw, 2)(0.1, **OTHERS))[0], expected)
    close(trained(scale(inject(adam_jax.adamw), 2)(0.1, **OTHERS))[0], expected)
    tx, outside = inject(scale(adam_jax.adamw, 2))(0.1, b2=0.5), adam_jax.adamw
    params, state = trained(tx, steps=4)
    state = adam_jax.set_hyperparams(state, b2=0.99)
    params, _ = training.trained(tx, params, lambda p, t: waves(p, t + 4), 4, state=state)
    b2 = lambda count: jnp.where(count < 4, 0.0, 0.98)  # noqa: E731
    close(params, trained(outside(**small, b1=0.8, b2=b2))[0])


def test_a_skipped_step_and_half_a_step_do_not_count(standard_promotion):
    tx = adam_jax.adamw(0.1, **OTHERS)
    state, params = tx.init(TWO), TWO
    around = adam_jax.accumulate(adam_jax.skip_nonfinite(tx), 2)
    skipped, its = TWO, around.init(TWO)
    for t in range(6):
        grads = waves(params, t)
        params, state = adam_jax.step(tx, grads, state, params)
        halves = [grads, grads] + [jax.tree.map(lambda g: g * jnp.nan, grads)] * 2 * (t == 2)
        for half in halves:
            skipped, its = adam_jax.step(around, half, its, skipped)
    equal(skipped, params)


def test_conversions_keep_the_moments_and_the_past(standard_promotion):
    constant, moving = adam_jax.adamw(0.1, b2=0.5), adam_jax.adamw(0.1, b2=JUMP)
    params, state = trained(constant, steps=3)
    assert isinstance(state[0], optax.ScaleByAdamState)
    into = adam_jax.convert.from_optax(state, params, moving)
    assert isinstance(into[0], adam_jax.ScheduledRatesState)
    # Taken to have had the rate of the next step, which here it had.
    close(trained(moving, state=into)[0], trained(moving, state=trained(moving, steps=3)[1])[0])
    back = adam_jax.convert.to_optax(into, params, optax.adamw(0.1))
    equal(back[0], state[0])
    stored = adam_jax.convert_state(into, mu_dtype=jnp.bfloat16)
    equal(stored[0].past, into[0].past)
    with pytest.raises(ValueError, match="must have .*past_b2"):
        trained(moving, state=state)
    with pytest.raises(ValueError, match="got a ScheduledRatesState"):
        trained(constant, state=into)


def test_pytorch_has_no_schedules_of_momenta():
    zeros = {name: np.zeros(1) for name in ("exp_avg", "exp_avg_sq")}
    its = {0: zeros | {"step": np.float32(3), "mu_product": np.float32(0.1)}}
    torch = {"state": its, "param_groups": [{"params": [0]}]}
    tx = adam_jax.nadam(0.1, b1=RAMP, momentum_decay=0.004)
    with pytest.raises(ValueError, match="nadam with a number for b1"):
        adam_jax.convert.from_torch(torch, {"w": jnp.zeros(1)}, tx, order=["w"])


def test_the_momentum_decay_of_nadam_is_a_number():
    for factory in (adam_jax.nadam, adam_jax.with_hyperparams(adam_jax.nadam)):
        with pytest.raises(ValueError, match="momentum_decay must be a number"):
            factory(0.1, momentum_decay=RAMP)


def test_rates_outside_the_interval(standard_promotion):
    for b2, message in ((lambda count: 1.0, "the schedule of b2 must be in"),
                        (lambda count: jnp.ones(2), "the schedule of b2 must")):  # fmt: skip
        tx = adam_jax.adamw(0.1, b2=b2)
        with pytest.raises(ValueError, match=message):
            adam_jax.step(tx, TWO, tx.init(TWO), TWO)
    for alias in (adam_jax.adamw, adam_jax.radam, adam_jax.nadamw):  # A traced 1 is not checked.
        tx = alias(0.1, b1=lambda count: 0 * count + 1.0, b2=lambda count: 0 * count + 1.0)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(trained(tx)))
