"""Small leaves packed in one buffer: the same bits as separate leaves; conversion both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import adam_jax
from adam_jax import accumulate, adamw, pack_small_leaves, pack_state, unpack_state
from tests.catalogue.recipes import assert_close, gradients, parameters, stepper


def runs(tx, params, state, through="step", dtype=jnp.float32):
    """Parameters and state after each of five steps."""
    step = jax.jit(stepper(tx, through))
    stacked = gradients(params, dtype, bad=False)
    for i in range(5):
        params, state = step(params, state, jax.tree.map(lambda g, i=i: g[i], stacked))
        yield params, state


def run(*args, **kwargs):
    return list(runs(*args, **kwargs))[-1]


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def schedule(count):
    return 1e-2 / (1 + jnp.asarray(count, jnp.float32))


MEMBERS = {
    "adamw, masked": lambda: adamw(schedule, weight_decay=0.1, mask=adam_jax.decay_mask),
    "adam, l2": lambda: adam_jax.adam(1e-2, l2=0.1),
    "adan": lambda: adam_jax.adan(1e-2, weight_decay=0.1),
    "amsgrad": lambda: adam_jax.amsgrad(1e-2),
    "lamb": lambda: adam_jax.lamb(1e-2, weight_decay=0.1),
    "lion": lambda: adam_jax.lion(1e-2),
    "scale_by_adam": adam_jax.scale_by_adam,
    "grokfast": lambda: adam_jax.grokfast(adamw(1e-2)),
    "grams": lambda: adam_jax.grams(adamw(1e-2)),
    "corrected decay": lambda: adam_jax.corrected_weight_decay(
        adamw(schedule, weight_decay=0.1), peak_learning_rate=1e-2
    ),
    "cautious decay": lambda: adam_jax.cautious_weight_decay(adamw(1e-2, weight_decay=0.1)),
    "not decayed times the rate": lambda: adamw(1e-2, weight_decay=0.1, scale_decay=False),
}


@pytest.mark.bits
@pytest.mark.parametrize(
    ("name", "through"),
    [
        *((name, "step") for name in MEMBERS),
        *(pytest.param(name, "update", marks=pytest.mark.slow) for name in list(MEMBERS)[::3]),
    ],
)
def test_packed_is_bit_for_bit_unpacked(name, through):
    apart, params = MEMBERS[name](), parameters()
    together = pack_small_leaves(apart, below=100)
    pairs = zip(
        runs(together, params, together.init(params), through),
        runs(apart, params, apart.init(params), through),
        strict=True,
    )
    for (actual, state), expected in pairs:
        if name == "not decayed times the rate":
            # u·α + λ·θ: XLA fuses one of the two products into the sum; which one differs by loop.
            assert_close((actual, unpack_state(state, params)), expected)
            continue
        assert_same((actual, unpack_state(state, params)), expected)
        assert_same(pack_state(together, expected[1], params), state)


def test_leaves_of_one_dtype_share_a_buffer():
    params = {
        "a": jnp.ones(3),
        "b": jnp.ones((2, 2), jnp.bfloat16),
        "c": jnp.ones(()),
        "d": jnp.ones(1, jnp.bfloat16),
        "large": jnp.ones(50),
        "one": jnp.ones(2, jnp.float16),
    }
    tx = pack_small_leaves(adamw(1e-2, mu_dtype=None), below=50)
    mu = tx.init(params)[0].mu
    assert {(x.shape, x.dtype.name) for x in mu.small} == {((4,), "float32"), ((5,), "bfloat16")}
    assert mu.large["large"].shape == (50,) and mu.large["a"] == optax.MaskedNode()
    assert mu.large["one"].shape == (2,)  # Alone in its buffer, so packing has no benefit.
    grads = jax.tree.map(jnp.ones_like, params)
    updates, state = tx.update(grads, tx.init(params), params)
    for actual, expected in ((updates, params), (state, tx.init(params))):
        described = [jax.tree.map(lambda x: (x.shape, x.dtype), t) for t in (actual, expected)]
        assert described[0] == described[1]
    assert optax.tree.get(state, "mu") is state[0].mu


@pytest.mark.bits
def test_bfloat16_is_rounded_as_apart():
    apart, params = adamw(1e-2, weight_decay=0.1), parameters(jnp.bfloat16)
    together = pack_small_leaves(apart)
    for through in ("step", "update"):
        expected = run(apart, params, apart.init(params), through, dtype=jnp.bfloat16)
        actual, state = run(together, params, together.init(params), through, dtype=jnp.bfloat16)
        assert_same(actual, expected[0])
        assert_same(unpack_state(state, params), expected[1])


def test_partitioned_leaves_stay_by_themselves():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    params = jax.device_put(parameters(), everywhere)
    params["w"] = jax.device_put(params["w"], NamedSharding(mesh, PartitionSpec("x")))
    tx = pack_small_leaves(adamw(1e-2))
    state = tx.init(params)
    assert state[0].mu.large["w"].sharding.spec == PartitionSpec("x")
    assert [x.size for x in state[0].nu.small] == [8 + 48]
    assert state[0].nu.small[0].sharding.is_fully_replicated
    alone = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), params)
    plain = adamw(1e-2)
    actual, _ = run(tx, params, state)
    assert_same(actual, run(plain, alone, plain.init(alone))[0])


def test_inside_other_recipes_and_transformations():
    def recipe(member):
        inner = adam_jax.chain(adam_jax.clip_by_global_norm(1.0), member, adam_jax.ema_params(0.9))
        return adam_jax.accumulate(adam_jax.skip_nonfinite(inner), 2)

    params = parameters()
    apart, together = recipe(adamw(1e-2)), recipe(pack_small_leaves(adamw(1e-2)))
    expected = run(apart, params, apart.init(params))
    actual, state = run(together, params, together.init(params))
    assert_close((actual, unpack_state(state, params)), expected)
    assert_close(pack_state(together, expected[1], params), state)
    with_numbers = adam_jax.with_hyperparams(lambda rate: pack_small_leaves(adamw(rate)))(1e-2)
    plain = adamw(1e-2)
    actual, _ = run(with_numbers, params, with_numbers.init(params))
    assert_same(actual, run(plain, params, plain.init(params))[0])


@pytest.mark.bits
def test_scan_and_vmap():
    apart, together = adamw(1e-2), pack_small_leaves(adamw(1e-2))
    many = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), parameters())

    def trained(tx, params):
        def body(carry, _):
            return adam_jax.step(tx, carry[0], carry[1], carry[0])[::1], None

        return jax.lax.scan(body, (params, tx.init(params)), None, length=4)[0][0]

    expected = jax.jit(jax.vmap(lambda p: trained(apart, p)))(many)
    actual = jax.jit(jax.vmap(lambda p: trained(together, p)))(many)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6), actual, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pack_small_leaves(adamw), "inner must be a member of adam_jax"),
        (lambda: pack_small_leaves(optax.adamw(1e-3)), "innermost, and chain"),
        (lambda: pack_small_leaves(adam_jax.chain(adamw(1e-3))), "got Chain"),
        (lambda: pack_small_leaves(adam_jax.scale_by_learning_rate(1.0)), "a member of adam_jax"),
        (lambda: pack_small_leaves(adam_jax.cautious(adamw(1e-3))), "each element by itself"),
        (lambda: pack_small_leaves(adam_jax.clip_update_rms(adamw(1e-3))), "got ClipUpdateRms"),
        (lambda: pack_small_leaves(adamw(1e-3), -1), "below must be an integer ≥ 0"),
    ],
)
def test_what_cannot_be_packed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_errors_in_a_step():
    params, plain = parameters(), adamw(1e-3)
    tx = pack_small_leaves(plain)
    with pytest.raises(ValueError, match="'b', the gradient is None"):
        tx.update(dict(params, b=None), tx.init(params), params)
    with pytest.raises(ValueError, match="or pack_state with a state of the member alone"):
        tx.update(params, plain.init(params), params)
    with pytest.raises(ValueError, match="that of the same transformation"):
        pack_state(tx, adam_jax.adam(1e-3).init(params), params)
    tx = pack_small_leaves(plain, below=0)
    assert run(tx, params, tx.init(params))[0].keys() == params.keys()


def test_a_packed_state_of_more_parameters():
    tx = adam_jax.pack_small_leaves(adam_jax.adamw(1e-3))
    params = {name: jnp.ones(3) for name in "abc"}
    state = tx.init(params)
    fewer = {"a": params["a"]}
    for step in (tx.update, tx.step):
        with pytest.raises(ValueError, match=r"the state must be of these parameters.*'a'"):
            step(fewer, state, fewer)


def test_packing_leaves_of_no_size_of_mixed_dtypes_and_of_python():
    params = {"a": jnp.zeros(0), "b": jnp.zeros((0, 2)), "c": 1.0, "d": jnp.ones(2)}
    tx, plain = (make(adamw(1e-2)) for make in (adam_jax.pack_small_leaves, lambda tx: tx))
    moved, state = jax.jit(stepper(tx, "step"))(params, tx.init(params), params)
    expected, _ = jax.jit(stepper(plain, "step"))(params, plain.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, moved, expected)
    assert jax.tree.structure(jax.jit(tx.init)(params)) == jax.tree.structure(state)
    empty = {"a": jnp.zeros(0), "b": jnp.zeros(0)}
    moved, _ = jax.jit(stepper(tx, "update"))(empty, tx.init(empty), empty)
    assert moved["a"].shape == (0,)
    integers = {"n": jnp.ones(2, jnp.int32), "m": jnp.ones(2)}
    for around in (tx, accumulate(adamw(1e-3), 2)):
        with pytest.raises(ValueError, match=r"n', "):
            around.update(jax.tree.map(jnp.float32, integers), around.init(integers), integers)
