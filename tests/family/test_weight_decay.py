"""`mask` and `weight_decay_mask`: Optax's two names of one argument."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from tests.catalogue.training import trained

PARAMS = {"w": jnp.linspace(-2.0, 2.0, 6).reshape(3, 2), "b": jnp.ones(2)}
GRADS = jax.tree.map(jnp.sin, PARAMS)
MASKS = {"a tree": {"w": True, "b": False}, "a function": adam_jax.decay_mask, "a prefix": False}
SIGNATURES = {
    name: inspect.signature(f).parameters
    for name in adam_jax.__all__
    if inspect.isfunction(f := getattr(adam_jax, name))
}
ALIASES = [name for name, parameters in SIGNATURES.items() if "mask" in parameters]


def update(tx):
    return tx.update(GRADS, tx.init(PARAMS), PARAMS)[0]


def test_every_alias_with_a_mask_has_both_names():
    assert len(ALIASES) >= 11
    for name in ALIASES:
        argument = SIGNATURES[name]["weight_decay_mask"]
        assert (argument.kind, argument.default) == (argument.KEYWORD_ONLY, None), name


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("name", ALIASES)
def test_either_name_makes_the_same_updates(name, mask):
    alias = functools.partial(getattr(adam_jax, name), 0.5, weight_decay=1.0)
    first, second = alias(mask=mask), alias(weight_decay_mask=mask)
    assert first == second and hash(first) == hash(second)
    chex.assert_trees_all_equal(update(first), update(second))
    masked, whole, none = update(second), update(alias()), update(alias(weight_decay=0.0))
    decays = mask is not False
    np.testing.assert_array_equal(masked["w"], (whole if decays else none)["w"])
    np.testing.assert_array_equal(masked["b"], none["b"])
    if name != "lamb":  # The norm ratio removes the scale of equal numbers.
        assert not np.array_equal(whole["b"], none["b"])


@pytest.mark.parametrize("name", ALIASES)
def test_both_names_are_an_error(name):
    alias = getattr(adam_jax, name)
    with pytest.raises(ValueError, match="two names of one argument, got both: write mask alone"):
        alias(0.5, mask=True, weight_decay_mask=True)
    with pytest.raises(ValueError, match="expression 'b': mask and weight_decay_mask are two"):
        adam_jax.groups(alias, {"b": {"mask": True}}, learning_rate=0.5, weight_decay_mask=True)


AROUND = {
    "groups": lambda f: functools.partial(adam_jax.groups, f, {"w": {"b1": 0.5}}),
    "with_hyperparams": adam_jax.with_hyperparams,
    "cautious": adam_jax.cautious,
    "scale_batch": lambda f: adam_jax.transfer.scale_batch(f, 4),
    # Optax treats a function as a schedule, under either name.
    "inject_hyperparams": functools.partial(
        optax.inject_hyperparams, static_args=("mask", "weight_decay_mask")
    ),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_what_goes_around_an_alias_passes_either_name_on(around, mask, standard_promotion):
    make = functools.partial(around(adam_jax.adamw), learning_rate=0.5, weight_decay=1.0)
    found = update(make(weight_decay_mask=mask))
    chex.assert_trees_all_equal(found, update(make(mask=mask)))
    assert not np.array_equal(found["b"], update(make())["b"])


def test_a_mask_is_no_number_of_the_state(standard_promotion):
    for wrapper in (optax.inject_hyperparams, adam_jax.with_hyperparams):
        numbers = {"learning_rate": 0.5, "weight_decay": 1.0}
        tx = wrapper(adam_jax.adamw)(**numbers, weight_decay_mask=MASKS["a tree"])
        assert not {"mask", "weight_decay_mask"} & tx.init(PARAMS).hyperparams.keys()


@pytest.mark.parametrize("decay", [0.3, lambda count: 0.3 / (1 + count)])
@pytest.mark.parametrize("mask", [None, {"w": True, "b": False}])
def test_adabelief_decays_as_in_optax(decay, mask, standard_promotion):
    """Like Optax's main branch (0.2.9.dev), whose `adabelief` is this chain."""
    ours = adam_jax.adabelief(0.1, weight_decay=decay, weight_decay_mask=mask)
    theirs = optax.chain(
        optax.scale_by_belief(),
        optax.add_decayed_weights(decay, mask),
        optax.scale_by_learning_rate(0.1),
    )
    results = [trained(tx, PARAMS, through="update", jit=False) for tx in (ours, theirs)]
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-5)


def test_adabelief_without_weight_decay_has_no_entry_for_it():
    tx = adam_jax.adabelief(0.1, weight_decay_mask={"w": True, "b": False})
    assert tx == adam_jax.adabelief(0.1) and len(tx.init(PARAMS)) == 2
    make = adam_jax.with_hyperparams(adam_jax.adabelief)
    assert "weight_decay" not in make(0.1).init(PARAMS).hyperparams
    tx = make(0.1, weight_decay=0.3)
    state = adam_jax.set_hyperparams(tx.init(PARAMS), weight_decay=0.2)
    expected = update(adam_jax.adabelief(0.1, weight_decay=0.2))
    chex.assert_trees_all_close(tx.update(GRADS, state, PARAMS)[0], expected, rtol=1e-6)
