"""Leaves whose first gradient comes late, and counts that only gradients move."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import adamw, count_per_leaf
from tests.catalogue.oracles import adam
from tests.catalogue.training import trained

PARAMS = {"early": jnp.ones((4, 3)), "late": jnp.ones(5), "whole": jnp.arange(2)}
LATE = 2000


def gradients(params, turn, late=LATE):
    draw = np.random.default_rng(turn)
    g = {k: jnp.asarray(draw.standard_normal(p.shape), jnp.float32) for k, p in params.items()}
    absent = {"late": None} if turn < late else {}
    return g | absent | ({"whole": None} if "whole" in params else {})


@pytest.mark.parametrize("format", [jnp.float32, jnp.int8])
def test_a_first_gradient_at_step_2001_moves_by_one_learning_rate(format):
    """As PyTorch's; one count for all makes it 3 rates long. Schedules count all steps."""

    def rate(count):
        return jnp.where(count < LATE, 1e-3, 1e-2)

    lengths = []
    for wrap in (count_per_leaf, lambda tx: tx):
        tx = wrap(adamw(rate, mu_dtype=format, nu_dtype=format, weight_decay=0.0))
        params, state = trained(tx, PARAMS, gradients, LATE)
        g = gradients(PARAMS, LATE)
        moved, after = adam_jax.step(tx, g, state, params)
        lengths.append(np.max(np.abs(moved["late"] - params["late"])))
    np.testing.assert_allclose(lengths[0], 1e-2, rtol=1e-4)
    assert lengths[1] > 2.9e-2


def test_each_leaf_is_adam_of_its_own_gradients():
    """In float64, with gradients that pause; in a chain, with two groups."""
    tx = adam_jax.groups(adamw, {"late": dict(b1=0.5)}, learning_rate=1e-2, weight_decay=0.0)
    tx = adam_jax.chain(count_per_leaf(tx), adam_jax.ema_params(0.9))

    def pausing(params, turn):
        return gradients(params, turn, 3 if turn % 4 else 99)

    params, state = trained(tx, PARAMS, pausing, 12)
    assert {k: int(x) for k, x in state[0].counts.items() if k != "whole"} == {
        "early": 12,
        "late": 7,
    }
    for name, b1 in (("early", 0.9), ("late", 0.5)):
        g = [pausing(PARAMS, t)[name] for t in range(12)]
        steps = adam([np.asarray(x, np.float64) for x in g if x is not None], b1=b1)
        expected = np.asarray(PARAMS[name], np.float64) - 1e-2 * sum(steps)
        np.testing.assert_allclose(params[name], expected, rtol=1e-6)


def test_all_gradients_present_are_the_steps_of_the_member_alone():
    params = {k: p for k, p in PARAMS.items() if k != "whole"}
    plain, counted = (trained(wrap(adamw(1e-2)), params) for wrap in (lambda x: x, count_per_leaf))
    jax.tree.map(np.testing.assert_array_equal, counted[0], plain[0])
    jax.tree.map(np.testing.assert_array_equal, counted[1].inner_state, plain[1])


@pytest.mark.usefixtures("standard_promotion")
def test_an_optimizer_of_a_group_without_gradients_does_not_count():
    tx = adam_jax.groups({"late": adamw(lambda count: 1e-2), ".*": optax.adam(1e-2)})
    params = {k: PARAMS[k] for k in ("early", "late")}
    _, state = trained(tx, params, lambda p, t: gradients(p, t, 4), 6)
    inner = state.inner_states
    assert [int(x) for _, x in optax.tree.get_all_with_path(inner["late"], "count")] == [2, 2]
    assert [int(x) for _, x in optax.tree.get_all_with_path(inner[".*"], "count")] == [6]


@pytest.mark.parametrize(
    ("tx", "message"),
    [
        (optax.adam(1e-3), "tx must be a member of adam_jax, got Foreign"),
        (adamw(1e-3, b2=lambda count: 0.99), "tx must have decay rates that are numbers"),
    ],
)
def test_errors(tx, message):
    with pytest.raises(ValueError, match=message):
        count_per_leaf(tx)
