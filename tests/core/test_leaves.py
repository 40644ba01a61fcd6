"""Leaves that are unusual in size or in name: axes of length 0, keys with a slash."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import adamw, convert, inspect, transfer
from tests.catalogue.training import trained
from tests.tools.record import MODIFIERS, WRAPPERS

EMPTY = {
    name: jnp.ones(shape) for name, shape in {"a": (3, 0), "b": (0, 4), "c": (2, 0, 4)}.items()
}
PARAMS = EMPTY | {"w": jnp.linspace(-1, 1, 64).reshape(2, 32)}
FORMATS = {
    "means of the last axis": adam_jax.BlockMeans(-1),
    "means of the first axis": adam_jax.BlockMeans(0),
    "one mean": adam_jax.BlockMeans(None),
    "Adam-mini": adam_jax.AdamMini(),
    "factored": adam_jax.Factored(1, 1),
    "codes": adam_jax.Quantized(min_size=0),
    "stochastic": adam_jax.stochastic(jnp.bfloat16),
}
CASES = {
    **{name: lambda f=f: adamw(1e-2, nu_dtype=f) for name, f in FORMATS.items()},
    **{name: lambda f=f: f(adamw(1e-2)) for name, f in MODIFIERS.items()},
    **{name: lambda f=f: f(adamw(1e-2)) for name, f in WRAPPERS.items() if name != "frozen"},
    "lamb": lambda: adam_jax.lamb(1e-2),
    "mars": lambda: adam_jax.mars_adamw(1e-2),
    "schedule free": lambda: adam_jax.schedule_free_adamw(1e-2),
    "layers": lambda: adam_jax.with_layers(adam_jax.lamb(1e-2), ".*"),
    "no average": lambda: adamw(1e-2, b1=0.0, b2=0.0),
    "no eps": lambda: adam_jax.with_hyperparams(adamw)(1e-2, b1=0.0, eps=0.0),
    "groups": lambda: adam_jax.groups(adamw, {"a|b": {"b2": 0.9}}, learning_rate=1e-2),
    "parts": lambda: adam_jax.groups({"a|b": adamw(1e-2), ".*": adam_jax.lion(1e-3)}),
}


@pytest.mark.parametrize(
    "params", [PARAMS, pytest.param(EMPTY, marks=pytest.mark.slow)], ids=["some", "all"]
)
@pytest.mark.parametrize("case", CASES)
def test_axes_of_length_0(case, params, standard_promotion):
    moved, _ = trained(CASES[case](), params, lambda *_: params, 2, jit=False)
    assert jax.tree.map(jnp.shape, moved) == jax.tree.map(jnp.shape, params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(moved))
    if "w" in params and "accumulate" not in case and case != "recipe":
        assert (moved["w"] != params["w"]).any()


@pytest.mark.parametrize("case", [name for name in CASES if name != "optax.chain"])
def test_no_nan_or_infinity_is_made_of_zero_gradients(case, standard_promotion):
    """Users debug with these flags, which look at each operation of a step outside of programs."""
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    with jax.debug_nans(True), jax.debug_infs(True):
        trained(CASES[case](), PARAMS, lambda *_: zeros, 2, jit=False)


def test_reports_of_axes_of_length_0():
    for params in (PARAMS, EMPTY):
        tx = adam_jax.telemetry(adamw(1e-2, mu_dtype=jnp.int8), 1)
        assert str(inspect.report(params, tx)) and str(inspect.advise(params, tx))
        assert transfer.mup_table(params, params).rows
        jax.tree.map(np.testing.assert_array_equal, transfer.mup_init(params, params), params)


SLASHES = {"a/b": 2 * jnp.ones(2), "a": {"b": jnp.ones(2)}, "c": jnp.ones((2, 2))}


def test_keys_with_slashes_do_not_hide_each_other(standard_promotion):
    named = convert.params_to_named(SLASHES)
    assert len(named) == 3
    back = convert.params_from_named(named, SLASHES)
    jax.tree.map(np.testing.assert_array_equal, back, SLASHES)
    tx = adamw(1e-2, mu_dtype=jnp.bfloat16)
    _, state = optax.adamw(1e-2).update(SLASHES, optax.adamw(1e-2).init(SLASHES), SLASHES)
    mu = convert.from_optax(state, SLASHES, tx)[0].mu
    jax.tree.map(lambda x, p: np.testing.assert_allclose(x, 0.1 * p, rtol=1e-2), mu, SLASHES)
    assert len(inspect.advise(SLASHES, tx).leaves) == len(inspect.report(SLASHES, tx).on_tpus) == 3
    small = jax.tree.map(lambda p: p / 4, SLASHES)
    scaled = transfer.mup_init(SLASHES, small)
    jax.tree.map(np.testing.assert_array_equal, scaled, small)
    with pytest.raises(ValueError, match=r"matches nothing.*\['a'\]\['b'\]"):
        adam_jax.groups(adamw, {"a/b": {"b2": 0.9}}, learning_rate=1e-2).init(SLASHES)


@pytest.mark.parametrize(
    "tx",
    [
        optax.masked(adamw(1e-2), {"w": True, "i": False}),
        optax.MultiSteps(adamw(1e-2), 2),
        optax.adamw(1e-2),
        optax.partition({"a": adamw(1e-2), "b": optax.set_to_zero()}, {"w": "a", "i": "b"}),
    ],
    ids=["masked", "MultiSteps", "adamw", "partition"],
)
def test_reports_of_integers_inside_optax(tx, standard_promotion):
    params = {"w": jnp.ones((4, 4)), "i": jnp.arange(3)}
    report = inspect.report(params, tx)
    assert report.model.gradients == 64 and report.model.size == 19
    assert len(inspect.advise(params, tx).leaves) == 2
