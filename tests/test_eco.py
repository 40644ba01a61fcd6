"""ECO: rounding errors go into the first moment, which pays them back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from tests.test_weights import MASK, SCHEDULE, every_way, gradients, params_of, train

pytestmark = pytest.mark.bits


def least_squares(tx, dtype, turns=400):
    """The loss at the end, from weights near the goal, at a rate that is small for bfloat16."""
    goal = jax.random.normal(jax.random.key(0), (64, 32))
    x = jax.random.normal(jax.random.key(1), (128, 64))
    start = (goal + jax.random.normal(jax.random.key(2), goal.shape) / 2).astype(jnp.bfloat16)

    def loss(w):
        return jnp.mean((x @ (w.astype(jnp.float32) - goal)) ** 2)

    def body(carry, _):
        params, state = carry
        return adam_jax.step(tx, jax.grad(loss)(params), state, params), None

    carry = start.astype(dtype), tx.init(start.astype(dtype))
    (params, _), _ = jax.jit(lambda c: jax.lax.scan(body, c, length=turns))(carry)
    return float(loss(params))


def test_eco_pays_errors_back():
    """Nearer to float32 than rounding alone, and without any memory for it."""
    adamw = adam_jax.adamw(1e-3, weight_decay=1e-4)
    eco = adam_jax.eco(adamw)
    exact = least_squares(adamw, jnp.float32)
    stuck = least_squares(adamw, jnp.bfloat16)
    paid = least_squares(eco, jnp.bfloat16)
    by_chance = least_squares(adam_jax.stochastic_rounding(adamw), jnp.bfloat16)
    assert stuck > 1.5 * exact
    assert abs(paid - exact) < 0.3 * abs(by_chance - exact) + 1e-4 * exact
    params = params_of()
    assert jax.tree.structure(eco.init(params)) == jax.tree.structure(adamw.init(params))


def test_eco_changes_nothing_where_nothing_is_lost():
    params = params_of(jnp.float32)
    adamw = adam_jax.adamw(1e-2, weight_decay=0.1)
    expected = train(adamw, params, turns=5)
    jax.tree.map(
        np.testing.assert_array_equal, train(adam_jax.eco(adamw), params, turns=5), expected
    )


def test_eco_pays_exactly_what_was_lost():
    """With no gradient any more, the weights drift by the error of the last rounding, and stop."""
    adam = adam_jax.adam(1e-2, b1=0.5, b2=0.999999)
    tx, params = adam_jax.eco(adam), jnp.full((1000,), 1.003, jnp.bfloat16)
    state = adam.init(jnp.zeros(1000))
    member = state[0]._replace(
        count=jnp.int32(10**8), mu=jnp.zeros(1000), nu=jnp.full((1000,), 1e-4)
    )
    state = (member, *state[1:])
    lost = []
    for turn in range(40):
        grads = jnp.full((1000,), 1e-2 if turn == 0 else 0.0)
        after, state = adam_jax.step(tx, grads, state, params)
        lost.append(jnp.mean(after.astype(jnp.float32)) - jnp.mean(params.astype(jnp.float32)))
        params = after
    # Of the first step 1e-2·0.5, and of what mu remembers as much again.
    assert sum(lost) == pytest.approx(-1e-2, rel=0.03)


@every_way
def test_eco_inside_and_around_others(apply):
    tx = adam_jax.eco(adam_jax.adamw(SCHEDULE, weight_decay=0.1, mask=MASK))
    params, _ = train(tx, params_of(), apply, turns=5)
    again, _ = train(adam_jax.skip_nonfinite(tx), params_of(), apply, turns=5)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    bad = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
    skipping = adam_jax.skip_nonfinite(tx)
    state = skipping.init(params)
    after, new = adam_jax.step(skipping, bad, state, params)
    jax.tree.map(np.testing.assert_array_equal, after, params)
    jax.tree.map(np.testing.assert_array_equal, new.inner_state, state.inner_state)
    partly, _ = adam_jax.step(tx, gradients(0, params) | {"w": None}, tx.init(params), params)
    np.testing.assert_array_equal(partly["w"], params["w"])
    assert np.any(partly["b"] != params["b"])


def test_eco_with_double_precision(x64):
    params = params_of()
    after, _ = train(adam_jax.eco(adam_jax.adamw(SCHEDULE)), params, turns=2)
    assert all(after[name].dtype == p.dtype for name, p in params.items())


@pytest.mark.parametrize(
    "inner",
    [
        adam_jax.lion(1e-3),
        adam_jax.amsgrad(1e-3),
        adam_jax.adam(1e-3, b1=0.0),
        adam_jax.scale_by_adam(),
        adam_jax.adam(None),
        optax.adam(1e-3),
        adam_jax.chain(adam_jax.clip_by_global_norm(1.0), adam_jax.adam(1e-3)),
    ],
)
def test_eco_says_what_it_is_for(inner):
    with pytest.raises(ValueError, match=r"^inner must be a member .*stochastic_rounding"):
        adam_jax.eco(inner)
