"""Restoring a checkpoint into a target of another form is an error with the path."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import adam_jax
from adam_jax import adamw

PARAMS = {"w": jnp.ones((64, 256))}
GRADS = {"w": jnp.sin(jnp.arange(64.0 * 256)).reshape(64, 256)}


def small(dtype):
    return adamw(1e-2, mu_dtype=dtype, nu_dtype=dtype)


FORMS = {
    "float32": adamw(1e-2),
    "int8": small(jnp.int8),
    "int4": small(jnp.int4),
    "blocks of 64": small(adam_jax.Quantized("int8", 64)),
    "Factored": adamw(1e-2, nu_dtype=adam_jax.Factored(32, 32)),
    "means of columns": adamw(1e-2, nu_dtype=adam_jax.BlockMeans(0)),
    "means of rows": adamw(1e-2, nu_dtype=adam_jax.BlockMeans(1)),
    "stochastic bfloat16": small(adam_jax.stochastic(jnp.bfloat16)),
    "amsgrad": adam_jax.amsgrad(1e-2, weight_decay=1e-4),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A state of each form, saved by Orbax."""
    folder, written = tmp_path_factory.mktemp("saved"), {}
    with ocp.StandardCheckpointer() as checkpointer:
        for number, (name, tx) in enumerate(FORMS.items()):
            _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
            checkpointer.save(folder / str(number), state)
            written[name] = folder / str(number)
        checkpointer.wait_until_finished()
    return written


def by_orbax(path, like):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, like)


def by_pytree_restore(path, like):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path, item=like)


UNLIKE = [
    ("int8", "int4"),
    ("int8", "blocks of 64"),
    ("int8", "stochastic bfloat16"),
    ("int8", "float32"),
    ("int8", "Factored"),
    ("float32", "Factored"),
    ("float32", "means of columns"),
    ("Factored", "means of columns"),
    ("means of rows", "means of columns"),
    ("float32", "amsgrad"),
]
PAIRS = UNLIKE + [pair[::-1] for pair in UNLIKE]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_orbax(saved, source, target):
    like = FORMS[target].init(PARAMS)
    for restore in (by_orbax, by_pytree_restore):
        with pytest.raises(ValueError, match=r"0\]?[./]((mu|nu)[./]w|nu_max)"):
            restore(saved[source], like)


def test_both_forms_are_in_the_message(saved):
    like = FORMS["int4"].init(PARAMS)
    with pytest.raises(ValueError) as error:
        by_orbax(saved["int8"], like)
    message = str(error.value)
    assert "codes_int8_power2_block128" in message and "codes_int4_power2_block128" in message


def test_codes_are_the_same_however_they_were_rounded(saved):
    """A run may therefore continue with the other rounding."""
    tx = small(adam_jax.stochastic(jnp.int8))
    _, state = FORMS["int8"].update(GRADS, FORMS["int8"].init(PARAMS), PARAMS)
    restored = by_orbax(saved["int8"], tx.init(PARAMS))
    assert restored[0].nu["w"].format.stochastic
    assert all(map(np.array_equal, jax.tree.leaves(restored), jax.tree.leaves(state)))


@pytest.mark.parametrize("target", ["int4", "blocks of 64"])
def test_arrays_put_into_another_state_without_their_names(target):
    """For example by jax.tree.unflatten, with arrays from an .npz file."""
    tx = FORMS[target]
    _, state = FORMS["int8"].update(GRADS, FORMS["int8"].init(PARAMS), PARAMS)
    mixed = jax.tree.unflatten(jax.tree.structure(tx.init(PARAMS)), jax.tree.leaves(state))
    with pytest.raises(ValueError, match=r"^at 'w', the state has codes of u?int8.*its form"):
        tx.update(GRADS, mixed, PARAMS)


@pytest.mark.parametrize("wrong", ["amsgrad", "adabelief", "lion", "adan", "ademamix"])
def test_slots_of_another_member(wrong):
    """A state of the right shape, passed to the wrong transformation: the error names both."""
    state = getattr(adam_jax, wrong)(1e-2).init(PARAMS)
    state = (state[0], optax.EmptyState(), state[-1])
    with pytest.raises(ValueError) as error:
        FORMS["float32"].update(GRADS, state, PARAMS)
    message = str(error.value)
    assert message.startswith("at state[0], the state must be a ScaleByAdamState(count, mu, nu), ")
    assert f"got a {type(state[0]).__name__}({', '.join(state[0]._fields)}): pass" in message


def test_the_state_of_a_schedule_for_a_constant_and_the_other_way_round():
    constant, scheduled = adamw(1e-2), adamw(lambda count: 1e-2)
    for tx, other in ((constant, scheduled), (scheduled, constant)):
        with pytest.raises(ValueError, match=r"at state\[2\], .* an? \w+.*, got an? \w+"):
            tx.update(GRADS, other.init(PARAMS), PARAMS)
        moved = adam_jax.convert.from_optax(other.init(PARAMS), PARAMS, tx)
        tx.update(GRADS, moved, PARAMS)


def test_hyperparameters_of_another_member():
    ours, others = (adam_jax.with_hyperparams(f)(1e-2) for f in (adamw, adam_jax.adan))
    with pytest.raises(ValueError, match=r"hyperparameters of adan, \['b1'.*b3.*got \['b1'"):
        others.update(GRADS, ours.init(PARAMS), PARAMS)


def test_the_state_of_schedule_free():
    free = adam_jax.schedule_free_adamw(1e-2)
    for wrong in (FORMS["float32"].init(PARAMS), optax.EmptyState(), PARAMS):
        with pytest.raises(ValueError, match="the state must be a ScheduleFreeState, got"):
            free.update(GRADS, wrong, PARAMS)


@pytest.mark.parametrize("nothing", [None, (), optax.EmptyState(), optax.MaskedNode()])
def test_a_link_that_keeps_nothing_takes_all_that_is_empty(nothing):
    """As in Optax, whose clips and scales are often called with None as state."""
    tx = adam_jax.scale_by_learning_rate(1e-2)
    assert jax.tree.leaves(tx.update(GRADS, nothing)[1]) == []
    with pytest.raises(ValueError, match="the state must be an EmptyState, got a dict"):
        tx.update(GRADS, PARAMS)
