"""`mup` steps each leaf like the member alone with the leaf's own hyperparameters."""

import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax.transfer import mup, mup_init
from adam_jax.transfer.mup import Factors, with_leaf_factors
from tests.catalogue import MEMBERS, Member, every, of_each_kind, slowly
from tests.transfer.blocks import ADAMW, ALPHA, BASE, FACTORS, PARAMS, leaf_of, model, numbers

MUP_MEMBERS = [m for m in MEMBERS if m.name != "lamb"]
every_member = slowly(MUP_MEMBERS)
every_kind = every(of_each_kind(MUP_MEMBERS))


def steps(tx, params, count=3):
    """The parameters after some steps along gradients that depend on them."""
    state, update = tx.init(params), jax.jit(tx.update)
    for t in range(count):
        grads = jax.tree.map(lambda p, t=t: 1e-3 * jnp.sin(3 * p + t), params)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


class Apart:
    """A separate transformation for each dictionary entry, in one program."""

    def __init__(self, txs):
        self.txs = txs

    def init(self, params):
        return {path: tx.init(params[path]) for path, tx in self.txs.items()}

    def update(self, grads, state, params):
        its = {k: tx.update(grads[k], state[k], params[k]) for k, tx in self.txs.items()}
        return {k: u for k, (u, _) in its.items()}, {k: s for k, (_, s) in its.items()}


def check_each_leaf(member, tx, modify=lambda tx: tx, **given):
    """Compares a transformation of the model with the member applied to each leaf alone."""
    together = steps(tx, PARAMS)
    txs = {k: modify(member.function(**numbers(member, f, **given))) for k, f in FACTORS.items()}
    alone = steps(Apart(txs), {path: leaf_of(PARAMS, path) for path in FACTORS})
    for path, expected in alone.items():
        np.testing.assert_array_equal(leaf_of(together, path), expected, err_msg=path)
    return together


def schedule(count):
    return 1e-2 * 0.5 ** jnp.asarray(count, jnp.float32)


@every_member
def test_numbers_of_a_leaf(member):
    given = {"eps": 1e-3} if member.has("eps") else {}
    tx = mup(member.alias, BASE, PARAMS, alpha=ALPHA)(schedule, **given)
    check_each_leaf(member, tx, learning_rate=schedule, **given)


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {"weight_decay": 0.1},
        {"weight_decay": schedule},
        {"weight_decay": 0.1, "scale_decay": False},
        {"weight_decay": schedule, "scale_decay": False, "learning_rate": schedule},
        {"eps": 1e-3, "eps_root": 1e-5},
        {"eps": 0.0, "eps_hat": 1e-3},
        {"eps": 0.0},
        {"eps": 1e-18},
    ],
    ids=lambda given: ", ".join(given),
)
def test_numbers_of_adamw(given):
    tx = mup(adam_jax.adamw, BASE, PARAMS, alpha=ALPHA)(**{"learning_rate": 1e-2} | given)
    together = check_each_leaf(ADAMW, tx, **given)
    plain = steps(adam_jax.adamw(**{"learning_rate": 1e-2} | given), PARAMS)
    assert (together["blocks"][0]["kernel"] != plain["blocks"][0]["kernel"]).any()


@pytest.mark.parametrize(
    "modify",
    [
        adam_jax.cautious,
        adam_jax.nesterov,
        adam_jax.atan2,
        adam_jax.clip_update_rms,
        adam_jax.grokfast,
        adam_jax.cautious_weight_decay,
        lambda tx: adam_jax.cautious(adam_jax.clip_update_rms(tx, 0.5)),
    ],
)
def test_modifiers_inside_and_around(modify):
    numbers = {"eps": 1e-3, "weight_decay": 0.1}
    tx = modify(mup(adam_jax.adamw, BASE, PARAMS, alpha=ALPHA)(1e-2, **numbers))
    assert tx == mup(modify(adam_jax.adamw(1e-2, **numbers)), BASE, PARAMS, alpha=ALPHA)
    check_each_leaf(ADAMW, tx, modify, **numbers)


def test_schedule_free():
    member = Member("schedule_free_adamw", "")
    tx = mup(adam_jax.schedule_free_adamw, BASE, PARAMS, alpha=ALPHA)(1e-2, weight_decay=0.1)
    check_each_leaf(member, tx, weight_decay=0.1)


@pytest.mark.parametrize(
    "member", [m for m in MUP_MEMBERS if m.scale_invariant], ids=lambda m: m.name
)
def test_every_epsilon_of_a_member_has_a_unit(member):
    """A gradient divided by 64, with a factor of 1/64, gives the same update."""
    large = {k: 1e-4 for k in ("eps", "eps_root") if member.has(k)}
    tx = member.alias(1e-2, **large)
    factors = (("(the whole tree)", Factors(eps=1 / 64)),)
    small = with_leaf_factors(tx, factors)
    params = jnp.linspace(-1.0, 1.0, 7)
    states, first = [tx.init(params), small.init(params)], None
    for t in range(3):
        grads = jnp.sin(3 * params + t) * 1e-2
        u, states[0] = tx.update(grads, states[0], params)
        v, states[1] = small.update(grads / 64, states[1], params)
        np.testing.assert_allclose(v, u, rtol=1e-6)
        first = u
    assert (first != 0).all()


@every_kind
def test_a_model_that_does_not_grow_is_stepped_as_without(member):
    tx = mup(member.alias, PARAMS, PARAMS, alpha=ALPHA)(1e-2)
    plain = member.alias(1e-2)
    assert jax.tree.structure(tx.init(PARAMS)) == jax.tree.structure(plain.init(PARAMS))
    for a, b in zip(*(jax.tree.leaves(steps(x, PARAMS)) for x in (tx, plain)), strict=True):
        np.testing.assert_array_equal(a, b)


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
    refused(once, "^tx must not have factors already: write mup once")
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
