"""`mup` steps each leaf like the member alone with the leaf's own hyperparameters."""

import functools
import inspect
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import adam_jax
from adam_jax import sharding
from adam_jax.transfer import mup, mup_init
from tests.catalogue import MEMBERS, Member, every, of_each_kind, slowly
from tests.transfer.blocks import (
    ADAMW,
    ALPHA,
    BASE,
    FACTORS,
    LABELS,
    PARAMS,
    adamw,
    assert_close,
    gradients,
    leaf_of,
    model,
    numbers,
    partitioned,
    schedule,
    stepped,
)

MUP_MEMBERS = [m for m in MEMBERS if m.name != "lamb"]
every_member = slowly(MUP_MEMBERS)
every_kind = every(of_each_kind(MUP_MEMBERS))


@every_member
def test_numbers_of_a_leaf(member):
    given = {k: x for k, x in {"eps": 1e-2, "eps_root": 1e-5}.items() if member.has(k)}
    tx = mup(member.alias, BASE, PARAMS, alpha=ALPHA)(schedule, **given)
    theirs = partitioned(member, learning_rate=schedule, **given)
    chex.assert_trees_all_equal(stepped(tx, PARAMS)[0], stepped(theirs, PARAMS)[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {"weight_decay": schedule},
        {"weight_decay": 0.1, "scale_decay": False},
        {"weight_decay": schedule, "scale_decay": False, "learning_rate": schedule},
        {"eps": 0.0, "eps_hat": 1e-3},
    ],
    ids=lambda given: ", ".join(given),
)
def test_numbers_of_adamw(given):
    tx = adamw(**{"learning_rate": 1e-2} | given)
    ours, _ = stepped(tx, PARAMS)
    chex.assert_trees_all_equal(ours, stepped(partitioned(**given), PARAMS)[0])
    plain, _ = stepped(adam_jax.adamw(**{"learning_rate": 1e-2} | given), PARAMS)
    assert (ours["blocks"][0]["kernel"] != plain["blocks"][0]["kernel"]).any()


@pytest.mark.parametrize(
    "modify",
    [
        adam_jax.cautious,
        adam_jax.atan2,
        adam_jax.clip_update_rms,
        adam_jax.cautious_weight_decay,
        lambda tx: adam_jax.cautious(adam_jax.clip_update_rms(tx, 0.5)),
    ],
)
def test_modifiers_inside_and_around(modify):
    given = {"eps": 1e-3, "weight_decay": 0.1}
    tx = modify(adamw(1e-2, **given))
    assert tx == mup(modify(adam_jax.adamw(1e-2, **given)), BASE, PARAMS, alpha=ALPHA)
    theirs = partitioned(ADAMW, modify, **given)
    chex.assert_trees_all_equal(stepped(tx, PARAMS)[0], stepped(theirs, PARAMS)[0])


def test_schedule_free():
    member = Member("schedule_free_adamw", "")
    tx = mup(adam_jax.schedule_free_adamw, BASE, PARAMS, alpha=ALPHA)(1e-2, weight_decay=0.1)
    theirs = partitioned(member, weight_decay=0.1)
    chex.assert_trees_all_equal(stepped(tx, PARAMS)[0], stepped(theirs, PARAMS)[0])


def matrices(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


def test_angles_are_relative_to_initial_values():
    adamh = functools.partial(adam_jax.adamh, sphere=matrices)
    tx = mup(adamh, BASE, PARAMS, alpha=ALPHA)(schedule, 1e-2, weight_decay=0.1)
    txs = {}
    for path, (rate, eps, n) in FACTORS.items():
        given = {"others_learning_rate": 1e-2 * rate, "eps": 1e-8 * eps, "weight_decay": 0.1 * n}
        angle = functools.partial(lambda count, x: schedule(count) * x, x=rate * n**0.5)
        txs[path] = adamh(angle, **given)
    theirs = optax.partition(txs, LABELS)
    chex.assert_trees_all_equal(stepped(tx, PARAMS)[0], stepped(theirs, PARAMS)[0])


@every_kind
def test_a_model_that_does_not_grow_is_stepped_as_without(member):
    tx = mup(member.alias, PARAMS, PARAMS, alpha=ALPHA)(1e-2)
    plain = member.alias(1e-2)
    assert jax.tree.structure(tx.init(PARAMS)) == jax.tree.structure(plain.init(PARAMS))
    chex.assert_trees_all_equal(stepped(tx, PARAMS)[0], stepped(plain, PARAMS)[0])


def test_transformations_and_functions_compare_and_pickle_by_value():
    made = mup(adam_jax.adamw, BASE, PARAMS)
    shapes = jax.eval_shape(lambda: BASE), jax.eval_shape(lambda: PARAMS)
    assert made == mup(adam_jax.adamw, *shapes) != mup(adam_jax.adamw, BASE, PARAMS, alpha=0.5)
    assert hash(made) == hash(mup(adam_jax.adamw, *shapes))
    assert pickle.loads(pickle.dumps(made)) == made
    tx = made(1e-3)
    assert tx == mup(adam_jax.adamw(1e-3), BASE, PARAMS) != adam_jax.adamw(1e-3)
    assert hash(tx) == hash(made(1e-3)) and pickle.loads(pickle.dumps(tx)) == tx
    assert inspect.signature(made) == inspect.signature(adam_jax.adamw)


def test_what_mup_refuses():
    def refused(tx, match, *args, **kwargs):
        with pytest.raises(ValueError, match=match):
            its = mup(tx, BASE, PARAMS, **kwargs)
            its(*args) if args else None

    refused(adam_jax.lamb, "^tx must have an update that .* adamw for lamb", 1e-3)
    refused(adam_jax.adam(1e-3, l2=0.1), "^l2 must be None, .* write adamw")
    refused(adam_jax.scale_by_adam(), "^tx must have a learning rate, as adamw")
    refused(optax.adamw(1e-3), "^tx must be a member of adam_jax, got Gradient")
    clip = adam_jax.clip_by_global_norm(1.0)
    chained = adam_jax.chain(clip, adam_jax.adamw(1e-3))
    refused(chained, r"got Chain: write mup\(adamw\(...\)\), groups\(mup\(adamw\), ...\)")
    for alpha in (0.4, 1.1, float("nan")):
        refused(adam_jax.adamw, r"^alpha must be in \[0.5, 1\]", alpha=alpha)
    once = mup(adam_jax.adamw(1e-3), BASE, PARAMS)
    refused(once, "^tx must not have factors already: write mup or layer_decay once")
    with pytest.raises(ValueError, match="mup was told of.*got a leaf at 'other'"):
        once.init({"other": jnp.ones(3)})
    grads = {"other": jnp.ones(3)}
    with pytest.raises(ValueError, match="mup was told of"):
        once.update(grads, adam_jax.adamw(1e-3).init(grads), grads)


def rms(x):
    return float(jnp.sqrt(jnp.mean(jnp.square(x))))


@pytest.mark.parametrize("scale", [lambda n: 1.0, lambda n: n**-0.5, lambda n: 1 / n])
def test_initial_values_have_the_size_that_follows_from_the_base_models(scale):
    """For any scaling with the width by the initializer."""

    def init(width, count):
        its = jax.tree.map(lambda p: p * scale(width), model(width, count))
        return its | {"norm": jnp.ones(width), "zeros": jnp.zeros(width), "n": jnp.arange(3)}

    base, params = init(64, 1), init(256, 3)
    scaled = mup_init(params, base)
    for path in ("in", "out/kernel", "blocks/0/bias", "out/bias", "norm"):
        size = rms(leaf_of(scaled, path))
        assert size == pytest.approx(rms(leaf_of(base, path)), rel=1e-5), path
    for k in range(3):
        kernel = scaled["blocks"][k]["kernel"]
        assert rms(kernel) == pytest.approx(rms(base["blocks"][0]["kernel"]) / 2, rel=1e-5)
        # The same direction: scaled, not redrawn.
        ratio = kernel / params["blocks"][k]["kernel"]
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)
    assert (scaled["zeros"] == 0).all() and (scaled["n"] == params["n"]).all()
    np.testing.assert_allclose(scaled["norm"], 1.0, rtol=1e-6)
    half = mup_init(
        jax.tree.map(lambda p: p.astype(jnp.bfloat16), params["blocks"]), base["blocks"]
    )
    assert half[0]["kernel"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="^base must have initial values, got the shape"):
        mup_init(params, jax.eval_shape(lambda: base))


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25, 1e-25 - 1e-25j, 3 + 4j])
def test_initial_values_of_any_size_and_phase(size):
    dtype = jnp.complex64 if isinstance(size, complex) else jnp.float32
    base, params = ({"w": jnp.asarray(np.full((n, n), size), dtype)} for n in (4, 8))
    found = mup_init(params, base)["w"]
    assert found.dtype == params["w"].dtype
    np.testing.assert_allclose(found, np.full((8, 8), size / np.sqrt(2)), rtol=1e-6)


def test_stacked_layers_have_the_size_of_the_first_layer_of_the_base():
    def stack(width, layers):
        return {"w": jnp.stack([jnp.full((width, width), 2.0**i) for i in range(layers)])}

    found = mup_init(stack(8, 3), stack(4, 2), layers="w")["w"]
    np.testing.assert_allclose(found, np.full((3, 8, 8), 1 / np.sqrt(2)), rtol=1e-6)


# Together with wrappers, storage, sharding and compiled programs.

AROUND = {
    "chain": lambda tx: optax.chain(optax.scale(2.0), tx),
    "everything": lambda tx: adam_jax.accumulate(
        adam_jax.telemetry(
            adam_jax.skip_nonfinite(
                adam_jax.chain(adam_jax.clip_by_global_norm(0.05), tx, adam_jax.ema_params(0.9))
            ),
            every=1,
        ),
        2,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_wrappers(around):
    given = {"learning_rate": schedule, "weight_decay": 0.1, "eps": 1e-3}
    ours, state = stepped(around(adamw(**given)), PARAMS, 6)
    theirs, other = stepped(around(partitioned(**given)), PARAMS, 6)
    assert_close(ours, theirs)
    if around is AROUND["everything"]:
        [ema], [expected] = (optax.tree.get_all_with_path(s, "ema") for s in (state, other))
        assert_close(ema[1], expected[1])


def test_groups_have_the_factors_on_top_of_their_own_numbers():
    tx = adam_jax.groups(
        adamw,
        {".*bias": {"weight_decay": 0.0, "learning_rate": 2e-2}, "in": None},
        learning_rate=1e-2,
        weight_decay=0.1,
    )
    txs = {"in": optax.set_to_zero()}
    for path, factors in [*FACTORS.items()][1:]:
        own = {"weight_decay": 0.0, "learning_rate": 2e-2} if "bias" in path else {}
        txs[path] = adam_jax.adamw(**numbers(ADAMW, factors, **({"weight_decay": 0.1} | own)))
    assert_close(stepped(tx, PARAMS)[0], stepped(optax.partition(txs, LABELS), PARAMS)[0])


def test_hyperparameters_in_the_state_are_those_of_the_base_model():
    tx = adam_jax.with_hyperparams(adamw)(learning_rate=1.0, weight_decay=0.1)
    state = adam_jax.set_hyperparams(tx.init(PARAMS), learning_rate=1e-2)
    assert state.hyperparams["weight_decay"] == np.float32(0.1)
    ours, state = stepped(tx, PARAMS, state=state)
    theirs, _ = stepped(adamw(1e-2, weight_decay=0.1), PARAMS)
    assert_close(ours, theirs)
    scheduled = adam_jax.with_hyperparams(adamw)(learning_rate=schedule)
    assert_close(stepped(scheduled, PARAMS)[0], stepped(adamw(schedule), PARAMS)[0])
    grouped = functools.partial(adam_jax.groups, adamw, {".*bias": {"weight_decay": 0.0}})
    ours, _ = stepped(adam_jax.with_hyperparams(grouped)(learning_rate=1e-2), PARAMS)
    assert_close(ours, stepped(grouped(learning_rate=1e-2), PARAMS)[0])


STORAGE = {
    "float32": {},
    "bfloat16": {"mu_dtype": jnp.bfloat16},
    "int8": {"mu_dtype": jnp.int8, "nu_dtype": jnp.int8},
    "int4": {"mu_dtype": jnp.int4, "nu_dtype": jnp.int4},
    "stochastic": {"nu_dtype": adam_jax.stochastic(jnp.bfloat16)},
    "factored": {"nu_dtype": adam_jax.Factored()},
    "block means": {"nu_dtype": adam_jax.AdamMini()},
}


@pytest.mark.parametrize("storage", STORAGE.values(), ids=STORAGE)
def test_moments_are_stored_as_without_and_updates_are_multiples(storage):
    """Without ε and weight decay, only the factor of the learning rate remains."""
    base, params = ({"k": jnp.ones((n, n)), "b": jnp.ones(n)} for n in (32, 128))
    plain = adam_jax.adam(1e-2, eps=0.0, **storage)
    tx = mup(plain, base, params)
    state = other = tx.init(params)
    for t in range(3):
        keys = jax.random.split(jax.random.key(t))
        grads = {"k": jax.random.normal(keys[0], (128, 128)), "b": jax.random.normal(keys[1], 128)}
        u, state = jax.jit(tx.update)(grads, state, params)
        v, other = jax.jit(plain.update)(grads, other, params)
        chex.assert_trees_all_equal(u, {"k": v["k"] / 4, "b": v["b"]}, strict=True)
    chex.assert_trees_all_equal(state, other, strict=True)


def test_weights_of_16_bits_with_a_residual():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    ours, _ = stepped(adam_jax.master_residual(adamw(1e-2)), params)
    theirs, _ = stepped(adam_jax.master_residual(partitioned(learning_rate=1e-2)), params)
    wide, _ = stepped(adamw(1e-2), jax.tree.map(lambda p: p.astype(jnp.float32), params))
    assert_close(ours, theirs, rtol=2**-7)
    assert_close(ours, wide, rtol=2**-7)


def on(count):
    return Mesh(np.array(jax.devices()[:count]), ("data",))


@pytest.mark.parametrize("kwargs", [{}, STORAGE["int8"]], ids=["float32", "int8"])
def test_a_state_split_over_8_devices(kwargs):
    base, params = ({"k": jnp.ones((n, n)), "b": jnp.ones(n)} for n in (32, 256))
    tx = mup(adam_jax.adamw(1e-2, eps=1e-3, **kwargs), base, params)
    whole, state = stepped(tx, params)
    copied = jax.device_put(params, NamedSharding(on(8), PartitionSpec()))
    split = sharding.shard_state(tx, on(8))
    ours, own = stepped(split, copied)
    assert_close(ours, whole)
    assert len(jax.tree.leaves(own)[1].addressable_shards) == 8
    assert jax.tree.structure(own) == jax.tree.structure(state)


def test_a_part_of_a_leaf_inside_shard_map_has_the_factors_of_the_whole():
    base, params = ({"k": jnp.ones((n, n)), "b": jnp.ones(n)} for n in (2, 16))
    tx = mup(adam_jax.adamw(1e-2), base, params)
    split = {"k": PartitionSpec("data"), "b": PartitionSpec("data")}

    @functools.partial(jax.shard_map, mesh=on(8), in_specs=(split, split), out_specs=split)
    def step(grads, params):
        return adam_jax.step(tx, grads, tx.init(params), params)[0]

    grads = gradients(params, 0)
    assert_close(jax.jit(step)(grads, params), adam_jax.step(tx, grads, tx.init(params), params)[0])


def test_leaves_that_are_none_integers_or_masked():
    base, params = (
        {"w": jnp.ones((n, n)), "n": jnp.zeros([], jnp.int32), "none": None, "kept": jnp.ones(3)}
        for n in (4, 16)
    )
    tx = optax.masked(mup(adam_jax.adamw(1e-2), base, params), {"w": True, "n": False,
                      "none": None, "kept": False})  # fmt: skip
    grads = {"w": jnp.ones((16, 16)), "n": None, "none": None, "kept": jnp.zeros(3)}
    plain = mup(adam_jax.adamw(1e-2), base, params)
    for its in (tx, plain):
        updates, _ = its.update(grads, its.init(params), params)
        np.testing.assert_allclose(updates["w"], -2.5e-3 * (1 + 4e-4), rtol=1e-5)
        assert updates["n"] is None and updates["none"] is None


def test_as_an_argument_of_a_program_another_learning_rate_is_no_other_program():
    traced = []

    @jax.jit
    def step(tx, grads, state, params):
        traced.append(1)
        return adam_jax.step(tx, grads, state, params)

    grads = gradients(PARAMS, 0)
    for rate in (1e-2, 1e-3):
        tx = adamw(jnp.float32(rate))
        ours, _ = step(tx, grads, tx.init(PARAMS), PARAMS)
        assert_close(ours, stepped(adamw(rate), PARAMS, 1)[0])
    assert len(traced) == 1


def test_made_inside_a_program():
    base = jax.eval_shape(lambda: BASE)

    @jax.jit
    def step(grads, params):
        tx = mup(adam_jax.adamw, base, params, alpha=ALPHA)(1e-2)
        return adam_jax.step(tx, grads, tx.init(params), params)[0]

    assert_close(step(gradients(PARAMS, 0), PARAMS), stepped(adamw(1e-2), PARAMS, 1)[0])
