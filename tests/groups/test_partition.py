"""Groups with separate optimizers: the steps of each alone, and of `optax.partition`."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from tests.catalogue.runs import raised
from tests.catalogue.training import temporary, trained

pytestmark = pytest.mark.usefixtures("standard_promotion")
every_form = pytest.mark.parametrize("through", ["step", "update"])
muon = functools.partial(optax.contrib.muon, weight_decay=0.1)

PARAMS = {
    "layers": [
        {
            "kernel": jax.random.normal(jax.random.key(i), (6, 4)),
            "bias": jnp.linspace(-1.0, 1.0, 4),
        }
        for i in range(2)
    ],
    "embedding": jax.random.normal(jax.random.key(2), (5, 3)),
    "frozen": {"kernel": jnp.array([[1.0, -0.0]])},
    "none": None,
}
FROZEN, KERNELS, EMBEDDING, REST = "frozen/.*", r".*/kernel", "embedding", ".*"
OURS = {EMBEDDING: adam_jax.amsgrad(3e-3), REST: adam_jax.adamw(1e-2, weight_decay=0.1)}


def entries(frozen=None):
    return {FROZEN: frozen, KERNELS: muon(1e-2)} | OURS


def labels(params, names=(FROZEN, KERNELS, EMBEDDING, REST)):
    def label(path, _):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        return next(name for name in names if re.fullmatch(name, path))

    return jax.tree_util.tree_map_with_path(label, params)


def by_optax(txs):
    return optax.partition(txs, functools.partial(labels, names=tuple(txs)))


def gradients(_, turn):
    return jax.tree.map(lambda p: jnp.sin(p * (turn + 1) + turn), PARAMS)


def train(tx, through="step"):
    return trained(tx, PARAMS, gradients, 50, through)


@every_form
def test_the_steps_and_the_state_are_those_of_optax_partition(through):
    ours, theirs = adam_jax.groups(entries()), by_optax(entries(optax.set_to_zero()))
    start = [jax.tree.structure(tx.init(PARAMS)) for tx in (ours, theirs)]
    assert start[0] == start[1]
    chex.assert_trees_all_close(train(ours, through), train(theirs, "update"), rtol=0, atol=1e-6)
    frozen = train(ours, through)[0]["frozen"]["kernel"]
    assert (np.signbit(frozen) == [[False, True]]).all()


def only(tree, name):
    return jax.tree.map(lambda x, own: x if own == name else None, tree, labels(tree))


@pytest.mark.bits
@every_form
def test_ours_have_the_bits_of_each_alone_on_its_own_leaves(through):
    names = {FROZEN: None, KERNELS: adam_jax.mars_adamw(1e-2)} | OURS
    together, _ = trained(adam_jax.groups(names), PARAMS, steps=50, through=through)
    for name, tx in names.items():
        own = only(PARAMS, name)
        if tx is None:
            chex.assert_trees_all_equal(only(together, name), own)
            continue
        alone, _ = trained(tx, own, steps=50, through=through)
        chex.assert_trees_all_equal(only(together, name), alone)


@pytest.mark.bits
def test_nothing_of_a_leafs_size_is_stored_by_the_way():
    params = {name: jnp.ones(30_000) for name in "abcd"}
    tx = adam_jax.groups({"[ab]": adam_jax.adamw(1e-3), "c": adam_jax.amsgrad(1e-3), "d": None})
    for wrapped in (tx, adam_jax.chain(adam_jax.clip_by_global_norm(1.0), tx)):
        assert temporary(wrapped, params) < 0.1


@every_form
@pytest.mark.parametrize("w", [optax.sgd(0.5, momentum=0.9), adam_jax.lion(0.5)])
def test_gradients_that_are_missing_and_integers(through, w):
    tx = adam_jax.groups({"w": w, "frozen": None, ".*": adam_jax.lion(1.0, weight_decay=0.0)})
    params = {"w": jnp.ones(2), "n": jnp.arange(3), "a": jnp.ones(2), "b": jnp.ones(2)}
    params |= {"frozen": jnp.ones(1), "none": None}
    grads = {"w": jnp.ones(2), "n": None, "a": None, "b": jnp.ones(2), "frozen": jnp.ones(1)}
    grads |= {"none": None}
    state = tx.init(params)
    if through == "step":
        moved, _ = adam_jax.step(tx, grads, state, params)
        expected = params | {"w": jnp.full(2, 0.5), "b": jnp.zeros(2)}
        chex.assert_trees_all_close(moved, expected, rtol=0, atol=1e-3)
        return
    updates, _ = tx.update(grads, state, params)
    assert updates["a"] is None and updates["none"] is None and updates["frozen"] == 0
    np.testing.assert_allclose(updates["w"], -0.5, atol=1e-3)
    np.testing.assert_array_equal(updates["b"], -1.0)


def test_extra_arguments_reach_each():
    def update(updates, state, params=None, *, scale, **others):
        del params, others
        return jax.tree.map(lambda u: u * scale, updates), state

    scaled = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    tx = adam_jax.groups({"a": scaled, "b": adam_jax.accumulate(adam_jax.lion(1.0), 2)})
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    updates, state = tx.update(params, tx.init(params), params, scale=3.0, weight=0.0)
    assert (updates["a"] == 3.0).all() and (updates["b"] == 0.0).all()
    assert state.inner_states["b"].inner_state.weight == 0.0


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"w|b": adam_jax.adamw(1e-3), "v": None}, ["'v' matches nothing", "['b', 'w']"]),
        ({".*": adam_jax.adamw(1e-3), "b": None}, ["'b'", "before it took"]),
        ({"w": adam_jax.adamw(1e-3)}, ["got none for ['b']", '".*": adamw(1e-3)']),
    ],
)
def test_expressions_that_do_not_fit_the_leaves(made, words):
    tx = adam_jax.groups(made)
    message = raised(lambda: tx.init({"w": jnp.ones(2), "b": jnp.ones(1)}))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda g: g({"(": adam_jax.adamw(1e-3)}), ValueError, "must be a regular expression"),
        (lambda g: g({".*": None}), ValueError, "must leave a leaf that moves"),
        (lambda g: g({}), ValueError, "must leave a leaf that moves"),
        (lambda g: g({".*": {"b1": 0.5}}), ValueError, r"'\.\*': must have an optimizer.*partial"),
        (lambda g: g({".*": 1e-3}), ValueError, r"'\.\*': the optimizer must be an Optax trans"),
        (lambda g: g({".*": lambda: 1e-3}), ValueError, "the function's result must be an Optax"),
        (lambda g: g({".*": adam_jax.adamw}, {"a": {}}), ValueError, "must be left out"),
        (lambda g: g({".*": adam_jax.lion(1e-3)}, b1=0.5), ValueError, r"\['b1'\].*adamw where"),
        (
            lambda g: g({".*": adam_jax.adamw}),
            TypeError,
            r"'\.\*': adamw\(\) missing.*learning_rate",
        ),
        (
            lambda g: g({"a": adam_jax.adamw, ".*": optax.sgd}, learning_rate=0.1, b1=0.5),
            TypeError,
            r"'\.\*': sgd\(\) got an unexpected keyword argument 'b1': its arguments are learning",
        ),
    ],
)
def test_groups_that_cannot_be_made(make, kind, message):
    with pytest.raises(kind, match=message):
        make(adam_jax.groups)


def test_a_state_that_is_anothers():
    params = {"a": jnp.ones(2), "b": jnp.ones(1), "c": jnp.ones(2)}
    ours = {"a.*": adam_jax.adamw(1e-3), "b": None, ".*": adam_jax.lion(1e-3)}
    tx = adam_jax.groups(ours)
    assert tx != adam_jax.groups(dict(reversed(ours.items())))
    state = tx.init(params)
    other = adam_jax.groups({"a": adam_jax.adamw(1e-3), ".*": adam_jax.lion(1e-3)}).init(params)
    for wrong, message in (
        (adam_jax.adamw(1e-3).init(params), "must be an optax.PartitionState, got tuple"),
        (other, r"an entry for each of \['a\.\*', 'b', '\.\*'\]"),
        (optax.PartitionState(dict.fromkeys(state.inner_states, ())), "optax.MaskedState in each"),
    ):
        with pytest.raises(ValueError, match=message):
            tx.update(params, wrong, params)
    with pytest.raises(ValueError, match="params must be given"):
        tx.update(params, state)


def test_functions_get_the_arguments_of_all_but_what_they_have():
    given = functools.partial(optax.sgd, 0.25), functools.partial(optax.sgd, learning_rate=0.5)
    entries = dict(zip("abcd", (*given, optax.sgd, optax.sgd(2.0)), strict=True))
    tx = adam_jax.groups(entries, learning_rate=1.0)
    params = dict.fromkeys("abcd", jnp.ones(()))
    updates, _ = tx.update(params, tx.init(params), params)
    assert {name: float(-u) for name, u in updates.items()} == dict(a=0.25, b=0.5, c=1.0, d=2.0)


def test_members_of_ours_in_a_chain_of_optaxs_are_stepped_in_one_pass():
    """As inside every other wrapper."""
    by_optax = optax.chain(adam_jax.clip_by_global_norm(1.0), adam_jax.adamw(1e-3))
    ours = adam_jax.chain(adam_jax.clip_by_global_norm(1.0), adam_jax.adamw(1e-3))
    assert adam_jax.groups({".*": by_optax}) == adam_jax.groups({".*": ours})


def test_muon_orthogonalizes_all_that_it_gets():
    """As in docs/recipes.md; without dimension numbers, Muon applies Adam to stacked layers."""
    axes = optax.contrib.MuonDimensionNumbers(-2, -1)
    kernels = optax.contrib.muon(1.0, muon_weight_dimension_numbers=axes)
    tx = adam_jax.groups({".*kernel": kernels, ".*": adam_jax.adamw(1e-3)})
    params = {"kernel": jax.random.normal(jax.random.key(0), (3, 8, 4)), "bias": jnp.ones((3, 4))}
    updates, state = tx.update(params, tx.init(params), params)
    own = state.inner_states[".*kernel"].inner_state.inner_states
    assert [x.shape for x in jax.tree.leaves(own["adam"])] == [()]  # Count
    sizes = jnp.linalg.svd(updates["kernel"], compute_uv=False)
    assert (sizes > 0.5).all() and (sizes < 1.5).all()
