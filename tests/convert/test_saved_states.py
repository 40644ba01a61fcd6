"""Runs that are saved, restored and continued have the bits of an uninterrupted run.

With Orbax, through Linen's TrainState, nnx.Optimizer and Equinox, and with `flax.serialization`.
"""

import importlib.util

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState

import adam_jax
from adam_jax import adamw
from tests.catalogue.runs import assert_same_bits, schedule

pytestmark = pytest.mark.usefixtures("standard_promotion")

X = np.sin(np.arange(4.0 * 128)).reshape(4, 128).astype(np.float32)


def small(dtype, **rest):
    return adamw(1e-2, mu_dtype=dtype, nu_dtype=dtype, **rest)


STATES = {
    "adamw": adamw(schedule),
    "8 bits": small(jnp.int8),
    "4 bits": small(jnp.int4),
    "stochastic": small(adam_jax.stochastic(jnp.bfloat16)),
    "factored": adamw(1e-2, nu_dtype=adam_jax.Factored(32, 32)),
    "block means": adamw(1e-2, nu_dtype=adam_jax.AdamMini()),
    "MultiSteps": optax.MultiSteps(small(jnp.int8), 2).gradient_transformation(),
    "inject_hyperparams": optax.inject_hyperparams(adamw, hyperparam_dtype=jnp.float32)(schedule),
    "around": adam_jax.accumulate(adam_jax.telemetry(adamw(schedule), every=2), 2),
    "residual": adam_jax.master_residual(small(jnp.int8), bits=8),
    "groups": adam_jax.groups({".*kernel": optax.contrib.muon(1e-2), ".*": small(jnp.int8)}),
}
# Their moments are plain arrays.
BY_FLAX = ("adamw", "inject_hyperparams", "around")


def by_orbax(tree, like, folder):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "saved", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "saved", like)


def by_flax(tree, like, folder):
    (folder / "saved.msgpack").write_bytes(serialization.to_bytes(tree))
    return serialization.from_bytes(like, (folder / "saved.msgpack").read_bytes())


def by_equinox(tree, like, folder):
    import equinox  # pyright: ignore[reportMissingImports]

    equinox.tree_serialise_leaves(folder / "saved.eqx", tree)
    return equinox.tree_deserialise_leaves(folder / "saved.eqx", like)


NETWORK = flax.linen.Dense(64, param_dtype=jnp.bfloat16, dtype=jnp.float32)


def train_state(name):
    params = NETWORK.init(jax.random.key(0), X)
    return TrainState.create(apply_fn=NETWORK.apply, params=params, tx=STATES[name])


@jax.jit
def linen_step(state):
    grads = jax.grad(lambda p: jnp.mean(state.apply_fn(p, X) ** 2))(state.params)
    return state.apply_gradients(grads=grads)


def check_continues(step, start, ways, folder):
    stopped = start
    for _ in range(3):  # Stops in the middle of accumulation.
        stopped = step(stopped)
    for way in ways:
        expected, state = stopped, jax.tree.map(jnp.asarray, way(stopped, start, folder))
        assert_same_bits(state, stopped)
        for _ in range(5):
            expected, state = step(expected), step(state)
        assert_same_bits(state, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", STATES)
def test_linen_train_state(name, tmp_path):
    ways = [by_flax, by_orbax] if name in BY_FLAX else [by_orbax]
    check_continues(linen_step, train_state(name), ways, tmp_path)


@nnx.jit
def nnx_step(model, optimizer, x):
    grads = nnx.grad(lambda m: jnp.mean(m(x) ** 2))(model)
    optimizer.update(model, grads)


def nnx_pair(name):
    model = nnx.Linear(128, 64, rngs=nnx.Rngs(0))
    return model, nnx.Optimizer(model, STATES[name], wrt=nnx.Param)


@pytest.mark.parametrize("name", ["8 bits", "inject_hyperparams", "groups"])
def test_nnx_optimizer(name, tmp_path):
    pair, again = nnx_pair(name), nnx_pair(name)
    for _ in range(3):
        nnx_step(*pair, X)
    nnx.update(again, by_orbax(nnx.state(pair), nnx.state(again), tmp_path))
    for _ in range(5):
        nnx_step(*pair, X)
        nnx_step(*again, X)
    assert_same_bits(nnx.state(again), nnx.state(pair))


@pytest.mark.peers
@pytest.mark.parametrize("name", ["adamw", "MultiSteps"])
def test_equinox(name, tmp_path):
    if not importlib.util.find_spec("equinox"):
        pytest.skip("Equinox is in a group of its own: make test-peers")
    import equinox  # pyright: ignore[reportMissingImports]

    tx, model = STATES[name], equinox.nn.Linear(128, 64, key=jax.random.key(0))

    @equinox.filter_jit
    def step(both):
        model, state = both
        loss = equinox.filter_grad(lambda m: jnp.mean(jax.vmap(m)(X) ** 2))
        updates, state = tx.update(loss(model), state, equinox.filter(model, equinox.is_array))
        return equinox.apply_updates(model, updates), state

    start = (model, tx.init(equinox.filter(model, equinox.is_array)))
    check_continues(step, start, (by_equinox, by_orbax), tmp_path)


def test_flax_does_not_write_codes():
    state = small(jnp.int8).init({"w": jnp.ones((64, 128))})
    with pytest.raises(TypeError, match="Blocks"):
        serialization.to_bytes(state)


@pytest.mark.parametrize("name", ["around", "inject_hyperparams"])
def test_map_params_goes_through(name):
    tx, params = STATES[name], {"w": jnp.ones((64, 128)), "b": jnp.ones(3), "c": jnp.ones(())}
    state = tx.init(params)
    seen = []

    def mapped(x):
        seen.append(x.shape)
        return x

    assert_same_bits(optax.tree.map_params(tx, mapped, state), state)
    assert (64, 128) in seen and () in seen
    empty = tx.init({})
    after = jax.eval_shape(tx.update, {}, empty, {})[1]
    assert jax.tree.structure(after) == jax.tree.structure(empty)
