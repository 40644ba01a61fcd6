"""Integers, booleans and random keys among the parameters: no state, no step and no error."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax import adamw
from tests.catalogue import every_kind_of_state, few
from tests.catalogue.training import trained
from tests.tools.record import WRAPPERS

pytestmark = pytest.mark.usefixtures("standard_promotion")

FIXED = ("table", "mask", "key")


def parameters(dtype=jnp.float32):
    """The integer table is large enough to be sharded or quantized."""
    return {
        "a": {"w": jnp.linspace(-1, 1, 64 * 128, dtype=dtype).reshape(64, 128)},
        "table": jnp.arange(64 * 128).reshape(64, 128),
        "mask": jnp.array([True, False]),
        "key": jax.random.key(3),
        "b": jnp.linspace(0.5, 1.5, 64, dtype=dtype),
    }


def moving(tree):
    return {name: x for name, x in tree.items() if name not in FIXED}


def gradients(params, kind):
    """For the fixed leaves: None, float0 as from `jax.grad(..., allow_int=True)`, or zeros."""
    grads = {**params, **jax.tree.map(lambda p: jnp.cos(3 * p).astype(p.dtype), moving(params))}
    for name in FIXED:
        float0 = np.zeros(np.shape(params[name]), jax.dtypes.float0)
        grads[name] = None if kind is None else float0
        if kind == "zeros" and name != "key":
            grads[name] = jnp.zeros_like(params[name])
    return grads


def same(ours, theirs, rtol=0.0):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=rtol, atol=rtol)


def unmoved(params, reference):
    for name in ("table", "mask"):
        np.testing.assert_array_equal(params[name], reference[name])
    keys = (jax.random.key_data(x["key"]) for x in (params, reference))
    np.testing.assert_array_equal(*keys)


def stepped(tx, grads, state, params):
    return trained(tx, params, lambda *_: grads, 4, state=state, jit=False)


def check(tx, kind=None, jit=True):  # jit rejects float0.
    """Four steps, which move the other leaves as if they were alone."""
    step = functools.partial(stepped, tx)
    step = jax.jit(step) if jit else step
    params = parameters()
    moved, state = step(gradients(params, kind), tx.init(params), params)
    unmoved(moved, params)
    ours, grads = moving(params), moving(gradients(params, None))
    same(moving(moved), step(grads, tx.init(ours), ours)[0], rtol=1e-5)
    return state


@every_kind_of_state
@pytest.mark.parametrize("kind", [None, "float0", "zeros"])
def test_every_member_leaves_them_alone(member, kind):
    tx, params = member.alias(1e-2), parameters()
    grads, state = gradients(params, kind), tx.init(params)
    updates, new = tx.update(grads, state, params)
    ours = moving(params)
    expected, _ = tx.update(moving(grads), tx.init(ours), ours)
    same(moving(updates), expected)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    arrays = [x for x in jax.tree.leaves(state) if x.dtype != jnp.int32]
    assert all(jnp.issubdtype(x.dtype, jnp.floating) for x in arrays)
    assert updates["key"] is None
    if kind is None:
        assert updates["table"] is updates["mask"] is None
    else:  # Updates that can be added.
        del params["key"], updates["key"]
        moved = optax.apply_updates(params, updates)
        for name in ("table", "mask"):
            np.testing.assert_array_equal(moved[name], params[name])
            assert moved[name].dtype == params[name].dtype


CODES = {"mu_dtype": jnp.int8, "nu_dtype": jnp.int8}
BY_WRAPPERS = [x for x in WRAPPERS if "optax" not in x and x != "frozen"]
OF_16_BITS = ("stochastic_rounding", "master_residual")
AROUND = {
    **{name: WRAPPERS[name](adamw(1e-2)) for name in BY_WRAPPERS if name not in OF_16_BITS},
    "8 bits": adamw(1e-2, **CODES),
    "factored": adamw(1e-2, nu_dtype=adam_jax.Factored(32, 32)),
    "block means": adamw(1e-2, nu_dtype=adam_jax.AdamMini()),
    "masked decay": adamw(1e-2, mask=adam_jax.decay_mask),
    "groups": adam_jax.groups(adamw, {"a/.*|b": {"b2": 0.9}}, learning_rate=1e-2),
    "no default group": adam_jax.groups(adamw, {"a/.*|b": {"learning_rate": 1e-2}}),
    "skip, ema": adam_jax.skip_nonfinite(adam_jax.chain(adamw(1e-2), adam_jax.ema_params(0.9))),
    "hyperparameters": adam_jax.with_hyperparams(adamw)(learning_rate=1e-2),
    "modified": adam_jax.cautious(adam_jax.clip_update_rms(adamw(1e-2))),
    "offload": adam_jax.sharding.offload(adamw(1e-2)),
    "everything": adam_jax.accumulate(
        adam_jax.telemetry(adam_jax.skip_nonfinite(adamw(1e-2)), 2), 2
    ),
}
PARTS = ("accumulate", "telemetry", "ema")  # Of "everything" and of "skip, ema".


@few("name", [x for x in AROUND if x not in PARTS], ["8 bits", "groups", "everything"])
def test_every_wrapper_leaves_them_alone(name):
    check(AROUND[name])


@pytest.mark.parametrize("grad", [None, "float0", "float8"])
@pytest.mark.parametrize("wrapper", BY_WRAPPERS)
def test_wrappers_read_nothing_of_frozen_weights_of_8_bits(wrapper, grad):
    """As below LoRA."""
    tx = WRAPPERS[wrapper](adam_jax.groups(adamw, {"base": None}, learning_rate=1e-2))
    base = jnp.ones(4, jnp.float8_e4m3fn)
    float0 = np.zeros(4, jax.dtypes.float0)
    grads = {"base": {None: None, "float0": float0, "float8": base}[grad], "lora": jnp.ones(4)}
    params = {"base": base, "lora": jnp.ones(4)}
    moved, _ = trained(tx, params, lambda *_: grads, jit=False)
    assert moved["base"].dtype == base.dtype and (moved["lora"] < 1).all()
    np.testing.assert_array_equal(moved["base"].astype(float), 1.0)


@pytest.mark.parametrize("kind", ["float0", "zeros"])
@pytest.mark.parametrize("name", ["everything", "skip, ema", "groups"])
def test_wrappers_and_what_jax_calls_a_gradient_of_an_integer(name, kind):
    check(AROUND[name], kind, jit=False)


@pytest.mark.parametrize("wrapper", OF_16_BITS)
def test_beside_weights_of_16_bits(wrapper):
    tx, params = WRAPPERS[wrapper](adamw(1e-2)), parameters(jnp.bfloat16)
    args = gradients(params, None), tx.init(params), params
    moved, _ = jax.jit(lambda *args: stepped(tx, *args))(*args)
    unmoved(moved, params)
    assert np.any(moved["b"] != params["b"])


def test_an_average_is_a_model():
    state = check(AROUND["ema"])
    ema = optax.tree.get(state, "ema")
    unmoved(ema, parameters())
    assert jax.tree.structure(ema) == jax.tree.structure(parameters())


def test_statistics_are_of_what_moves():
    groups = adam_jax.measured(check(adam_jax.telemetry(adamw(1e-2), 2, {"all": ".*"})))["groups"]
    assert set(groups) == {"all"}
    assert set(adam_jax.measured(check(adam_jax.telemetry(adamw(1e-2), 2)))["groups"]) == {"a", "b"}


@pytest.mark.slow
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("member", [adamw(1e-2), AROUND["everything"]], ids=["adamw", "everything"])
def test_split_over_devices(member, axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    params = jax.device_put(parameters(), NamedSharding(mesh, P()))
    tx = adam_jax.sharding.shard_state(member, mesh)
    step = jax.jit(lambda *args: stepped(tx, *args))
    args = gradients(params, None), tx.init(params), params
    assert jax.tree.structure(jax.jit(tx.init)(params)) == jax.tree.structure(args[1])
    moved, _ = step(*args)
    unmoved(moved, params)
    ours = moving(parameters())
    expected, _ = stepped(member, moving(gradients(parameters(), None)), member.init(ours), ours)
    np.testing.assert_allclose(moved["b"], expected["b"], rtol=1e-5)
    assert adam_jax.inspect.bytes_per_parameter(params, tx).state > 0


def test_states_of_other_forms():
    params = parameters()
    state = adam_jax.convert_state(adamw(1e-2).init(params), **CODES)
    same(state[0].mu["table"], adamw(1e-2).init(params)[0].mu["table"])
    same(adam_jax.convert.from_optax(state, params, AROUND["8 bits"]), state)


def test_what_jax_grad_returns():
    params = {"w": jnp.ones(3), "n": jnp.arange(3)}
    tx = adamw(1e-2)

    @jax.jit
    def train_step(params, state):
        grads = jax.grad(lambda p: jnp.sum(p["w"] ** 2 * p["n"]), allow_int=True)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), adam_jax.step(tx, grads, state, params)[0]

    for moved in train_step(params, tx.init(params)):
        np.testing.assert_array_equal(moved["n"], params["n"])
        assert moved["n"].dtype == params["n"].dtype and np.all(moved["w"][1:] < 1)


@pytest.mark.parametrize("kind", [None, "float0", "zeros"])
@pytest.mark.parametrize("inner", [optax.adamw(1e-2), adam_jax.schedule_free_adamw(1e-2)])
def test_inside_of_ours_code_of_optax_moves_none(inner, kind):
    """Optax alone would turn 0, 1, 2 into 0, 0, 1: decayed, and truncated."""
    params, grads = parameters(), gradients(parameters(), kind)
    del params["key"], grads["key"], params["mask"], grads["mask"]
    tx = adam_jax.skip_nonfinite(inner)
    state = tx.init(params)
    updates, _ = tx.update(grads, state, params)
    moved, _ = adam_jax.step(tx, grads, state, params)
    np.testing.assert_array_equal(moved["table"], params["table"])
    assert np.any(moved["b"] != params["b"])
    assert updates["table"] is None if kind is None else not np.any(updates["table"])


@pytest.mark.parametrize("kind", ["float0", "zeros"])
@pytest.mark.parametrize("chain", [optax.chain, adam_jax.chain])
def test_without_parameters(chain, kind):
    """The state alone records that a leaf has no moments."""
    params = {"w": jnp.ones(3), "table": jnp.arange(3)}
    grads = {name: g for name, g in gradients(parameters(), kind).items() if name == "table"}
    grads["w"] = params["w"]
    adam = adam_jax.accumulate(adam_jax.adam(1e-2), 1)
    tx = chain(adam_jax.clip_by_global_norm(1.0), adam)
    updates, _ = tx.update(grads, tx.init(params))
    if updates["table"] is not None:
        assert not np.any(updates["table"]) and not jnp.issubdtype(updates["table"].dtype, float)
    alone, _ = tx.update({"w": grads["w"]}, tx.init({"w": params["w"]}))
    same(updates["w"], alone["w"], rtol=1e-6)
    with pytest.raises(ValueError, match=r"'w'.*int32"):
        tx.update({"w": jnp.arange(3), "table": None}, tx.init(params))


@pytest.mark.parametrize("through", ["step", "update", "update without params"])
def test_a_real_gradient_is_an_error(through):
    params = {"a": {"n": jnp.arange(3)}, "w": jnp.ones(3)}
    grads = {"a": {"n": jnp.ones(3)}, "w": jnp.ones(3)}
    for tx in (adam_jax.adam(1e-2), adam_jax.accumulate(adam_jax.adam(1e-2), 1)):
        state = tx.init(params)
        with pytest.raises(ValueError, match=r"'a/n'.*None"):
            if through == "step":
                adam_jax.step(tx, grads, state, params)
            else:
                tx.update(grads, state, params if through == "update" else None)
