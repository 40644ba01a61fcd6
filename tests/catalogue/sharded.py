"""A small model trained on several devices, and the transformations that the sharding tests use."""

import itertools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import adam_jax

CHAIN = adam_jax.chain(
    adam_jax.clip_by_global_norm(1.0), adam_jax.adamw(1e-2), adam_jax.ema_params(0.9)
)
TRANSFORMATIONS = {
    "adamw": adam_jax.adamw(1e-2),
    "8 bits": adam_jax.adamw(1e-2, mu_dtype=jnp.int8, nu_dtype=jnp.int8),
    "4 bits, residual": adam_jax.master_residual(
        adam_jax.adamw(1e-2, mu_dtype=jnp.int4, nu_dtype=jnp.int4)
    ),
    "factored": adam_jax.adamw(1e-2, nu_dtype=adam_jax.Factored()),
    "block means": adam_jax.adamw(1e-2, nu_dtype=adam_jax.AdamMini()),
    "lamb": adam_jax.lamb(1e-2),
    "everything": adam_jax.accumulate(adam_jax.skip_nonfinite(CHAIN), every=2),
    "optax.adamw": optax.adamw(1e-2),
}


def on_alternating_axes(names: Iterable[str]) -> list[tuple[str, AxisType]]:
    """Each name with one of the two kinds of axes, in turn."""
    return list(zip(names, itertools.cycle([AxisType.Auto, AxisType.Explicit]), strict=False))


QUICK = ("8 bits", "lamb", "everything")
every_transformation = pytest.mark.parametrize(
    "tx",
    [
        pytest.param(tx, id=name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name, tx in TRANSFORMATIONS.items()
    ],
)


def parameters(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "in": jax.random.normal(keys[0], (256, 512)) / 16,
        "out": jax.random.normal(keys[1], (512, 64)) / 23,
        "bias": jnp.zeros(64),
    }
    return jax.tree.map(lambda x: x.astype(dtype), params)


def loss(params, x):
    return jnp.mean((jnp.tanh(x @ params["in"]) @ params["out"] + params["bias"]) ** 2)


def on(mesh, tree, *spec):
    """The tree on the devices of a mesh; whole on each, without a spec."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*spec)))


def assert_placed(state, shardings):
    for x, where in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        assert x.sharding.is_equivalent_to(where, x.ndim)
        assert x.sharding.memory_kind == where.memory_kind


def trained(tx, params, x, through_step=True):
    """Parameters, state and program after 5 steps on the same batch."""
    state = tx.init(params)

    @jax.jit(donate_argnums=(0, 1))
    def train_step(params, state, x):
        grads = jax.grad(loss)(params, x)
        if through_step:
            return adam_jax.step(tx, grads, state, params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    program = train_step.lower(params, state, x).compile().as_text()
    params = jax.tree.map(jnp.copy, params)
    for _ in range(5):
        params, state = train_step(params, state, x)
    return params, state, program
