"""Converting Optax's state trees to ours and back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import convert
from tests.catalogue import every_kind_of_state
from tests.catalogue.runs import raised, schedule

pytestmark = pytest.mark.usefixtures("standard_promotion")

PARAMS = {"w": jnp.ones((64, 80)), "deep": {"b": jnp.ones(3), "s": jnp.ones(())}}


def stepped(tx):
    state = tx.init(PARAMS)
    for t in range(3):
        grads = jax.tree.map(lambda p, t=t: jnp.full_like(p, 0.1 + t), PARAMS)
        _, state = tx.update(grads, state, PARAMS)
    return state


@every_kind_of_state
def test_where_the_trees_agree_it_is_the_state_itself(member):
    theirs, ours = member.twin.alias(schedule), member.alias(schedule)
    state = stepped(theirs)
    assert convert.from_optax(state, PARAMS, ours) is state
    assert convert.to_optax(state, PARAMS, theirs) is state


LABELS = {"w": "a", "deep": "b"}


def partitioned(one, other):
    return optax.partition({"a": one, "b": other}, LABELS)


THEIRS, OURS = optax.adamw(schedule), adam_jax.adamw(schedule)
CLIP = adam_jax.clip_by_global_norm(1.0)
TREES = {
    "MultiSteps": (optax.MultiSteps(THEIRS, 1), adam_jax.accumulate(OURS, 1)),
    "inject_hyperparams": (
        optax.inject_hyperparams(optax.adamw)(schedule),
        adam_jax.with_hyperparams(adam_jax.adamw)(schedule),
    ),
    "partition": (
        partitioned(THEIRS, THEIRS),
        adam_jax.groups(adam_jax.adamw, {"w": {"b2": 0.9}}, learning_rate=schedule),
    ),
    "chain": (optax.chain(optax.clip(1.0), THEIRS), adam_jax.chain(CLIP, CLIP, OURS)),
    "finite": (optax.apply_if_finite(THEIRS, 3), OURS),
    "telemetry": (THEIRS, adam_jax.telemetry(OURS)),
    "residual": (THEIRS, adam_jax.master_residual(OURS)),
}


@pytest.mark.parametrize("name", TREES)
def test_there_and_back_is_the_same(name):
    theirs, ours = TREES[name]
    state = stepped(theirs)
    there = convert.from_optax(state, PARAMS, ours)
    assert jax.tree.structure(there) == jax.tree.structure(ours.init(PARAMS))
    back = convert.to_optax(there, PARAMS, theirs)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    own = ("acc_grads", "hyperparams['learning_rate']")  # They belong to a completed step.
    for (path, x), y in zip(jax.tree.leaves_with_path(back), jax.tree.leaves(state), strict=True):
        key = jax.tree_util.keystr(path)
        if not any(word in key for word in own):
            np.testing.assert_array_equal(x, y, err_msg=key)


def test_into_8_bits_and_bitwise_between_equal_forms():
    small = adam_jax.adamw(1e-2, mu_dtype=jnp.int8, nu_dtype=jnp.int8)
    state = stepped(adam_jax.chain(small))
    moved = convert.from_optax(state, PARAMS, adam_jax.chain(CLIP, small))[1]
    jax.tree.map(np.testing.assert_array_equal, moved, state[0])
    wide = convert.to_optax(state, PARAMS, optax.adamw(1e-2))
    assert wide[0].mu["w"].dtype == jnp.float32
    again = convert.from_optax(wide, PARAMS, small)
    jax.tree.map(np.testing.assert_array_equal, again, state[0])


def test_what_would_be_lost_is_an_error():
    plain = adam_jax.adamw(1e-2)
    average = adam_jax.chain(plain, adam_jax.ema_params(0.9))
    text = raised(lambda: convert.from_optax(stepped(average), PARAMS, adam_jax.chain(CLIP, plain)))
    assert "'1/ema/w'" in text and "'1/ema/deep/b'" in text
    half = stepped(optax.MultiSteps(optax.adamw(1e-2), 2))
    text = raised(lambda: convert.from_optax(half, PARAMS, adam_jax.accumulate(plain, 2)))
    assert "acc_grads/w" in text and "after an optimizer step" in text
    masked = optax.masked(optax.adamw(1e-2), {"w": True, "deep": False})
    text = raised(lambda: convert.from_optax(stepped(masked), PARAMS, plain))
    assert "missing: 'deep/b/mu', 'deep/b/nu', 'deep/s/mu'" in text
    text = raised(lambda: convert.to_optax(stepped(plain), PARAMS, masked))
    assert "extra: 'deep/b/mu'" in text
    text = raised(lambda: convert.from_optax(stepped(optax.sgd(1e-2)), PARAMS, plain))
    assert "moments" in text
    text = raised(lambda: convert.from_optax(stepped(plain), PARAMS, adam_jax.adabelief(1e-2)))
    assert "ScaleByBeliefState" in text and "ScaleByAdamState" in text
    late = partitioned(optax.adamw(1e-2), optax.adamw(1e-2))
    state = stepped(late)
    moved = jax.tree.map(lambda x: x + 1 if x.dtype == jnp.int32 else x, state.inner_states["a"])
    state = state._replace(inner_states=state.inner_states | {"a": moved})
    text = raised(lambda: convert.from_optax(state, PARAMS, plain))
    assert "'w: 4'" in text and "'deep/b: 3'" in text
    kept = convert.from_optax(state, PARAMS, optax.chain(late))[0].inner_states
    assert [int(kept[k].inner_state[0].count) for k in "ab"] == [4, 3]
