"""Runs with bitsandbytes' 8-bit moments: begun there, in every member, sharded, under vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import adam_jax
from adam_jax.formats.bitsandbytes import DynamicMap, FlatBlockwise
from adam_jax.formats.blockwise import Blocks
from tests.catalogue import every_member
from tests.test_formats_bitsandbytes import naive_decode, naive_encode


def naive_adam8bit(params, state, grad, rate, b1=0.9, b2=0.999, eps=1e-8):
    """As kOptimizerStatic8bit2StateBlockwise: parameters move by the moments before codes."""
    m = b1 * naive_decode(state["state1"], state["absmax1"], True) + (1 - b1) * grad
    v = b2 * naive_decode(state["state2"], state["absmax2"], False) + (1 - b2) * grad * grad
    step = state["step"] + 1
    root = np.sqrt(1 - b2**step)
    params = params - rate * root / (1 - b1**step) * m / (np.sqrt(v) + eps * root)
    (state1, absmax1), (state2, absmax2) = naive_encode(m, True), naive_encode(v, False)
    names = ("step", "state1", "state2", "absmax1", "absmax2")
    return params, dict(zip(names, (step, state1, state2, absmax1, absmax2), strict=True))


def test_a_run_of_bitsandbytes_goes_on_here_and_back():
    """Its state is made by hand from ours, which is made by hand from its."""
    rng, shape = np.random.default_rng(0), (50, 100)
    params = rng.normal(size=shape) / 10
    codes, scales = np.zeros(shape, np.uint8), np.zeros(20)
    theirs = {"step": 0, "state1": codes, "state2": codes, "absmax1": scales, "absmax2": scales}
    for _ in range(10):
        params, theirs = naive_adam8bit(params, theirs, rng.normal(size=shape), 1e-3)

    moments = adam_jax.BitsAndBytes8()
    tx = adam_jax.adam(1e-3, mu_dtype=moments, nu_dtype=moments)
    ours = jnp.asarray(params, jnp.float32)
    inner, *rest = tx.init(ours)

    def stored(i, like):
        codes = jnp.asarray(theirs[f"state{i}"], jnp.uint8)
        return Blocks(codes, jnp.asarray(theirs[f"absmax{i}"], jnp.float32), like.format)

    imported = inner._replace(
        count=jnp.int32(theirs["step"]), mu=stored(1, inner.mu), nu=stored(2, inner.nu)
    )
    assert jax.tree.structure(imported) == jax.tree.structure(inner)
    state, update = (imported, *rest), jax.jit(lambda g, s, p: adam_jax.step(tx, g, s, p))
    for _ in range(20):
        grad = rng.normal(size=shape).astype(np.float32)
        params, theirs = naive_adam8bit(params, theirs, grad, 1e-3)
        ours, state = update(grad, state, ours)
    np.testing.assert_allclose(ours, params, atol=1e-4)
    assert np.mean(np.abs(ours - params)) < 1e-6
    for i, slot in ((1, state[0].mu), (2, state[0].nu)):
        # A code apart where a moment lay in the middle of two, and what came of it.
        assert np.mean(np.asarray(slot.codes) != theirs[f"state{i}"]) < 0.01
        np.testing.assert_allclose(slot.scale, theirs[f"absmax{i}"], rtol=0.02)
        back = naive_decode(np.asarray(slot.codes), np.asarray(slot.scale), i == 1)
        np.testing.assert_allclose(slot.format.decode(slot, jnp.float32), back, rtol=3e-7)


@every_member
def test_every_member_trains_as_in_float32(member):
    moments = adam_jax.BitsAndBytes8()
    tx = member.alias(3e-2, **member.stored(moments, moments))
    (losses, state), (plain, _) = fit(tx), fit(member.alias(3e-2))
    assert plain[-1] < 0.1 * plain[0]
    assert np.abs(losses - plain).max() < 0.02 * plain[0]
    slots = [getattr(state[0], name) for name in member.slots]
    assert {slot.codes.dtype for slot in slots if isinstance(slot, Blocks)} == {jnp.dtype("uint8")}


def fit(tx, turns=150):
    """Least squares; scan sees to it that the state keeps its form."""
    x = jax.random.normal(jax.random.key(0), (32, 65))
    goal = jax.random.normal(jax.random.key(1), (65, 64)) / 8

    def loss(w):
        return jnp.mean((x @ (w - goal)) ** 2)

    def body(carry, _):
        params, state = carry
        return adam_jax.step(tx, jax.grad(loss)(params), state, params), loss(params)

    params = jnp.zeros((65, 64))
    (_, state), losses = jax.jit(
        lambda params: jax.lax.scan(body, (params, tx.init(params)), length=turns)
    )(params)
    return np.asarray(losses), state


def both(**kwargs):
    moments = adam_jax.BitsAndBytes8(**kwargs)
    return adam_jax.adamw(1e-2, mu_dtype=moments, nu_dtype=moments)


def test_which_leaves_have_codes():
    params = {"kernel": jnp.ones((64, 65)), "half": jnp.ones(4096, "bfloat16")}
    inner = both().init(params | {"bias": jnp.ones(4095), "number": jnp.ones(())})[0]
    dtypes = {name: getattr(x, "codes", x).dtype.name for name, x in inner.nu.items()}
    assert dtypes == {"kernel": "uint8", "half": "uint8", "bias": "float32", "number": "float32"}
    assert inner.mu["kernel"].format.codec.signed and not inner.nu["kernel"].format.codec.signed
    assert both(min_size=0).init(jnp.ones(()))[0].mu.codes.shape == ()
    assert both() == both() and both() != both(min_size=1)
    forms = (adam_jax.BitsAndBytes8(), DynamicMap(True), FlatBlockwise(DynamicMap(True)))
    assert not any(map(callable, forms)) and len(set(map(hash, forms))) == 3


def test_vmap_donation_and_no_table():
    tx = both()
    update = jax.jit(lambda p, s: adam_jax.step(tx, jnp.sin(p), s, p), donate_argnums=(0, 1))
    params = np.stack([np.linspace(-1, 1, 5000), np.linspace(2, 3, 5000)]).astype(np.float32)
    start = jax.vmap(lambda p: (p, tx.init(p)))(params)
    assert start[1][0].nu.codes.shape == (2, 5000) and start[1][0].nu.scale.shape == (2, 20)
    after, state = jax.vmap(update)(*jax.vmap(update)(*start))
    for i in range(2):
        alone, its = update(*update(jnp.asarray(params[i]), tx.init(jnp.asarray(params[i]))))
        np.testing.assert_allclose(after[i], alone, rtol=1e-6)
        assert np.mean(state[0].mu.codes[i] != its[0].mu.codes) < 1e-3
    lowered = update.lower(params[0], tx.init(jnp.asarray(params[0])))
    memory = lowered.compile().memory_analysis()
    assert memory is not None and memory.alias_size_in_bytes >= 5000 * (4 + 1 + 1) + 2 * 20 * 4
    words = ("gather", "sort", "while")
    assert [word for word in words if f"stablehlo.{word}" in lowered.as_text()] == []


@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_sharded_over_rows_nothing_is_sent(kind):
    mesh, tx = jax.make_mesh((8,), ("data",), axis_types=(kind,)), both()
    host = np.sin(np.arange(16 * 256, dtype=np.float32)).reshape(16, 256)
    update = jax.jit(lambda params, state: adam_jax.step(tx, params, state, params))
    alone = update(*update(host, tx.init(jnp.asarray(host))))
    with jax.set_mesh(mesh):
        params = jax.device_put(host, NamedSharding(mesh, P("data")))
        start = params, tx.init(params)
        after = update(*update(*start))
        text = update.lower(*start).compile().as_text()
    jax.tree.map(np.testing.assert_array_equal, after, alone)
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(start), strict=True):
        assert x.ndim == 0 or x.sharding.is_equivalent_to(y.sharding, x.ndim)
        assert x.ndim == 0 or y.sharding.spec == P("data")
    moving = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    assert [word for word in moving if word in text] == []


def test_errors():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def ones(shape, *spec):
        return jax.device_put(jnp.ones(shape), NamedSharding(mesh, P(*spec)))

    small = both().init(jnp.ones(100, "c8"))[0]  # float32, as a small leaf of any dtype.
    assert (small.mu.dtype, small.nu.dtype) == ("complex64", "float32")
    assert both().init(ones((64, 100)))[0].mu.scale.sharding.is_fully_replicated
    for make, words in (
        (lambda: adam_jax.BitsAndBytes8(-1), ["min_size", "-1", "4096"]),
        (lambda: adam_jax.BitsAndBytes8(1.5), ["min_size", "1.5"]),
        (lambda: both().init({"w": ones((16, 1024), None, "data")}), ["'w'", "'data'", "int8"]),
        (lambda: both().init(ones((64, 100), "data")), ["(64, 100)", "256", "first axis"]),
        (lambda: both().init({"w": jnp.ones(5000, "c8")}), ["'w'", "complex64", "mu_dtype"]),
    ):
        with pytest.raises(ValueError) as error:
            make()
        assert all(word in str(error.value) for word in words), error.value
