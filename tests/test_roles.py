"""Roles of leaves by name: public models, trees of traps, and everything that reads roles."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, traverse_util

import adam_jax
from adam_jax import Role, roles, transfer

SHAPES = Path(__file__).parent / "catalogue/shapes"
FILES = {path.stem: json.loads(path.read_text()) for path in SHAPES.glob("*.json")}
PLANTED = {tree["model"]: tree for tree in FILES.pop("planted")}


def flat_roles(leaves):
    shapes = {k: jax.ShapeDtypeStruct(tuple(x["shape"]), jnp.float32) for k, x in leaves.items()}
    return traverse_util.flatten_dict(roles(traverse_util.unflatten_dict(shapes, "/")), sep="/")


@pytest.mark.parametrize("tree", [*FILES.values(), *PLANTED.values()], ids=[*FILES, *PLANTED])
def test_no_role_is_wrong(tree):
    """Unknown roles and axes are right; the judge is the models' source."""
    found = flat_roles(tree["leaves"])
    for path, true in tree["leaves"].items():
        role, layers = found[path], set(true.get("layers", ()))
        assert role.kind in (true["kind"], true.get("or"), "unknown"), path
        if role.kind in ("vector", "unknown"):
            assert set(role.layers) <= layers, path
        else:
            assert set(role.layers) == layers, path
        for axes in ("inputs", "outputs") if role.kind == true["kind"] != "vector" else ():
            assert getattr(role, axes) in ((), tuple(true.get(axes, ()))), (path, axes)


def test_most_roles_are_known():
    its = [x for tree in FILES.values() for x in flat_roles(tree["leaves"]).values()]
    assert len(FILES) == 12 and sum(x.kind == "unknown" for x in its) < 0.07 * len(its)


def test_layers_are_told_or_look_so():
    params = {"blocks": {"kernel": jnp.ones((3, 8, 4)), "bias": jnp.ones((3, 4))}}
    kernel, bias = Role("matrix", (1,), (2,), (0,)), Role("vector", (), (1,), (0,))
    assert roles(params) == roles(params, "blocks/.*") == {"blocks": dict(kernel=kernel, bias=bias)}
    assert str(kernel) == "stacked matrix"
    of_one = roles(params, {"blocks/bias": 1})["blocks"]
    assert of_one["bias"] == bias and of_one["kernel"].kind == "unknown"
    with pytest.raises(ValueError, match="^layers must match the whole path"):
        roles(params, "layers/.*")
    variables = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    assert nnx.to_pure_dict(roles(variables))["kernel"] == Role("unknown", (0,), (1,))


MODEL = {
    "embed": {"embedding": jnp.ones((5, 4))},
    "blocks": [{"query": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}} for _ in range(2)],
    "head": {"kernel": jnp.ones((4, 5))},
}


def test_groups_of_roles():
    by_role = {"matrix": optax.sgd(1.0), "vector": None, ".*": adam_jax.adam(0.1)}
    tx = adam_jax.groups(by_role, roles=roles(MODEL))
    updates, state = tx.update(MODEL, tx.init(MODEL), MODEL)
    assert [*state.inner_states] == [*by_role]
    block = updates["blocks"][0]["query"]
    assert (block["kernel"] == -1).all() and not block["bias"].any()
    np.testing.assert_allclose(updates["head"]["kernel"], -0.1, rtol=1e-6)
    one = functools.partial(adam_jax.groups, adam_jax.adamw, {"vector": dict(weight_decay=0.0)})
    tx = one(roles=roles(MODEL), learning_rate=0.1, weight_decay=0.5)
    by_path = adam_jax.groups(
        adam_jax.adamw, {".*bias": dict(weight_decay=0.0)}, learning_rate=0.1, weight_decay=0.5
    )
    ours, theirs = (x.update(MODEL, x.init(MODEL), MODEL)[0] for x in (tx, by_path))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert {x.group for x in adam_jax.inspect.advise(MODEL, tx).leaves} == {"vector", ""}
    with pytest.raises(
        ValueError, match=r"'convolution' matches nothing: .* whole role .*'vector'"
    ):
        one_more = {"convolution": dict(b1=0.5)}
        adam_jax.groups(adam_jax.adam, one_more, roles=roles(MODEL), learning_rate=0.1).init(MODEL)
    with pytest.raises(ValueError, match="^roles must be of these parameters, got none for 'new'"):
        tx.init(MODEL | {"new": jnp.ones(1)})


def test_decay_of_stacked_biases_and_norms():
    params = {
        "embed": jnp.ones((5, 4)),
        "cls_token": jnp.ones((1, 1, 4)),
        "blocks": {"w": jnp.ones((3, 4, 4)), "bias": jnp.ones((3, 4)), "norm": jnp.ones((3, 4))},
    }
    assert adam_jax.decay_mask(params) == {
        "embed": True,
        "cls_token": False,
        "blocks": {"w": True, "bias": False, "norm": False},
    }


def test_rates_of_layers():
    """Each layer's is 0.5 of that of the next: embedding, two blocks, head."""
    tx = transfer.layer_decay(adam_jax.adam, MODEL, 0.5)(0.8)
    params, _ = tx.step(MODEL, tx.init(MODEL), MODEL)
    moved = jax.tree.map(lambda old, new: float((old - new).ravel()[0]), MODEL, params)
    found = [moved["embed"]["embedding"], *(x["query"]["kernel"] for x in moved["blocks"])]
    np.testing.assert_allclose([*found, moved["head"]["kernel"]], [0.1, 0.2, 0.4, 0.8], rtol=1e-5)


@pytest.mark.parametrize(
    ("params", "decay", "message"),
    [
        (MODEL, 1.5, r"^decay must be in \[0, 1\]"),
        ({"a": jnp.ones(2)}, 0.5, "^params must have layers with numbers in their paths"),
        (
            {"blocks": {"kernel": jnp.ones((3, 4, 4)), "bias": jnp.ones((3, 4))}},
            0.5,
            "^params must have layers as separate leaves, got the stacked vector 'blocks/bias'",
        ),
    ],
)
def test_layers_that_have_no_rate(params, decay, message):
    with pytest.raises(ValueError, match=message):
        transfer.layer_decay(adam_jax.adam, params, decay)


def test_a_direction_without_a_rate_is_refused():
    """`mup` too, where nothing grows."""
    for change in (
        lambda tx: transfer.layer_decay(tx, MODEL, 0.5),
        lambda tx: transfer.mup(tx, MODEL, MODEL),
    ):
        with pytest.raises(ValueError, match="^tx must have a learning rate"):
            change(adam_jax.scale_by_adam())
    with pytest.raises(ValueError, match="^tx must have an update that does not depend"):
        transfer.mup(adam_jax.lamb(0.1), MODEL, MODEL)


def test_matrices_on_the_sphere_are_those_that_roles_names():
    params = jax.tree.map(lambda p: jax.random.normal(jax.random.key(0), p.shape), MODEL)
    tx = adam_jax.adamh(0.1)
    kept = [x for x in jax.tree.leaves(tx.init(params)[3].inner_state.scale) if np.ndim(x) == 2]
    moved, _ = tx.step(params, tx.init(params), params)
    norm = lambda tree: np.linalg.norm(tree["query"]["kernel"])  # noqa: E731
    assert len(kept) == 2
    np.testing.assert_allclose(norm(moved["blocks"][0]), norm(params["blocks"][0]), rtol=1e-6)
    with pytest.raises(ValueError, match="^sphere must be given where no name says matrix"):
        tx.init({"w1": jnp.ones((2, 2))})
