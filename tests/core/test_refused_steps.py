"""A rejected step changes only counters: cases of the record, stacked layers, state on the host."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adam_jax
from tests.catalogue import few
from tests.tools import record

adamw = functools.partial(adam_jax.adamw, 1e-2, mu_dtype=record.SMALL_BLOCKS)
# Modifiers refuse some members. `with_hyperparams` shows the numbers of the rejected step.
LEFT_OUT = (*record.MODIFIERS, "with_hyperparams")
CASES = {
    name: make
    for name, make in record.cases()
    if not name.startswith(LEFT_OUT)
    and not (name.endswith("int4 nu") and name.startswith(("amsgrad", "adamax")))  # A maximum.
}
MORE = {
    "with_layers": lambda: adam_jax.with_layers(adamw(), "kernel"),
    "offload": lambda: adam_jax.sharding.offload(adamw()),
    "block means": lambda: adamw(nu_dtype=adam_jax.BlockMeans(0)),
}
MODIFIED = {name: lambda f=f: f(adamw()) for name, f in record.MODIFIERS.items()}
QUICK = [name for name in CASES if name.startswith("adamw,") or name.endswith("(adamw, int8)")]
EVERY = [*QUICK, *MORE, *MODIFIED, *(x for x in [*CASES][::6] if x not in QUICK)]
OF_16_BITS = ("stochastic_rounding", "master_residual", "recipe")


def steps(make, dtype, bad):
    """Parameters and inner state before and after the second step, a rejected one if `bad`."""
    tx = adam_jax.skip_nonfinite(make())
    random = np.random.default_rng(0)
    params = {k: jnp.asarray(random.normal(size=s), dtype) for k, s in record.SHAPES.items()}
    state, step = tx.init(params), jax.jit(lambda g, s, p: adam_jax.step(tx, g, s, p))
    with jax.numpy_dtype_promotion("standard"):  # For Optax's own code.
        params, state = step(jax.tree.map(jnp.cos, params), state, params)
        grads = params | {"kernel": params["kernel"].at[0, 5].set(bad)}
        new_params, new_state = step(grads, state, params)
    refused = int(new_state.total_notfinite) - int(state.total_notfinite)
    assert refused == (not np.isfinite(bad))
    return (params, state.inner_state), (new_params, new_state.inner_state)


@few("name", EVERY, [*QUICK, *MORE])
def test_a_rejected_step_changes_nothing(name):
    dtype = jnp.bfloat16 if name.startswith(OF_16_BITS) else jnp.float32
    before, after = steps((CASES | MORE | MODIFIED)[name], dtype, np.nan)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for (path, x), y in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", ["adamw, int8", "recipe(adamw, int8)"])
def test_a_step_that_is_taken_changes_parameters(name):
    (before, _), (after, _) = steps(CASES[name], jnp.float32, 1.0)
    assert (before["kernel"] != after["kernel"]).any()
