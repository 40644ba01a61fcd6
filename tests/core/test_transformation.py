"""A transformation is a value and a pytree: compared, hashed, copied, traced, not retraced."""

import copy
import pickle
import re

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import adam_jax
from tests.catalogue import every_kind_of_state, every_member, every_member_slowly


def test_three_adams_trace_once():
    traces = []

    @jax.jit
    def train(tx, params):
        traces.append(1)
        state = tx.init(params)
        return adam_jax.step(tx, params, state, params)[0]

    for rate, *numbers in (
        (0.1, 0.9, 0.999, 1e-8),
        (0.2, 0.8, 0.99, 1e-6),
        (0.3, 0.5, 0.5, 1e-10),
        (0.4, 0.5, 0.5, 0),
    ):
        moved = train(adam_jax.adam(rate, *numbers), jnp.ones(()))
        assert float(moved) == pytest.approx(1 - rate, rel=1e-5)
    # Without eps a divisor may be 0, which takes a select: another program.
    assert len(traces) == 2


@every_member
@pytest.mark.smoke
def test_equal_settings_make_equal_transformations(member):
    first, second, other = (member.alias(rate) for rate in (0.1, 0.1, 0.2))
    assert first == second and hash(first) == hash(second)
    assert first != other


@every_member
def test_repr_is_the_call_that_makes_it(member):
    name = member.name.partition("-")[0]
    tx = getattr(adam_jax, name)(learning_rate=0.1)
    text = repr(tx)
    assert text.startswith(f"{name}(learning_rate=0.1, ") and len(text) < 130
    assert member.in_optax is False or eval(text, vars(adam_jax)) == tx


def test_repr_of_a_nesting():
    adamw = "adamw(learning_rate=0.1, b1=0.9, b2=0.999, eps=1e-08, weight_decay=0.0001)"
    tx = adam_jax.chain(adam_jax.clip_by_global_norm(1.0), adam_jax.cautious(adam_jax.adamw)(0.1))
    inside = adamw.replace("adamw", "cautious(adamw)")
    assert repr(tx) == f"chain(clip_by_global_norm(max_norm=1.0), {inside})"
    grouped = adam_jax.groups(adam_jax.adamw, {"b": dict(learning_rate=0.3)}, learning_rate=0.1)
    assert repr(grouped) == f"groups({adamw.replace('=0.1', '=0.3', 1)}, {adamw})"
    assert repr(adam_jax.chain(optax.sgd(1.0), tx)).startswith("chain(chain, chain(clip")


@every_member
def test_copies(member):
    tx = member.alias(0.1)
    params = jnp.array([1.0, -2.0])
    for copied in (pickle.loads(pickle.dumps(tx)), copy.deepcopy(tx), jax.tree.map(float, tx)):
        assert copied == tx
        updates = (x.update(params, x.init(params), params) for x in (copied, tx))
        chex.assert_trees_all_equal(*updates)


@pytest.mark.bits
@every_member_slowly
def test_a_traced_number_is_as_exact_as_a_constant(member):
    """1-b and log b are leaves, computed in float64 before rounding.

    A traced float32 b2 would add a relative error of 1.3e-5 to every increment of nu.
    """
    params = jnp.linspace(-2.0, 2.0, 1000)

    def five_steps(tx, params):
        def step(carry, _):
            params, state = carry
            return adam_jax.step(tx, jnp.sin(params), state, params), None

        return jax.lax.scan(step, (params, tx.init(params)), length=5)[0][0]

    tx = member.alias(1e-2, **{"b2" if member.has("b2") else "b1": 0.9995})
    traced, constant = jax.jit(five_steps), jax.jit(five_steps, static_argnums=0)
    chex.assert_trees_all_close(traced(tx, params), constant(tx, params), rtol=0, atol=3e-7)


@pytest.mark.bits
@every_kind_of_state
def test_a_population_under_vmap_equals_its_members(member):
    params = jnp.linspace(-2.0, 2.0, 10)
    rates = jnp.array([1e-3, 1e-2, 0.1])

    def train(rate):
        tx = member.alias(rate)
        return adam_jax.step(tx, jnp.cos(params), tx.init(params), params)[0]

    together = jax.jit(jax.vmap(train))(rates)
    alone = jnp.stack([jax.jit(train)(rate) for rate in rates])
    chex.assert_trees_all_close(together, alone, rtol=1e-6)


def test_one_shape_is_lowered_once_in_a_large_tree():
    """As a chunk of √n / 2 leaves, called 2√n times; XLA would have to inline anything else."""
    params = [jnp.ones((20, 10))] * 107
    tx = adam_jax.adamw(1e-3)
    text = jax.jit(tx.update).lower(params, tx.init(params), params).as_text()
    functions = re.findall(r"func.func private @(leaves_step\w*)", text)
    assert functions == ["leaves_step", "leaves_step_0"]  # 5 leaves, 1 leaf.
    assert text.count("call @leaves_step(") == 21 and text.count("call @leaves_step_0(") == 2
    assert text.count("stablehlo.sqrt") == 5 + 1


def test_rules_of_the_same_fields_are_different_structures():
    """JAX treats such dataclasses as equal, and could run the program of one for the other."""
    adam, yogi = adam_jax.scale_by_adam(), adam_jax.scale_by_yogi()
    assert jax.tree.structure(adam) != jax.tree.structure(yogi)
