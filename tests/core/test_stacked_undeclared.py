"""A warning for leaves that look as if they held several layers without `with_layers`."""

import warnings

import jax
import jax.numpy as jnp
import pytest

import adam_jax
from adam_jax.core.stacked import looks_stacked

STACKED = {"blocks": {"attention": {"kernel": (12, 64, 3, 8)}, "norm": {"scale": (12, 64)}}}
NOT_STACKED = {
    "a square kernel": {"dense": {"kernel": (64, 64), "bias": (64,)}},
    "norms": {"scale": (64,), "bias": (64,)},
    "a convolution": {"conv": {"kernel": (3, 3, 8, 16), "bias": (16,)}},
    "attention": {"query": {"kernel": (64, 8, 8), "bias": (8, 8)}, "out": {"kernel": (8, 8, 64)}},
    "a gated layer": {"gate": (64, 256), "up": (64, 256), "down": (256, 64)},
    "embeddings": {"tokens": (1000, 64), "positions": (128, 64)},
    "one leaf": {"kernel": (12, 64, 64)},
}


def _arrays(shapes):
    return jax.tree.map(jnp.ones, shapes, is_leaf=lambda x: isinstance(x, tuple))


def test_what_looks_stacked_is_said():
    params = _arrays(STACKED | {"head": {"kernel": (64, 10)}})
    assert looks_stacked(params) == {"blocks": 12}
    with pytest.warns(UserWarning, match=r"with_layers\(adamw\(.*'blocks/\.\*'\)"):
        adam_jax.decay_mask(params)
    tx = adam_jax.adamw(1e-3)
    report = adam_jax.inspect.report(params, tx)
    assert report.undeclared == {"blocks": 12}
    assert "with_layers(tx, 'blocks/.*')" in str(report)
    declared = adam_jax.inspect.report(params, adam_jax.with_layers(tx, "blocks/.*"))
    assert declared.undeclared == {}
    hidden = adam_jax.with_hyperparams(adam_jax.with_layers(adam_jax.adamw, "blocks/.*"))(1e-3)
    assert adam_jax.inspect.report(params, hidden).undeclared == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tx = adam_jax.with_layers(adam_jax.adamw(1e-3, mask=adam_jax.decay_mask), "blocks/.*")
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize("name", NOT_STACKED)
def test_what_does_not_look_stacked(name):
    assert looks_stacked(_arrays(NOT_STACKED[name])) == {}


def test_a_whole_tree_may_look_stacked():
    assert looks_stacked(_arrays(STACKED["blocks"])) == {"": 12}
