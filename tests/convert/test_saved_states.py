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

pytestmark = pytest.mark.usefixtures("standard_promotion")

X = np.sin(np.arange(4.0 * 128)).reshape(4, 128).astype(np.float32)


def small(dtype, **rest):
    return adamw(1e-2, mu_dtype=dtype, nu_dtype=dtype, **rest)


def schedule(count):
    return 1e-2 / (1 + count)


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
    """Saves a state with Orbax and restores it into the structure of `like`."""
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


def same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()


NETWORK = flax.linen.Dense(64, param_dtype=jnp.bfloat16, dtype=jnp.float32)


def train_state(name):
    params = NETWORK.init(jax.random.key(0), X)
    return TrainState.create(apply_fn=NETWORK.apply, params=params, tx=STATES[name])


@jax.jit
def linen_step(state, x):
    grads = jax.grad(lambda p: jnp.mean(state.apply_fn(p, x) ** 2))(state.params)
    return state.apply_gradients(grads=grads)


def moving(state):
    return state.params, state.opt_state


@pytest.mark.slow
@pytest.mark.parametrize("name", STATES)
def test_linen_train_state(name, tmp_path):
    states = [train_state(name)]
    for _ in range(8):
        states.append(linen_step(states[-1], X))
    stopped = states[3]  # In the middle of accumulation.
    for way in [by_flax, by_orbax] if name in BY_FLAX else [by_orbax]:
        state = way(stopped, train_state(name), tmp_path)
        assert int(state.step) == 3
        same(moving(state), moving(stopped))
        state = jax.tree.map(jnp.asarray, state)
        for _ in range(5):
            state = linen_step(state, X)
        same(moving(state), moving(states[8]))


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
    restored = by_orbax(nnx.state(pair), nnx.state(again), tmp_path)
    nnx.update(again, restored)
    for _ in range(5):
        nnx_step(*pair, X)
        nnx_step(*again, X)
    same(nnx.state(again), nnx.state(pair))


@pytest.mark.peers
@pytest.mark.parametrize("name", ["adamw", "MultiSteps"])
def test_equinox(name, tmp_path):
    if not importlib.util.find_spec("equinox"):
        pytest.skip("Equinox is in a group of its own: make test-peers")
    import equinox  # pyright: ignore[reportMissingImports]

    tx, model = STATES[name], equinox.nn.Linear(128, 64, key=jax.random.key(0))

    @equinox.filter_jit
    def step(model, state):
        loss = equinox.filter_grad(lambda m: jnp.mean(jax.vmap(m)(X) ** 2))
        updates, state = tx.update(loss(model), state, equinox.filter(model, equinox.is_array))
        return equinox.apply_updates(model, updates), state

    start = (model, tx.init(equinox.filter(model, equinox.is_array)))
    stopped = start
    for _ in range(3):
        stopped = step(*stopped)
    for way in (by_equinox, by_orbax):
        expected, state = stopped, way(stopped, start, tmp_path)
        for _ in range(5):
            expected, state = step(*expected), step(*state)
        same(state, expected)


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

    after = optax.tree.map_params(tx, mapped, state)
    same(after, state)
    assert (64, 128) in seen and () in seen
    empty = tx.init({})
    update = jax.jit(lambda state: tx.update({}, state, {})[1])
    assert jax.tree.structure(update(empty)) == jax.tree.structure(empty)
