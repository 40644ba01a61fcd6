"""Code that takes Optax's transformations takes ours, even if it inspects `init` and `update`."""

import copy
import functools
import inspect
import pickle
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

import adam_jax
from tests.catalogue.training import trained
from tests.tools.record import WRAPPERS

PARAMS = {"w": jnp.linspace(-2.0, 2.0, 6).reshape(3, 2), "b": jnp.ones(2)}


def test_chex_counts_the_traces_of_update():
    chex.clear_trace_counter()
    tx = adam_jax.adamw(1e-3)
    state = jax.jit(chex.assert_max_traces(tx.init, n=1))(PARAMS)
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    for _ in range(3):
        _, state = update(PARAMS, state, PARAMS)
    with pytest.raises(AssertionError, match="Function 'update' is traced > 1 times"):
        update({"w": jnp.ones(3)}, tx.init({"w": jnp.ones(3)}), {"w": jnp.ones(3)})


def test_init_and_update_look_like_functions():
    tx = adam_jax.adamw(1e-3)
    for function, arguments in ((tx.init, "(params"), (tx.update, "(updates")):
        assert str(inspect.signature(function)).startswith(arguments)
        assert f"def {function.__name__}(" in inspect.getsource(function)
        wrapped = functools.wraps(function)(lambda *args, f=function: f(*args))
        assert inspect.signature(wrapped) == inspect.signature(function)
        assert wrapped.__name__ == function.__name__ == jax.jit(function).__name__
        assert wrapped.__module__.startswith("adam_jax.core.")
    assert list(inspect.signature(tx.update).parameters)[1:3] == ["state", "params"]
    assert inspect.signature(tx.update).parameters["params"].default is None
    assert (tx.init.__name__, tx.update.__name__) == ("init", "update")


def test_init_and_update_pickle_and_copy():
    tx = adam_jax.adam(0.125)
    for copied in (pickle.loads(pickle.dumps(tx.update)), copy.deepcopy(tx.update)):
        assert adam_jax.chain(optax.GradientTransformation(tx.init, copied)).init(PARAMS)
        updates, _ = copied(jnp.ones(2), tx.init(jnp.ones(2)))
        np.testing.assert_allclose(updates, -0.125, rtol=1e-6)
    assert tx.update == tx.update and len({tx.update, tx.update}) == 1


@struct.dataclass
class Checked:
    """A node that accepts only two-dimensional arrays, as a user's may."""

    kernel: Any
    scale: Any

    def __post_init__(self):
        assert self.kernel is None or self.kernel.ndim == 2
        assert self.scale.shape == (2,)


@pytest.mark.parametrize("kernel", [jnp.ones((3, 2)), None], ids=["whole", "with a None"])
def test_a_prefix_mask_above_a_node_that_validates_its_leaves(kernel):
    params = {"a": Checked(kernel, jnp.ones(2)), "b": [Checked(kernel, 2 * jnp.ones(2))], "c": None}
    tx = adam_jax.adamw(0.5, weight_decay=1.0, mask={"a": False, "b": [True], "c": None})
    for run in (tx.update, jax.jit(tx.update)):
        updates, _ = run(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        assert not any(np.any(x) for x in jax.tree.leaves(updates["a"]))
        np.testing.assert_array_equal(updates["b"][0].scale, -1.0)
        if kernel is not None:
            np.testing.assert_array_equal(updates["b"][0].kernel, -0.5)


@pytest.mark.parametrize("name", ["chain", "telemetry", "clip_by_history", "ema", "recipe"])
@pytest.mark.parametrize("jit", [True, False])
def test_nodes_that_validate_their_leaves_get_arrays(name, jit):
    dtype = jnp.bfloat16 if name == "recipe" else jnp.float32
    params = Checked(jnp.ones((3, 2), dtype), jnp.ones(2, dtype))
    moved, _ = trained(WRAPPERS[name](adam_jax.adamw(1e-2)), params, jit=jit)
    assert (moved.kernel != params.kernel).all()


def test_a_prefix_mask_means_what_optax_makes_of_it(standard_promotion):
    """In leaf order, with containers of every kind and None in both trees."""

    class Pair(NamedTuple):
        first: Any
        second: Any

    params = {
        "d": Pair(jnp.ones(2), [jnp.ones(3), (jnp.ones(1), None)]),
        "n": None,
        "e": (jnp.ones(4), {"x": jnp.ones(1), "y": jnp.ones(2)}),
    }
    masks = [
        {"d": Pair(True, False), "n": None, "e": (False, True)},
        {"d": Pair(False, [True, (False, None)]), "n": None, "e": True},
        {"d": True, "n": None, "e": (True, {"x": False, "y": True})},
        {"d": True, "n": False, "e": False},
        True,
        False,
    ]
    for mask in masks:
        moved = []
        for o in (adam_jax, optax):
            tx = o.adamw(0.5, weight_decay=1.0, mask=mask)
            zero = jax.tree.map(jnp.zeros_like, params)
            moved.append(tx.update(zero, tx.init(params), params)[0])
        chex.assert_trees_all_equal(*moved)
    for mask in ({"d": True, "e": True}, [True], {"d": (True, True), "n": None, "e": True}):
        tx = adam_jax.adamw(0.5, mask=mask)
        with pytest.raises(ValueError, match="mask must be a tree of booleans like"):
            tx.update(params, tx.init(params), params)
