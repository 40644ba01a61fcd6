"""Arguments that Optax allows: negative rates, rates of one, unusual shapes, disabled clipping."""

import types
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import adam_jax
from tests.catalogue import MEMBERS, every_kind_of_state, training

PARAMS = {"w": jnp.linspace(-2.0, 2.0, 6).reshape(3, 2), "b": jnp.array(1.5)}
sines = {name: jnp.sin(3 * p) for name, p in PARAMS.items()}


def trained(tx, steps=3):
    return training.trained(tx, PARAMS, steps=steps, through="update", jit=False)[0]


def test_negative_numbers_elsewhere(standard_promotion):
    tx = adam_jax.scale_by_learning_rate(-1.0)
    chex.assert_trees_all_equal(tx.update(sines, tx.init(PARAMS))[0], sines)
    for name, rate in (("adamw", 1e-2), ("lamb", -1e-2), ("lion", -1e-3), ("adan", -1e-3)):
        ours, theirs = (getattr(o, name)(rate, weight_decay=-0.1) for o in (adam_jax, optax))
        chex.assert_trees_all_close(trained(ours), trained(theirs), rtol=1e-5)
    coupled = adam_jax.adam(1e-2, l2=-0.1)
    theirs = optax.chain(optax.add_decayed_weights(-0.1), optax.adam(1e-2))
    chex.assert_trees_all_close(trained(coupled), trained(theirs), rtol=1e-4)
    tx = adam_jax.with_hyperparams(adam_jax.adamw)(1e-2)
    state = adam_jax.set_hyperparams(tx.init(PARAMS), weight_decay=-0.1, learning_rate=-1.0)
    assert float(adam_jax.hyperparams(state)["weight_decay"]) == np.float32(-0.1)
    with pytest.raises(ValueError, match=r"eps must be in \[0, inf\), got -1.0"):
        adam_jax.set_hyperparams(state, eps=-1.0)
    assert float(adam_jax.schedules.inverse_sqrt_schedule(-1.0)(3)) == -0.5


ONES = [(member.name, rate) for member in MEMBERS for rate in member.may_be_one]


@pytest.mark.parametrize(("name", "rate"), ONES)
def test_a_decay_rate_of_one_where_nothing_is_divided_by_its_complement(
    name, rate, standard_promotion
):
    ours, theirs = getattr(adam_jax, name), getattr(optax, name, None) or getattr(contrib, name)
    expected = trained(theirs(1e-2, **{rate: 1.0}), steps=5)
    for one in (1.0, 1, jnp.float32(1)):
        chex.assert_trees_all_close(trained(ours(1e-2, **{rate: one}), 5), expected, rtol=1e-5)
    in_state = adam_jax.with_hyperparams(ours)(1e-2, **{rate: 1.0})
    chex.assert_trees_all_close(trained(in_state, 5), expected, rtol=1e-5)
    with pytest.raises(ValueError, match=rf"{rate} must be in \[0, 1\], got 1.5"):
        ours(1e-2, **{rate: 1.5})


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
@every_kind_of_state
def test_an_array_of_one_number_is_a_number(member, shape):
    """Optax's update of a scalar parameter would get shape (1,); all else equals Optax."""
    one = jnp.full(shape, 0.125)
    names = ["learning_rate", "b1", *(["weight_decay"] if member.needs_params else [])]
    numbers = dict.fromkeys(names, one)
    plain = member.alias(**dict.fromkeys(numbers, 0.125))
    for tx in (member.alias(**numbers), member.alias(**{**numbers, "b1": np.full(shape, 0.125)})):
        chex.assert_trees_all_equal(
            tx.update(sines, tx.init(PARAMS), PARAMS)[0],
            plain.update(sines, plain.init(PARAMS), PARAMS)[0],
        )
    traced = jax.jit(lambda x: member.alias(x).update(sines, plain.init(PARAMS), PARAMS)[0])
    assert traced(one)["b"].shape == ()


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
def test_one_number_of_any_shape_from_schedules_and_in_the_state(shape):
    one = jnp.full(shape, 0.125)
    expected = trained(adam_jax.adamw(0.125))
    in_state = adam_jax.with_hyperparams(adam_jax.adamw)
    for tx in (adam_jax.adamw(lambda count: one), in_state(lambda count: one), in_state(one)):
        chex.assert_trees_all_close(trained(tx), expected, rtol=1e-6)
        chex.assert_tree_shape_prefix(trained(tx)["b"], ())
    tx = in_state(1.0)
    state = adam_jax.set_hyperparams(tx.init(PARAMS), learning_rate=one)
    assert adam_jax.hyperparams(state)["learning_rate"].shape == ()
    for rates in (jnp.ones(3), jnp.ones((2, 1))):
        with pytest.raises(ValueError, match=r"learning_rate must be a scalar .* got shape"):
            adam_jax.adamw(rates)
        with pytest.raises(ValueError, match=r"learning_rate must be a scalar .* got shape"):
            jax.jit(adam_jax.adamw)(rates)


class Pair(NamedTuple):
    """A class of two functions that is not Optax's."""

    init: object
    update: object


class Unhashable:
    """An object with both methods whose equality removes its hash."""

    def __eq__(self, other):
        return isinstance(other, Unhashable)

    def init(self, params):
        return (jnp.zeros([], jnp.int32),)

    def update(self, updates, state, params=None):
        return jax.tree.map(lambda u: 2.0 * u, updates), (state[0] + 1,)


def test_any_init_and_update_are_a_transformation(standard_promotion):
    doubled = Unhashable()
    pairs = [doubled, Pair(doubled.init, doubled.update)]
    pairs.append(types.SimpleNamespace(init=doubled.init, update=doubled.update))
    reference = optax.GradientTransformation(doubled.init, doubled.update)
    makers = [
        lambda tx: adam_jax.chain(tx, adam_jax.adamw(1e-2)),
        lambda tx: adam_jax.chain(adam_jax.scale_by_adam(), tx),
        lambda tx: adam_jax.skip_nonfinite(tx),
        lambda tx: adam_jax.accumulate(tx, 2),
        lambda tx: adam_jax.with_hyperparams(lambda rate: tx)(0.1),
    ]
    for make in makers:  # The last makes a new function each time.
        expected = make(reference)
        for pair in pairs:
            tx = make(pair)
            result = jax.jit(lambda tx, *a: tx.update(*a))(tx, sines, tx.init(PARAMS), PARAMS)
            chex.assert_trees_all_close(
                result, expected.update(sines, expected.init(PARAMS), PARAMS)
            )
            assert make is makers[-1] or make(pair) == tx
    moved, state = adam_jax.step(doubled, sines, doubled.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(moved, jax.tree.map(lambda p, g: p + 2.0 * g, PARAMS, sines))
    half = types.SimpleNamespace(init=doubled.init)
    for wrong in (3, "adamw", half, Pair(1, 2), optax.MultiSteps):
        with pytest.raises(ValueError, match=r"txs\[0\] must be an Optax transformation"):
            adam_jax.chain(wrong)


def test_an_empty_chain_is_the_identity():
    tx = adam_jax.chain()
    assert tx.init(PARAMS) == () and tx == adam_jax.chain()
    for run in (tx.update, jax.jit(tx.update)):
        updates, state = run({**sines, "n": None}, ())
        chex.assert_trees_all_equal(updates, {**sines, "n": None})
        assert state == ()
    moved, _ = adam_jax.step(tx, sines, (), PARAMS)
    chex.assert_trees_all_equal(moved, jax.tree.map(jnp.add, PARAMS, sines))
    both = adam_jax.chain(adam_jax.chain(), adam_jax.adamw(1e-2))
    chex.assert_trees_all_equal(trained(both), trained(adam_jax.adamw(1e-2)))


@every_kind_of_state
def test_parameters_that_are_python_floats(member):
    """Optax's lamb cannot take their norm."""
    tx, params, grads = member.alias(0.1), {"w": 2.0, "b": -1.0}, {"w": 0.5, "b": 3.0}
    arrays = jax.tree.map(jnp.asarray, (params, grads))
    state = tx.init(params)
    expected = tx.update(arrays[1], tx.init(arrays[0]), arrays[0])
    for run in (tx.update, jax.jit(tx.update)):
        chex.assert_trees_all_close(run(grads, state, params), expected, rtol=1e-6)
    moved, _ = adam_jax.step(tx, grads, state, params)
    chex.assert_trees_all_close(moved, optax.apply_updates(arrays[0], expected[0]), rtol=1e-6)
