"""Masks contain only booleans; any other leaf raises an error that names its path."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax

PARAMS = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}


def decayed(mask):
    """The leaves that decay in a step with zero gradients."""
    tx = adam_jax.adamw(1.0, weight_decay=0.5, mask=mask)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
    return {name: bool((u != 0).all()) for name, u in updates.items()}


def tree(kernel, bias):
    return {"kernel": kernel, "bias": bias}


@pytest.mark.parametrize(
    "mask",
    [
        tree(True, False),
        tree(np.True_, np.False_),
        tree(np.asarray(True), jnp.asarray(False)),
        lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        lambda params: tree(np.ndim(params["kernel"]) > np.int64(1), jnp.asarray(False)),
        adam_jax.decay_mask,
    ],
)
def test_booleans_of_all_kinds(mask):
    assert decayed(mask) == tree(True, False)


def test_one_for_all():
    assert decayed(True) == decayed(None) == tree(True, True)
    assert decayed(lambda params: False) == tree(False, False)


WRONG = [
    ("bias", "'bias'", "(the whole tree)"),
    (tree("no", True), "'no'", "kernel"),
    (tree(True, 0), "0", "bias"),
    (tree(1.0, True), "1.0", "kernel"),
    (tree(True, lambda params: False), "<function", "bias"),
    (["kernel"], "'kernel'", "0"),
    (tree(np.int64(1), True), "", "kernel"),
]


@pytest.mark.parametrize("function", [False, True], ids=["given", "returned"])
@pytest.mark.parametrize(("mask", "got", "path"), WRONG)
def test_all_else_is_an_error(mask, got, path, function):
    with pytest.raises(ValueError) as error:
        decayed((lambda params: mask) if function else mask)
    message = str(error.value)
    assert message.startswith("mask must have booleans") and f"got {got}" in message
    assert f"at {path!r}: write True or False" in message and "adam_jax.groups(" in message


def test_what_is_given_is_refused_at_once():
    with pytest.raises(ValueError, match="mask"):
        adam_jax.lion(1e-3, mask="bias")
    with pytest.raises(ValueError, match="mask"):
        adam_jax.with_hyperparams(adam_jax.adamw)(1e-3, mask=tree("no", "yes"))


def test_a_mask_of_the_values():
    tx = adam_jax.adamw(1.0, mask=lambda p: jax.tree.map(lambda x: jnp.any(x > 0), p))
    with pytest.raises(ValueError, match="traced value at 'bias': make it of paths, shapes"):
        jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """A module that is callable, as those of Equinox are; a tree of booleans can be one."""

    weight: object

    def __call__(self, x):
        raise AssertionError


def test_a_callable_module_is_a_tree():
    params, zeros = Module(jnp.ones(2)), Module(jnp.zeros(2))
    for flag, expected in ((True, -0.5), (False, 0.0)):
        tx = adam_jax.adamw(1.0, weight_decay=0.5, mask=Module(flag))
        updates, _ = tx.update(zeros, tx.init(params), params)
        np.testing.assert_array_equal(updates.weight, expected)
