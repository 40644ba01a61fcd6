"""Numbers given as arrays are array leaves of the transformation, as in Optax.

Equinox and libraries built on it trace the array leaves and compare the other leaves.
"""

import copy
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from tests.catalogue import every_member, every_member_slowly, training

PARAMS = {"w": jnp.linspace(-2.0, 2.0, 37), "b": jnp.ones(3)}
KINDS = {"jax": jnp.float32, "numpy": np.float32, "numpy, an array": lambda x: np.asarray(x, "f")}
every_kind = pytest.mark.parametrize("array", KINDS.values(), ids=KINDS)
either_library = pytest.mark.parametrize("array", [jnp.float32, np.float32], ids=["jax", "numpy"])


def arrays_of(tree):
    return [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array | np.ndarray | np.generic)]


def trained(tx):
    return training.trained(tx, PARAMS, jit=False)[0]


def surrounded(rate):
    """The same number in every wrapper around a member."""
    yield adam_jax.adamw(rate)
    yield adam_jax.scale_by_learning_rate(rate)
    yield adam_jax.with_hyperparams(adam_jax.adamw)(rate)
    yield adam_jax.with_hyperparams(adam_jax.cautious(adam_jax.adamw))(rate)
    yield adam_jax.groups(adam_jax.adamw, {"b": {"weight_decay": 0.0}}, learning_rate=rate)
    yield adam_jax.groups(adam_jax.adamw, {"b": {"learning_rate": rate}}, learning_rate=0.1)
    yield adam_jax.groups({"b": adam_jax.adamw(rate), ".*": adam_jax.lion(0.1)})
    yield adam_jax.with_layers(adam_jax.adamw(rate), {"w.*": 1, "b": 1})
    yield adam_jax.cautious(adam_jax.adamw(rate))
    yield adam_jax.chain(adam_jax.clip_by_global_norm(1.0), adam_jax.adamw(rate))
    yield adam_jax.accumulate(adam_jax.adamw(rate), 2)
    yield adam_jax.skip_nonfinite(adam_jax.adamw(rate))
    yield adam_jax.clip_by_history(adam_jax.adamw(0.1), rate)
    yield adam_jax.clip_by_global_norm(rate)
    yield adam_jax.schedule_free_adamw(rate)
    yield adam_jax.schedule_free_adamw(rate, warmup_steps=3)


@every_kind
@every_member
def test_an_array_is_a_leaf(member, array):
    tx, other = member.alias(array(0.125)), member.alias(array(0.25))
    assert 0.125 in arrays_of(tx)
    assert jax.tree.structure(tx) == jax.tree.structure(other)
    assert len(arrays_of(tx)) == len(arrays_of(other)) == 1


@either_library
def test_through_everything_that_goes_around_a_member(array):
    for tx, plain in zip(surrounded(array(0.125)), surrounded(0.125), strict=True):
        assert {(float(x), np.shape(x)) for x in arrays_of(tx)} == {(0.125, ())}, tx
        assert not arrays_of(plain)


@pytest.mark.bits
def test_the_same_bits_as_of_a_number():
    """The arithmetic turns the Python number into a float32 0.001 too."""
    for tx, other, plain in zip(
        *(surrounded(array(1e-3)) for array in (jnp.float32, np.float32, float)), strict=True
    ):
        expected = trained(plain)
        chex.assert_trees_all_equal(trained(tx), expected)
        chex.assert_trees_all_equal(trained(other), expected)


@pytest.mark.bits
@either_library
@every_member_slowly
def test_every_number_as_an_array_gives_the_same_bits(member, array):
    """For numbers exact in float32; 1 - b and log b are computed from the float64, as always."""
    numbers = {"learning_rate": 0.125, "b1": 0.875, "eps": 2.0**-20}
    numbers["b2"] = float(np.float32(0.9995))
    numbers = {name: x for name, x in numbers.items() if member.has(name)}
    as_arrays = member.alias(**{name: array(x) for name, x in numbers.items()})
    assert len(arrays_of(as_arrays)) >= len(numbers)
    chex.assert_trees_all_equal(trained(as_arrays), trained(member.alias(**numbers)))


def test_it_is_a_value():
    for array in KINDS.values():
        for one, same, plain, other in zip(
            *(surrounded(array(0.125)), surrounded(array(0.125)), surrounded(0.125)),
            surrounded(array(0.25)),
            strict=True,
        ):
            assert one == same and hash(one) == hash(same)
            assert one == plain and hash(one) == hash(plain)
            assert one != other
            for copied in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
                assert copied == one and set(map(float, arrays_of(copied))) == {0.125}


def test_the_transformations_of_a_population_compare():
    """A leaf with many numbers has no truth value, but the transformations are comparable."""
    make = jax.vmap(lambda rate: adam_jax.with_hyperparams(adam_jax.adamw)(rate))
    one, same, other = make(jnp.ones(3)), make(jnp.ones(3)), make(jnp.array([1.0, 1.0, 2.0]))
    assert one == same and hash(one) == hash(same)
    assert one != other and one != make(jnp.ones(2))


def test_traced_numbers_compare_with_themselves_and_do_not_hash():
    @jax.jit
    def compared(tx, same):
        assert tx == tx and tx != same
        with pytest.raises(TypeError, match="unhashable"):
            hash(tx)
        return 0

    compared(adam_jax.adam(0.1), adam_jax.adam(0.1))


def test_inside_jit_a_concrete_array_stays_one():
    """A transformation built inside a traced function, from an array outside of it."""
    rate, b2 = jnp.float32(0.125), jnp.float32(0.96875)

    @jax.jit
    def train(params):
        tx = adam_jax.adamw(rate, b2=b2)
        assert not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tx))
        return adam_jax.step(tx, params, tx.init(params), params)[0]

    tx = adam_jax.adamw(0.125, b2=0.96875)
    expected = jax.jit(lambda p: adam_jax.step(tx, p, tx.init(p), p)[0])(PARAMS)
    chex.assert_trees_all_equal(train(PARAMS), expected)


@every_kind
def test_settings_of_a_function_that_makes_a_transformation_compare(array):
    """They are not leaves: the factory is part of the structure of the transformation."""
    for modified in (
        lambda x: adam_jax.atan2(adam_jax.adamw, a=x),
        lambda x: adam_jax.clip_update_rms(adam_jax.adamw, threshold=x),
    ):
        make, same = modified(array(0.5)), modified(array(0.5))
        assert make == same and hash(make) == hash(same) and make != modified(array(0.25))
        tx = adam_jax.with_hyperparams(make)(array(0.125))
        assert tx == adam_jax.with_hyperparams(same)(0.125)
        moved = jax.jit(lambda x, f=modified: trained(f(x)(0.125)))(jnp.float32(0.5))
        chex.assert_trees_all_close(moved, trained(same(0.125)), rtol=1e-6)
    tx = adam_jax.schedule_free_adamw(0.1, b1=array(0.5), weight_lr_power=array(2.0))
    assert tx == adam_jax.schedule_free_adamw(0.1, b1=0.5) and hash(tx) == hash(tx)
    jax.jit(lambda tx: tx.init(PARAMS))(tx)


def chained(o, rate):
    """The chain that Optimistix' and Equinox' tests build with Optax's Adam."""
    later = optax.piecewise_constant_schedule(1, {200: 0.1})
    return optax.chain(o.adam(rate), optax.scale_by_schedule(later))


@pytest.mark.peers
def test_equinox_traces_an_array(standard_promotion):
    eqx, eqxi = (pytest.importorskip(name) for name in ("equinox", "equinox.internal"))
    first, second = (
        eqxi.closure_to_pytree(chained(adam_jax, jnp.array(rate))) for rate in (1e-3, 1e-2)
    )
    assert any(x == jnp.array(1e-3) for x in filter(eqx.is_array, jax.tree.leaves(first)))
    params = {"foo": jnp.array(1.0)}
    first.update(params, first.init(params))
    traces = []
    train = eqx.filter_jit(lambda tx: traces.append(1))
    for tx in (first, second, adam_jax.adam(jnp.array(0.1)), adam_jax.adam(jnp.array(0.2))):
        train(tx)
    assert len(traces) == 2
