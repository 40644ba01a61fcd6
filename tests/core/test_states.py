"""States describe themselves: a member and a wrapper defined here convert like the package's."""

import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import adam_jax
from adam_jax import convert
from adam_jax.core import states
from adam_jax.core.step import Body
from adam_jax.core.transformation import Transformation, body_of, scale_by_rule
from adam_jax.family.adamax import DecayingMax, Ratio
from adam_jax.formats.policy import AT_LEAST_FLOAT32
from adam_jax.pytrees import frozen_pytree
from adam_jax.rates import DecayRate
from adam_jax.rules.adam import Ema, MomentRule
from tests.catalogue.runs import raised
from tests.catalogue.training import trained
from tests.tools import record

pytestmark = pytest.mark.usefixtures("standard_promotion")

PARAMS = {"w": jnp.ones((64, 128)), "deep": {"b": jnp.ones(3), "s": jnp.ones(())}}


B2 = DecayRate.of("b2", 0.99)


class ScaleByMineState(NamedTuple):
    """Its fields are in another order than Adam's, and the count has another name."""

    nu: Any
    steps: jax.Array
    mu: Any


def scale_by_mine(**dtypes):
    nu = DecayingMax(DecayRate.of("b2", 0.99), 1e-8)
    rule = MomentRule(Ema("mu", DecayRate.of("b1", 0.9)), nu, Ratio())
    dtypes = {"mu_dtype": AT_LEAST_FLOAT32, "nu_dtype": AT_LEAST_FLOAT32} | dtypes
    return scale_by_rule(rule, ScaleByMineState, **dtypes, name="scale_by_mine")


class AroundState(NamedTuple):
    """The state of `around`: a count, the last gradient and the inner state."""

    seen: jax.Array
    last: Any
    inside: Any


states.register(AroundState, counts=["seen"], inner=["inside"], others_matter=False)


@frozen_pytree
class Around(Body):
    """A wrapper that stores the last gradient."""

    inner: Any

    def init(self, params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AroundState(jnp.zeros([], jnp.int32), zeros, self.inner.init(params))

    def run(self, step, state):
        last = step.back(state.last, step.values)
        out, inside = self.inner.run(step, state.inside)
        return out, AroundState(state.seen + 1, last, inside)


def around(tx):
    return Transformation.around(Around(body_of("tx", tx)))


MINE = adam_jax.chain(scale_by_mine(), adam_jax.scale_by_learning_rate(1e-2))


def stepped(tx):
    def gradients(params, turn):
        return jax.tree.map(lambda p: jnp.full_like(p, 0.1 + turn), params)

    return trained(tx, PARAMS, gradients, jit=False)[1]


def test_a_new_member_and_a_new_wrapper_go_there_and_back():
    state = stepped(MINE)
    wrapped = adam_jax.accumulate(around(optax.chain(optax.clip(1.0), MINE)), 1)
    there = convert.from_optax(state, PARAMS, wrapped)
    assert int(there.gradient_step) == int(there.inner_opt_state.seen) == 3
    assert not np.any(there.inner_opt_state.last["w"])
    assert jax.tree.structure(there) == jax.tree.structure(wrapped.init(PARAMS))
    back = convert.to_optax(there, PARAMS, MINE)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, back, state)


def test_a_new_member_is_stored_otherwise_inside_of_a_new_wrapper():
    state = stepped(around(MINE))
    small = adam_jax.convert_state(state, mu_dtype=jnp.int8, nu_dtype=jnp.bfloat16)
    member = small.inside[0]
    assert member.mu["w"].codes.dtype == jnp.int8
    assert member.nu["w"].dtype == jnp.bfloat16  # A magnitude, so nu_dtype applies.
    assert int(member.steps) == int(small.seen) == 3
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    _, after = adam_jax.step(around(MINE), grads, small, PARAMS)
    assert jax.tree.structure(after) == jax.tree.structure(small)


def test_bytes_are_those_of_the_parameters_groups():
    found = adam_jax.inspect.bytes_per_parameter(PARAMS, around(MINE))
    sizes = {"w": 64 * 128, "deep": 4}
    assert {name: found.groups[name].state for name in sizes} == {
        name: 12 * size
        for name, size in sizes.items()  # mu, nu and the last gradient
    }
    assert found.groups["(shared)"].state == 8


def test_counts_belong_to_no_parameter_also_where_a_path_looks_like_one():
    """In a nested chain a count is at [0][1].count, and there is a scalar parameter at [1]."""
    params = [jnp.ones(3), jnp.ones(())]
    tx = adam_jax.chain(adam_jax.chain(optax.identity(), adam_jax.adam(lambda count: 1e-2)))
    found = adam_jax.inspect.bytes_per_parameter(params, tx)
    assert {name: x.state for name, x in found.groups.items()} == {"0": 24, "1": 8, "(shared)": 8}


def test_a_new_state_is_split_over_devices():
    mesh = jax.make_mesh((8,), ("data",))
    tx = adam_jax.sharding.shard_state(around(MINE), mesh)
    state = tx.init(jax.device_put(PARAMS, jax.NamedSharding(mesh, PartitionSpec())))
    member = state.inside[0]
    for x in (member.mu["w"], member.nu["w"], state.last["w"]):
        assert x.sharding.spec[0] == "data"
    assert member.steps.sharding.is_fully_replicated


class ForgottenState(NamedTuple):
    """A state class that is not registered."""

    seen: jax.Array
    inside: Any


def forgetful(tx):
    def init(params):
        return ForgottenState(jnp.zeros([], jnp.int32), tx.init(params))

    def update(updates, state, params=None):
        updates, inside = tx.update(updates, state.inside, params)
        return updates, ForgottenState(state.seen + 1, inside)

    return optax.GradientTransformation(init, update)


def test_a_state_that_nobody_described_is_an_error_with_its_name():
    adam = adam_jax.adamw(1e-2)
    unknown = forgetful(adam)
    state = stepped(unknown)
    for convert_it in (
        lambda: convert.from_optax(stepped(adam), PARAMS, unknown),
        lambda: convert.from_optax(state, PARAMS, adam),
        lambda: adam_jax.convert_state(state, mu_dtype=jnp.int8),
    ):
        text = raised(convert_it)
        assert "ForgottenState(seen, inside)" in text
        assert "adam_jax.core.states.register(ForgottenState, " in text
    # Everything else accepts an unregistered state.
    assert adam_jax.inspect.bytes_per_parameter(PARAMS, unknown).state == 8 * (64 * 128 + 4) + 8
    assert adam_jax.skipped(stepped(forgetful(adam_jax.skip_nonfinite(adam)))).total == 0


def test_what_optax_keeps_besides_begins_anew_and_is_not_lost():
    adam = adam_jax.adamw(1e-2)
    tx = optax.chain(optax.trace(0.9), optax.set_to_zero(), adam)
    there = convert.from_optax(stepped(adam), PARAMS, tx)
    assert not np.any(there[0].trace["w"])
    assert int(there[2][0].count) == 3
    text = raised(lambda: convert.from_optax(stepped(tx), PARAMS, adam))
    assert "'0/trace/w'" in text
    inside = optax.lookahead(adam, 5, 0.5)  # An unknown state with a known one inside.
    small = adam_jax.convert_state(
        inside.init(optax.LookaheadParams.init_synced(PARAMS)), mu_dtype=jnp.int8
    )
    assert small.fast_state[0].mu["w"].codes.dtype == jnp.int8


def test_a_state_restored_before_its_member_is_built():
    class ScaleByLaterState(NamedTuple):
        count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
        mu: Any
        nu: Any

    state = (ScaleByLaterState(jnp.ones([], jnp.int32), PARAMS, PARAMS), optax.EmptyState())
    text = raised(lambda: adam_jax.convert_state(state, mu_dtype=jnp.int8))
    assert "ScaleByLaterState(count, mu, nu): build the transformation that keeps it first" in text
    scale_by_rule(scale_by_mine().body.stages[0].rule, ScaleByLaterState, None, None, "later")
    assert adam_jax.convert_state(state, mu_dtype=jnp.int8)[0].mu["w"].codes.dtype == jnp.int8


class Pair(NamedTuple):
    """Parameters in a NamedTuple."""

    w: Any
    b: Any


def test_parameters_in_a_named_tuple_are_no_state():
    params = Pair(jnp.ones((64, 128)), jnp.ones(3))
    adam = adam_jax.adamw(1e-2)
    tx = adam_jax.chain(optax.trace(0.9), optax.masked(adam, Pair(True, True)))
    there = convert.from_optax(adam.init(params), params, tx)
    assert isinstance(there[1].inner_state[0].mu, Pair)
    adam_jax.convert_state(there, mu_dtype=jnp.int8)


def test_a_description_names_fields_and_does_not_change():
    with pytest.raises(ValueError, match=r"the fields of ForgottenState are .*\['foregone'\]"):
        states.register(ForgottenState, counts=["seen"], inner=["foregone"])
    states.register(AroundState, counts=["seen"], inner=["inside"], others_matter=False)
    with pytest.raises(ValueError, match="AroundState is described as .* already"):
        states.register(AroundState, counts=["seen"], inner=["inside", "last"])
    rule = scale_by_mine().body.stages[0].rule
    with pytest.raises(ValueError, match="ScaleByAmsgradState is described as"):
        scale_by_rule(rule, optax.ScaleByAmsgradState, None, None, "other")


BUILT = (
    *("adamw, float32", "amsgrad, int8", "adan, float32", "lion, int8", "ademamix, float32"),
    *("adabelief, float32", "schedule_free_adamw, float32", "adamw masked, float32"),
    *("schedule(adamw, float32)", "with_hyperparams(adamw, int8)"),
    "groups(lion, float32)",
    *(f"{name}(adamw, float32)" for name in record.WRAPPERS if name != "frozen"),
)


@pytest.mark.parametrize("name", BUILT)
def test_the_states_of_this_package_are_known(name):
    params = {k: jnp.ones(shape) for k, shape in record.SHAPES.items()}
    tx = adam_jax.skip_nonfinite(dict(record.cases())[name]())
    all_states = [x for _, x in states.states_by_path(tx.init(params)) if x._fields]
    unknown = {type(x) for x in all_states if not states.is_known(x)}
    assert all_states and unknown == ({optax.TraceState} if "trace" in name else set())


@pytest.mark.smoke
def test_they_are_known_before_anything_is_built():
    """A state may first be restored, or come from Optax."""
    code = (
        "import contextlib\n"
        "import adam_jax\n"
        "from adam_jax.core import states\n"
        "before = set(states._KNOWN)\n"
        "from tests.tools import record\n"
        "for name, make in record.cases():\n"
        "    with contextlib.suppress(ValueError):  # Not every modifier takes every member.\n"
        "        make()\n"
        "adam_jax.adamw(1e-3, weight_decay=lambda count: 0.1)\n"
        "assert set(states._KNOWN) == before, set(states._KNOWN) - before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
