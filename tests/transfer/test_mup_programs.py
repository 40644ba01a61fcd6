"""`mup` in compiled programs: as an argument, under vmap, exported, built inside jit, with Flax."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

import adam_jax
from adam_jax.transfer import mup
from tests.transfer.blocks import (
    ALPHA,
    AROUND,
    BASE,
    PARAMS,
    adamw,
    assert_close,
    assert_equal,
    gradients,
    schedule,
    stepped,
)


def test_as_an_argument_of_a_program_another_learning_rate_is_no_other_program():
    traced = []

    @jax.jit
    def step(tx, grads, state, params):
        traced.append(1)
        return adam_jax.step(tx, grads, state, params)

    grads = gradients(PARAMS, 0)
    for rate in (1e-2, 1e-3):
        tx = adamw(jnp.float32(rate))
        ours, _ = step(tx, grads, tx.init(PARAMS), PARAMS)
        assert_close(ours, stepped(adamw(rate), PARAMS, 1)[0])
    assert len(traced) == 1


def test_many_learning_rates_by_vmap():
    rates = jnp.array([1e-3, 1e-2])
    grads = gradients(PARAMS, 0)

    @jax.vmap
    def train(rate):
        tx = adamw(rate, weight_decay=0.1)
        return adam_jax.step(tx, grads, tx.init(PARAMS), PARAMS)[0]

    many = train(rates)
    for k, rate in enumerate(rates):
        one, _ = stepped(adamw(float(rate), weight_decay=0.1), PARAMS, 1)
        assert_close(jax.tree.map(lambda x, k=k: x[k], many), one)


def test_a_step_as_a_file():
    tx = adamw(schedule)
    start, treedef = jax.tree.flatten((PARAMS, tx.init(PARAMS)))

    @jax.jit
    def step(leaves):
        params, state = jax.tree.unflatten(treedef, leaves)
        return jax.tree.leaves(adam_jax.step(tx, gradients(params, 0), state, params))

    file = jax.export.export(step)(start).serialize()
    assert_equal(jax.export.deserialize(file).call(start), step(start))


def test_made_inside_a_program():
    base = jax.eval_shape(lambda: BASE)

    @jax.jit
    def step(grads, params):
        tx = mup(adam_jax.adamw, base, params, alpha=ALPHA)(1e-2)
        return adam_jax.step(tx, grads, tx.init(params), params)[0]

    assert_close(step(gradients(PARAMS, 0), PARAMS), stepped(adamw(1e-2), PARAMS, 1)[0])


class Model(nnx.Module):
    def __init__(self, width):
        self.first = nnx.Linear(3, width, rngs=nnx.Rngs(0))
        self.middle = nnx.Linear(width, width, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.middle(jnp.tanh(self.first(x)))


def test_the_optimizer_of_nnx():
    base = nnx.eval_shape(lambda: Model(4))
    model = Model(16)
    before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    tx = mup(adam_jax.adam(1e-2, eps=0.0), nnx.state(base, nnx.Param), nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = nnx.grad(lambda m: jnp.mean(m(jnp.ones((2, 3))) ** 2))(model)
    optimizer.update(model, grads)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    moved = jax.tree.map(lambda a, b: float(jnp.median(jnp.abs(a - b))), after, before)
    expected = {"first": {"kernel": 1e-2, "bias": 1e-2}, "middle": {"kernel": 2.5e-3, "bias": 1e-2}}
    assert_close(moved, expected, rtol=1e-4)


def test_steps_of_a_schedule_are_one_program():
    tx = AROUND["everything"](adamw(schedule, weight_decay=schedule))
    step = jax.jit(functools.partial(adam_jax.step, tx))
    params, state = PARAMS, tx.init(PARAMS)
    for t in range(3):
        params, state = step(gradients(params, t), state, params)
    assert step._cache_size() == 1
