"""Hyperparameters in the state: the same bits, no recompilation, readable in any nesting."""

import functools
import itertools
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from tests.catalogue import every_kind_of_state, every_member_slowly, one_kind_of_state
from tests.catalogue.training import trained

PARAMS = {"w": jnp.linspace(-2.0, 2.0, 999), "b": jnp.ones(3)}


def in_one_loop(tx, params):
    """The parameters after six steps in one compiled loop."""

    def body(carry, _):
        params, state = carry
        return adam_jax.step(tx, jax.tree.map(jnp.sin, params), state, params), None

    run = jax.jit(lambda start: jax.lax.scan(body, start, length=6)[0])
    return run((params, tx.init(params)))[0]


def train(tx, params):
    """In one loop, and by updates that are dispatched one at a time."""
    return in_one_loop(tx, params), trained(tx, params, through="update")[0]


def same_bits(member, run, **numbers):
    numbers = {**member.keywords, **member.ours, "learning_rate": 0.0123, **numbers}
    static = member.function(**numbers)
    in_state = adam_jax.with_hyperparams(member.function)(**numbers)
    chex.assert_trees_all_equal(run(in_state, PARAMS), run(static, PARAMS))


@pytest.mark.bits
@every_member_slowly
def test_the_same_bits_as_the_static_run(member):
    same_bits(member, in_one_loop)


@pytest.mark.bits
@one_kind_of_state
def test_the_same_bits_with_rates_on_either_side_of_a_half(member):
    """Both in a loop and in a program of one update; the result depends on no member."""
    same_bits(member, train, b1=0.3, b2=0.97)


@every_kind_of_state
def test_bfloat16_parameters_keep_float32_numbers(member):
    """optax.inject_hyperparams(optax.adamw) gives NaN: its b2 becomes bfloat16(0.999) = 1."""
    params = jnp.array([1.0, -2.0, 3.0], jnp.bfloat16)
    tx = adam_jax.with_hyperparams(member.alias)(learning_rate=0.01)
    state = tx.init(params)
    assert {x.dtype for x in state.hyperparams.values()} == {jnp.dtype(jnp.float32)}
    updates = params
    for _ in range(2):
        updates, new = jax.jit(tx.update)(params, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
        state = new
    assert np.isfinite(np.asarray(updates, np.float32)).all() and (updates != 0).all()


def test_double_precision(x64):
    """The numbers are float64: a float32 0.999 is off by 1e-8, and 1 - b2 by more."""
    params = jnp.linspace(-1.0, 1.0, 11)
    tx = adam_jax.with_hyperparams(adam_jax.adamw)(1e-2)
    static = adam_jax.adamw(1e-2)
    expected, _ = static.update(params, static.init(params), params)
    updates, state = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(updates, expected)
    assert state.hyperparams["b2"].dtype == jnp.float64


def test_a_change_in_the_state_needs_no_compilation():
    traces = []
    tx = adam_jax.with_hyperparams(adam_jax.adamw)(learning_rate=1e-3, b2=0.99)

    @jax.jit
    def step(params, state):
        traces.append(1)
        return adam_jax.step(tx, params, state, params)

    params, state = PARAMS, tx.init(PARAMS)
    for numbers in (
        {"learning_rate": 0.5},
        {"b2": 0.95, "weight_decay": 0.1},
        {"learning_rate": 0, "b1": jnp.float32(0.2)},
    ):
        state = adam_jax.set_hyperparams(state, **numbers)
        params, state = step(params, state)
    state.hyperparams["learning_rate"] = jnp.float32(0.25)
    moved, state = step(params, state)
    assert len(traces) == 1
    assert float(adam_jax.hyperparams(state)["learning_rate"]) == 0.25
    assert (moved["b"] != params["b"]).all()


@pytest.mark.bits
@pytest.mark.parametrize("b2", [0.95, 0.9995])
def test_a_rate_that_is_set_is_as_exact_as_one_from_the_start(b2):
    tx = adam_jax.with_hyperparams(adam_jax.adam)(learning_rate=0.1)
    changed = adam_jax.set_hyperparams(tx.init(PARAMS), b2=b2)
    chex.assert_trees_all_equal(
        tx.update(PARAMS, changed)[0],
        (static := adam_jax.adam(0.1, b2=b2)).update(PARAMS, static.init(PARAMS))[0],
    )
    # Assigned as in Optax, the rate is known in float32 only.
    assigned = tx.init(PARAMS)
    assigned.hyperparams["b2"] = jnp.float32(b2)
    chex.assert_trees_all_close(tx.update(PARAMS, assigned)[0], tx.update(PARAMS, changed)[0])
    _, state = tx.update(PARAMS, assigned)
    exact = np.float64(1) - np.float64(np.float32(b2))
    nu = exact * np.asarray(PARAMS["w"], np.float64) ** 2
    np.testing.assert_allclose(state.inner_state[0].nu["w"], nu, rtol=3e-7)


def test_an_array_that_is_set_stays_the_callers():
    """The state is donated; an array of the caller's in it would be deleted."""
    tx = adam_jax.with_hyperparams(adam_jax.adamw)(learning_rate=1e-3)
    rate = jnp.float32(0.5)
    state = adam_jax.set_hyperparams(tx.init(PARAMS), learning_rate=rate, b1=rate)
    params = jax.tree.map(jnp.copy, PARAMS)
    jax.jit(tx.step, donate_argnums=(1, 2))(PARAMS, state, params)
    assert not rate.is_deleted() and float(rate) == 0.5


def test_the_numbers_of_a_population_are_set_together_or_one_by_one():
    tx = adam_jax.with_hyperparams(adam_jax.adamw)(learning_rate=1e-3)
    states = jax.vmap(tx.init)(jnp.ones((3, 4)))
    states = adam_jax.set_hyperparams(states, learning_rate=jnp.array([0.1, 0.2, 0.3]), b2=0.9)
    updates, states = jax.vmap(tx.update)(jnp.ones((3, 4)), states, jnp.ones((3, 4)))
    np.testing.assert_allclose(updates[:, 0], [-0.1, -0.2, -0.3], rtol=1e-3)
    np.testing.assert_allclose(states.inner_state[0].nu, 0.1, rtol=1e-6)
    exact = states.hyperparams_states["exact_b2"]
    assert exact.complement.shape == (3,) and (exact.complement == jnp.float32(0.1)).all()


@pytest.mark.parametrize("rate", [0.01, optax.linear_schedule(0.01, 0.0, 10)])
def test_without_decay_rates_the_state_is_that_of_optax(rate):
    """Trainers restore their checkpoints before a conversion has a place."""

    def chain(of):
        return lambda learning_rate: of.chain(of.clip_by_global_norm(0.5), of.adamw(learning_rate))

    theirs = optax.inject_hyperparams(chain(optax))(rate)
    ours = adam_jax.with_hyperparams(chain(adam_jax))(rate)
    params, state = PARAMS, theirs.init(PARAMS)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, ours.init(PARAMS))
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(4):
            expected = adam_jax.step(ours, params, state, params)
            updates, state = theirs.update(params, state, params)
            params = optax.apply_updates(params, updates)
            chex.assert_trees_all_close((params, state), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["learning_rate", "b1"])
def test_a_number_becomes_a_schedule_and_back(name):
    """In the middle of a run; the tree of the state stays."""
    make = adam_jax.with_hyperparams(functools.partial(adam_jax.adamw, learning_rate=0.1))
    for first, then in itertools.permutations([0.5, lambda count: jnp.float32(0.25)]):
        runs = []
        for second in (make(**{name: first}), make(**{name: then})):
            start = make(**{name: first})
            run = PARAMS, start.init(PARAMS)
            for tx in (start, second, second):
                run = adam_jax.step(tx, PARAMS, run[1], run[0])
            runs.append(run)
        chex.assert_trees_all_equal_shapes_and_dtypes(*runs)
        # A number is that of the state: the schedule's last value.
        now = adam_jax.hyperparams(runs[1][1])[name]
        assert now == 0.25
        with pytest.raises(ValueError, match=f"{name} must be in"):
            adam_jax.set_hyperparams(runs[1][1], **{name: np.nan if name != "b1" else 1.5})
        assert (
            adam_jax.hyperparams(adam_jax.set_hyperparams(runs[1][1], **{name: 0.5}))[name] == 0.5
        )


def test_a_number_in_a_state_of_optax_keeps_its_dtype():
    state = optax.inject_hyperparams(optax.adamw)(0.1).init(jnp.ones(3, jnp.bfloat16))
    state = adam_jax.set_hyperparams(state, learning_rate=0.5)
    rate = adam_jax.hyperparams(state)["learning_rate"]
    assert (rate, rate.dtype) == (0.5, jnp.bfloat16)
    state.hyperparams["learning_rate"] = 0.1  # A Python number, as Optax documents it.
    state = adam_jax.set_hyperparams(state, learning_rate=0.5)
    assert adam_jax.hyperparams(state)["learning_rate"] == 0.5


def test_optax_finds_one_number_of_a_name():
    tx = adam_jax.with_hyperparams(adam_jax.adamw)(learning_rate=1e-3)
    state = optax.tree.set(tx.init(PARAMS), b2=jnp.float32(0.5))
    assert float(optax.tree.get(state, "b2")) == 0.5


def test_arguments_that_are_no_numbers():
    """A mask that is a tree, a step count that stays a Python integer, and a pickled factory."""
    mask = {"w": True, "b": False}
    make = adam_jax.with_hyperparams(adam_jax.adamw)
    tx = make(0.1, weight_decay=0.5, mask=mask)
    assert tx == make(0.1, weight_decay=0.5, mask=dict(mask)) and hash(tx) == hash(tx)
    updates, state = jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)
    static = adam_jax.adamw(0.1, weight_decay=0.5, mask=mask)
    chex.assert_trees_all_equal(updates, static.update(PARAMS, static.init(PARAMS), PARAMS)[0])

    def warmed(peak: float, steps: int = 3):
        assert type(steps) is int
        return adam_jax.adam(optax.linear_schedule(0.0, peak, steps))

    state = adam_jax.with_hyperparams(warmed)(0.1, steps=5).init(PARAMS)
    assert set(adam_jax.hyperparams(state)) == {"peak"}
    assert pickle.loads(pickle.dumps(make)) == make and make.__name__ == "adamw"
    with pytest.raises(ValueError, match=r"got an array of shape \(3,\)"):
        adam_jax.with_hyperparams(lambda rate, w: adam_jax.adam(rate))(0.1, jnp.ones(3))


@pytest.mark.bits
def test_the_numbers_of_groups_are_as_exact():
    factory = functools.partial(
        adam_jax.groups, factory=adam_jax.adamw, expressions={"b": {"weight_decay": 0.0}}
    )
    static = factory(learning_rate=0.0123, b2=0.97)
    in_state = adam_jax.with_hyperparams(factory)(learning_rate=0.0123, b2=0.97)
    chex.assert_trees_all_equal(train(in_state, PARAMS), train(static, PARAMS))
    assert "exact_b2" in in_state.init(PARAMS).hyperparams_states


@pytest.mark.bits
def test_a_function_of_ones_own_passes_an_exact_rate_on():
    def recipe(learning_rate: float, b2: adam_jax.DecayRateLike = 0.99):
        return adam_jax.cautious(adam_jax.adamw(learning_rate, b2=b2))

    in_state = adam_jax.with_hyperparams(recipe)(0.0123)
    chex.assert_trees_all_equal(train(in_state, PARAMS), train(recipe(0.0123), PARAMS))


def test_schedules_and_the_current_value():
    rate = adam_jax.schedules.inverse_sqrt_schedule(0.1)
    tx = adam_jax.with_hyperparams(adam_jax.adamw)(
        rate, b2=lambda count: 1 - 0.5 / (count.astype(float) + 1)
    )
    static = adam_jax.adamw(rate, b2=0.5)
    params, state = PARAMS, tx.init(PARAMS)
    assert float(adam_jax.hyperparams(state)["learning_rate"]) == pytest.approx(0.1)
    for t in range(4):
        grads = jax.tree.map(jnp.sin, params)
        updates, state = jax.jit(tx.update)(grads, state, params)
        if t == 0:
            expected, _ = static.update(grads, static.init(params), params)
            chex.assert_trees_all_close(updates, expected, rtol=1e-6)
        numbers = adam_jax.hyperparams(state)
        assert float(numbers["learning_rate"]) == pytest.approx(0.1 / np.sqrt(t + 1))
        assert float(numbers["b2"]) == pytest.approx(1 - 0.5 / (t + 1))
    assert state.count == 4


def test_readable_from_any_state_around_it():
    tx = adam_jax.with_hyperparams(adam_jax.adamw)(learning_rate=0.125)
    inside = optax.chain(optax.clip(1.0), optax.masked(tx, {"w": True, "b": False}))
    for outer in (inside, optax.apply_if_finite(tx, 3), optax.MultiSteps(tx, 2)):
        state = outer.init(PARAMS)
        assert float(adam_jax.hyperparams(state)["learning_rate"]) == 0.125
        state = adam_jax.set_hyperparams(state, learning_rate=0.5)
        assert float(adam_jax.hyperparams(state)["learning_rate"]) == 0.5


def test_readable_from_flax():
    from flax import nnx
    from flax.training.train_state import TrainState

    tx = adam_jax.with_hyperparams(adam_jax.adamw)(learning_rate=0.125)
    train_state = TrainState.create(apply_fn=lambda: None, params=PARAMS, tx=tx)
    assert float(adam_jax.hyperparams(train_state)["learning_rate"]) == 0.125
    optimizer = nnx.Optimizer(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), tx, wrt=nnx.Param)
    assert float(adam_jax.hyperparams(optimizer.opt_state)["learning_rate"][...]) == 0.125
    optimizer.opt_state = adam_jax.set_hyperparams(optimizer.opt_state, learning_rate=0.5, b2=0.25)
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer.update(model, nnx.grad(lambda m: jnp.sum(m(jnp.ones((1, 2)))))(model))
    numbers = adam_jax.hyperparams(optimizer.opt_state)
    assert float(numbers["learning_rate"][...]) == 0.5 and float(numbers["b2"][...]) == 0.25


make = adam_jax.with_hyperparams(adam_jax.adamw)
STATE = make(1e-3).init(PARAMS)
changed = functools.partial(adam_jax.set_hyperparams, STATE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(1e-3, b2=1.0), r"b2 must be in \[0, 1\)"),
        (lambda: adam_jax.with_hyperparams(adam_jax.adamw(1e-3)), "adamw without its arguments"),
        (lambda: changed(lr=1e-3), r"\['lr'\] must be among .*learning_rate"),
        (lambda: changed(b1=1.0), r"b1 must be in \[0, 1\)"),
        (lambda: changed(learning_rate=np.nan), r"learning_rate must be in \(-inf, inf\)"),
        (lambda: changed(learning_rate=jnp.inf), r"learning_rate must be in \(-inf, inf\)"),
        (lambda: changed(learning_rate=-jnp.inf), r"learning_rate must be in \(-inf, inf\)"),
        (lambda: changed(b2=jnp.ones(2) / 2), r"b2 must be one number, or have the shape \(\)"),
        (lambda: adam_jax.hyperparams(STATE.inner_state), "with_hyperparams"),
        (lambda: adam_jax.hyperparams((STATE, STATE)), "got 2: pass the part of the state"),
        (
            lambda: make(1e-3).update(PARAMS, STATE.inner_state),
            "must be an InjectStatefulHyperparamsState",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_numbers_are_checked_with_the_first_value_of_a_schedule():
    """Not with 0, by which a function may divide, and which is no decay rate to scale."""
    schedule = optax.exponential_decay(1e-2, 10, 0.5)

    def independent(learning_rate, decay=1e-4):
        return adam_jax.adamw(learning_rate, weight_decay=decay / learning_rate)

    state = adam_jax.with_hyperparams(independent)(schedule).init(PARAMS)
    assert float(adam_jax.hyperparams(state)["learning_rate"]) == pytest.approx(1e-2)
    scaled = adam_jax.with_hyperparams(adam_jax.transfer.scale_batch(adam_jax.adamw, 4))
    state = scaled(1e-2, b1=lambda count: 0.9).init(PARAMS)
    assert float(adam_jax.hyperparams(state)["b1"]) == pytest.approx(0.9)
