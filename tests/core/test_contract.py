"""The contract of a transformation that Optax, JAX and Flax rely on."""

import inspect

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import adam_jax
from tests.catalogue import (
    MEMBERS,
    every_elementwise,
    every_kind_of_state,
    every_twin,
    of_each_kind,
    slowly_with,
)
from tests.catalogue.exported import train_from_the_file
from tests.catalogue.training import trained

pytestmark = pytest.mark.usefixtures("standard_promotion")

WRAPPERS = {
    "chain": lambda tx: optax.chain(optax.clip(1.0), tx, optax.scale(1.0)),
    "masked": lambda tx: optax.masked(tx, {"a": True, "b": [False, True]}),
    "multi_transform": lambda tx: optax.multi_transform(
        {"ours": tx, "sgd": optax.sgd(0.1)}, {"a": "ours", "b": ["sgd", "ours"]}
    ),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
}


def tree():
    return {"a": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "b": [jnp.ones(5), jnp.array(2.0)]}


def gradients(params, *_):
    return jax.tree.map(lambda x: 2 * (x - 0.5), params)


@slowly_with(
    "wrap",
    [
        (m, wrap)
        for m in of_each_kind(MEMBERS)
        for wrap in (WRAPPERS if m.name == "adamw" else ["multi_transform"])
    ],
    quick=["adamw"],
)
def test_inside_optax_wrappers(member, wrap):
    """Our member in a wrapper moves the parameters as Optax's does in the same wrapper."""
    results = [
        trained(WRAPPERS[wrap](alias(1e-2)), tree(), gradients, 4, "update")
        for alias in (member.alias, member.twin.alias)
    ]
    params, states = zip(*results, strict=True)
    chex.assert_trees_all_close(*params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal_structs(*states)


@every_kind_of_state
def test_injected_hyperparams(member):
    """Changing a rate, a beta or a schedule in the state has the same effect as in Optax."""
    results = []
    for alias in (member.alias, member.twin.alias):
        tx = optax.inject_hyperparams(alias)(learning_rate=lambda count: 1e-2 / (count + 1), b1=0.8)
        params = tree()
        state = tx.init(params)
        for b2 in (0.99, 0.95):
            state.hyperparams["b2"] = jnp.asarray(b2)
            updates, state = jax.jit(tx.update)(gradients(params), state, params)
            params = optax.apply_updates(params, updates)
        results.append((params, state))
    params, states = zip(*results, strict=True)
    chex.assert_trees_all_close(*params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal_structs(*states)


@every_twin
@pytest.mark.smoke
def test_state_is_optaxs_own_and_moves_both_ways(member):
    """A checkpoint of either library continues in the other."""
    ours, theirs = (alias(1e-2) for alias in (member.alias, member.twin.alias))
    params = tree()
    grads = gradients(params)
    states = [tx.init(params) for tx in (ours, theirs)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    for first, second in ((ours, theirs), (theirs, ours)):
        _, state = first.update(grads, first.init(params), params)
        crossed, _ = second.update(grads, state, params)
        straight, _ = first.update(grads, state, params)
        chex.assert_trees_all_close(crossed, straight, rtol=2e-5)
    chex.assert_trees_all_equal_shapes_and_dtypes(states[0], states[1])


@every_twin
def test_scheduled_state_is_optaxs_own(member):
    keywords = {}
    if member.needs_params:
        keywords = {"weight_decay": lambda count: 0.1, "mask": {"a": True, "b": False}}
    ours, theirs = (a(lambda count: 1e-2, **keywords) for a in (member.alias, member.twin.alias))
    params = tree()
    chex.assert_trees_all_equal_structs(ours.init(params), theirs.init(params))
    _, state = ours.update(params, ours.init(params), params)
    chex.assert_trees_all_equal_structs(state, theirs.init(params))


@every_kind_of_state
def test_map_params_finds_the_slots(member):
    tx = member.alias(1e-2)
    state = optax.tree.map_params(tx, lambda x: x + 1.0, tx.init(tree()))
    start = member.moments(tx.init(tree()))
    for slot, moment in member.moments(state).items():
        chex.assert_trees_all_equal(moment, jax.tree.map(lambda x: x + 1.0, start[slot]))
    assert all(count == 0 for count in member.counts(state))


@every_elementwise
def test_donation_leaves_nothing_behind(member):
    """A step is in place: no temporaries except scalars, every array aliased with its new value.

    A member that reads the old accumulator after its update copies that of one leaf, as in Optax.
    """
    tx = member.alias(1e-2)
    params = jnp.ones(100_000)
    state = tx.init(params)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < (member.reads_the_old + 0.01) * params.nbytes
    assert memory.alias_size_in_bytes >= (1 + len(member.slots)) * params.nbytes


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
@every_kind_of_state
def test_the_step_exported_for_three_platforms_goes_on_from_the_file(member, dtype):
    train_from_the_file(member.alias(1e-2), jax.tree.map(lambda p: p.astype(dtype), tree()))


@every_kind_of_state
def test_flax_nnx_optimizer_traces_equal_optimizers_once(member):
    from flax import nnx

    traces = []

    @nnx.jit
    def train(model, optimizer, x):
        traces.append(1)
        loss, grads = nnx.value_and_grad(lambda m: jnp.mean(m(x) ** 2))(model)
        optimizer.update(model, grads)
        return loss

    losses = []
    for _ in range(2):
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        tx = member.alias(1e-2)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        losses.append([float(train(model, optimizer, jnp.ones((4, 3)))) for _ in range(3)])
    assert losses[0] == losses[1] == sorted(losses[0], reverse=True)
    assert len(traces) == 1


@every_twin
def test_arguments_are_optaxs_in_its_order_followed_by_ours(member):
    """Ours are keyword-only. tests/docs/test_migrating.py compares the defaults."""
    functions = member.function, getattr(adam_jax, member.scale_by)
    for ours, theirs in zip(functions, member.twin.without_keywords, strict=True):
        our, their = (inspect.signature(f).parameters for f in (ours, theirs))
        positional = [name for name, p in their.items() if p.kind != p.KEYWORD_ONLY]
        assert list(our)[: len(positional)] == positional
        assert all(our[x].kind == our[x].KEYWORD_ONLY for x in list(our)[len(positional) :])
        assert set(their) <= set(our)
