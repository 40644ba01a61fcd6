"""Converting states shaped like PyTorch's, without PyTorch: round trips and error messages."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import convert
from tests.catalogue.oracles import nadam_product
from tests.catalogue.runs import raised

PARAMS = {
    "conv": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
    "dense": {"kernel": jnp.ones((6, 5)), "bias": jnp.ones(5)},
    "scale": jnp.ones(()),
}
NAMES = convert.layer("conv", "features.0", (2, 3, 1, 0)) | convert.layer("dense", "classifier")
SHAPES = {
    "features.0.weight": (4, 2, 3, 3),
    "features.0.bias": (4,),
    "classifier.weight": (5, 6),
    "classifier.bias": (5,),
    "scale": (),
}
LATE = {"max_before_correction": True}
ADAM = adam_jax.adam(1e-3)
SEVEN, LARGEST = np.float32(7), 2**31 - 1


def state_dict(*slots, step=SEVEN, names=True, **scalars):
    """NumPy arrays in the form of `torch.optim.Optimizer.state_dict`."""
    rng = np.random.default_rng(0)
    entries = {}
    for i, shape in enumerate(SHAPES.values()):
        entries[i] = {"step": step}
        entries[i] |= {name: np.array(x, np.float32) for name, x in scalars.items()}
        entries[i] |= {slot: rng.uniform(size=shape).astype(np.float32) for slot in slots}
    group = {"lr": 1e-3, "params": list(range(len(SHAPES)))}
    group |= {"param_names": list(SHAPES)} if names else {}
    return {"state": entries, "param_groups": [group]}


def adam_dict(**kwargs):
    return state_dict("exp_avg", "exp_avg_sq", **kwargs)


MEMBERS = {
    "adam": (adam_jax.adam(1e-3), adam_dict()),
    "adamw": (adam_jax.adamw(lambda count: 1e-3, mask=adam_jax.decay_mask), adam_dict()),
    "amsgrad": (
        adam_jax.amsgrad(1e-3, **LATE),
        state_dict("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    ),
    "nadam": (
        adam_jax.nadam(2e-3, momentum_decay=0.004),
        adam_dict(mu_product=nadam_product(7, 0.9, 0.004)),
    ),
    "radam": (adam_jax.radam(1e-3, eps=0.0, eps_hat=1e-8), adam_dict()),
    "adamax": (adam_jax.adamax(2e-3), state_dict("exp_avg", "exp_inf")),
    "cautious": (adam_jax.cautious(adam_jax.adam(1e-3)), adam_dict()),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_there_and_back_is_the_same(name):
    tx, saved = MEMBERS[name]
    state = convert.from_torch(saved, PARAMS, tx, names=NAMES)
    like = jax.tree.map(lambda x: (x.shape, x.dtype), tx.init(PARAMS))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == like
    assert int(state[0].count) == 7
    mu, first = state[0].mu, saved["state"]
    np.testing.assert_array_equal(mu["dense"]["kernel"], first[2]["exp_avg"].T)
    expected = np.einsum("oihw->hwio", first[0]["exp_avg"])
    np.testing.assert_array_equal(mu["conv"]["kernel"], expected)
    back = convert.to_torch(state, PARAMS, tx, saved, names=NAMES)
    assert back["param_groups"] is saved["param_groups"]
    assert jax.tree.structure(back) == jax.tree.structure(saved)
    jax.tree.map(np.testing.assert_array_equal, back["state"], saved["state"])
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(back["state"]))


def around():
    adamw, labels = adam_jax.adamw, {"conv": "a", "dense": "b", "scale": "b"}
    schedule = optax.constant_schedule(1e-3)
    both = {"a": adamw(schedule), "b": adamw(schedule, b2=0.99)}
    clip = adam_jax.clip_by_global_norm
    return {
        "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule)),
        "ours": adam_jax.chain(clip(1.0), adamw(schedule), adam_jax.ema_params(0.9)),
        "MultiSteps": optax.MultiSteps(adamw(1e-3), 2),
        "accumulate": adam_jax.accumulate(adam_jax.telemetry(adamw(schedule)), 2),
        "inject": optax.inject_hyperparams(optax.adamw)(schedule),
        "hyperparams": adam_jax.with_hyperparams(adamw)(schedule),
        "partition": optax.partition(both, labels),
        "groups": adam_jax.groups(adamw, {"conv/.*": {"b2": 0.99}}, learning_rate=1e-3),
        "skip": adam_jax.skip_nonfinite(adamw(1e-3, weight_decay=schedule)),
        "residual": adam_jax.master_residual(adamw(1e-3)),
        "offload": adam_jax.sharding.offload(adamw(1e-3)),
    }


@pytest.mark.parametrize("name", around())
def test_the_moments_are_found_in_whatever_is_around(name):
    tx, saved = around()[name], adam_dict()
    state = convert.from_torch(saved, PARAMS, tx, names=NAMES)
    start = tx.init(PARAMS)
    assert jax.tree.structure(state) == jax.tree.structure(start)
    own = ("'ema'", "mini_step", "notfinite", ".step", ".weight", ".since")
    for path, x in jax.tree.leaves_with_path(state):
        key = jax.tree_util.keystr(path)
        average = name == "ours" and key.startswith("[2]")  # The average of parameters starts here.
        if x.dtype == jnp.int32 and not average and not any(word in key for word in own):
            assert int(x) == 7, key
    back = convert.to_torch(state, PARAMS, adam_jax.adamw(1e-3), saved, names=NAMES)
    jax.tree.map(np.testing.assert_array_equal, back["state"], saved["state"])


def test_frozen_leaves_have_no_entries():
    tx = adam_jax.groups(adam_jax.adamw, {"conv/.*": None}, learning_rate=1e-3)
    saved = adam_dict()
    del saved["state"][0], saved["state"][1]
    state = convert.from_torch(saved, PARAMS, tx, names=NAMES)
    back = convert.to_torch(state, PARAMS, tx, saved, names=NAMES)
    jax.tree.map(np.testing.assert_array_equal, back["state"], saved["state"])
    with pytest.raises(ValueError, match="extra: 'features.0.bias/exp_avg'"):
        convert.from_torch(adam_dict(), PARAMS, tx, names=NAMES)


def test_moments_are_stored_as_the_transformation_stores_them():
    params = {"w": jnp.ones((64, 128), jnp.bfloat16)}
    rng = np.random.default_rng(0)
    entry = {"step": 3, "exp_avg": rng.normal(size=(64, 128)), "exp_avg_sq": np.ones((64, 128))}
    saved = {"state": {0: entry}, "param_groups": [{"params": [0], "param_names": ["w"]}]}
    tx = adam_jax.adamw(1e-3, mu_dtype=jnp.int8, nu_dtype=adam_jax.stochastic(jnp.bfloat16))
    state = convert.from_torch(saved, params, tx)
    assert state[0].mu["w"].codes.dtype == jnp.int8
    back = convert.to_torch(state, params, tx, saved)["state"][0]
    error = np.linalg.norm(back["exp_avg"] - entry["exp_avg"]) / np.linalg.norm(entry["exp_avg"])
    assert 0 < error < 0.01
    np.testing.assert_array_equal(back["exp_avg_sq"], 1.0)


def test_sharded_parameters_have_sharded_moments():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    sharded = jax.sharding.NamedSharding(mesh, spec)
    params = {"w": jax.device_put(jnp.ones((16, 3)), sharded)}
    entry = {"step": 1, "exp_avg": np.ones((16, 3)), "exp_avg_sq": np.ones((16, 3))}
    saved = {"state": {0: entry}, "param_groups": [{"params": [0]}]}
    zero = adam_jax.sharding.shard_state(adam_jax.adamw(1e-3), mesh, specs={"w": spec})
    for tx in (adam_jax.adamw(1e-3), zero):
        state = convert.from_torch(saved, params, tx, order=["w"])
        assert state[0].mu["w"].sharding.is_equivalent_to(tx.init(params)[0].mu["w"].sharding, 2)


def changed(change):
    saved = adam_dict()
    change(saved["state"])
    return saved


def test_errors_list_every_path_that_is_wrong():
    def spoil(entries):
        del entries[1]["exp_avg"], entries[3]["exp_avg"], entries[3]["exp_avg_sq"]
        entries[0]["max_exp_avg_sq"] = np.zeros(3)
        entries[2]["exp_avg"] = entries[2]["exp_avg"].T

    text = raised(lambda: convert.from_torch(changed(spoil), PARAMS, ADAM, names=NAMES))
    missing = "'classifier.bias/exp_avg', 'classifier.bias/exp_avg_sq', 'features.0.bias/exp_avg'"
    assert f"missing: {missing};" in text
    assert "extra: 'features.0.weight/max_exp_avg_sq';" in text
    assert "misshapen: 'classifier.weight/exp_avg (6, 5) for (6, 5)'" in text
    text = raised(lambda: convert.from_torch(adam_dict(), PARAMS, ADAM))
    assert "missing: 'conv.bias/exp_avg'" in text and "'features.0.weight/exp_avg_sq'" in text
    many = {f"w{i}": jnp.ones(1) for i in range(100)}
    text = raised(lambda: convert.from_torch(adam_dict(), many, ADAM))
    assert text.count("'w") == 12 and "and 188 more" in text


def counted(path, steps):
    return lambda entries: entries[path].update(step=np.array(steps))


ERRORS = {
    "no steps": (adam_dict() | {"state": {}}, ADAM, ["has taken a step", "tx.init(params)"]),
    "counts": (changed(counted(0, 3)), ADAM, ["conv/kernel: 3", "dense/bias: 7", "partition"]),
    "no names": (adam_dict(names=False), ADAM, ["order", "named_parameters"]),
    "no optimizer's": ({"weight": np.ones(3)}, ADAM, ["param_groups", "'weight'"]),
    "numbers": (changed(lambda e: e.update({9: e.pop(0)})), ADAM, ["extra: '9'"]),
    "adamax": (adam_dict(), adam_jax.adamax(1e-3), ["exp_inf"]),
    "of adamax": (state_dict("exp_avg", "exp_inf"), ADAM, ["extra", "exp_inf"]),
    "amsgrad": (
        state_dict("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
        adam_jax.amsgrad(1e-3),
        ["max_before_correction=True"],
    ),
    "lion": (adam_dict(), adam_jax.lion(1e-3), ["PyTorch", "ScaleByLionState"]),
    "yogi": (adam_dict(), adam_jax.yogi(1e-3), ["YogiSquares"]),
    "adopt": (adam_dict(), adam_jax.adopt(1e-3), ["Adopt"]),
    "sgd": (adam_dict(), optax.sgd(1e-3), ["Adam's family"]),
    "twice": (adam_dict(), optax.chain(ADAM, ADAM), ["'mu'", "twice"]),
    "nothing": (adam_dict(), None, ["tx", "None"]),
    "nadam": (adam_dict(mu_product=0.4), ADAM, ["momentum_decay"]),
    "another nadam": (
        adam_dict(mu_product=nadam_product(7, 0.9, 0.004)),
        adam_jax.nadam(1e-3, momentum_decay=1.0),
        ["momentum_decay", "7 steps"],
    ),
    "another b1": (
        adam_dict(mu_product=nadam_product(7, 0.8, 0.004)),
        adam_jax.with_hyperparams(adam_jax.nadam)(1e-3, momentum_decay=0.004),
        ["b1"],
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_to_write(name):
    saved, tx, words = ERRORS[name]
    text = raised(lambda: convert.from_torch(saved, PARAMS, tx, names=NAMES))
    assert all(word in text for word in words), text


def test_other_errors():
    state, like = ADAM.init(PARAMS), adam_dict()
    short = {"param_groups": [{"params": [0], "param_names": ["scale"]}], "state": {}}
    for call, words in (
        (lambda: convert.to_torch(state, PARAMS, ADAM, like), ["extra: 'conv.bias'", "features.0"]),
        (lambda: convert.to_torch(state, PARAMS, ADAM, short, names=NAMES), ["classifier.bias"]),
        (lambda: convert.from_torch(like, PARAMS, ADAM, order=["a"]), ["order", "5", "1"]),
        (lambda: convert.from_torch(like, PARAMS, ADAM, names={"x": "y"}), ["'x'", "scale"]),
        (
            lambda: convert.from_torch(like, PARAMS, ADAM, names={"scale": "conv.bias"}),
            ["'conv.bias'", "twice"],
        ),
        (
            lambda: convert.from_torch(like, {"w": jnp.ones(1, "c8")}, ADAM),
            ["complex", "'w'"],
        ),
        (
            lambda: convert.to_torch(
                jax.vmap(ADAM.init)({"w": jnp.ones((2, 3))}), {"w": 1.0}, ADAM, like
            ),
            ["counts of shape (2,)", "one"],
        ),
        (lambda: convert.to_torch(state, {"w": 1.0}, ADAM, like), ["params", "'w'", "'scale'"]),
        (lambda: convert.to_torch((), PARAMS, ADAM, like), ["moments"]),
    ):
        text = raised(call)
        assert all(word in text for word in words), text


def test_parameters_by_name_and_back():
    rng = np.random.default_rng(0)
    named = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    params = convert.params_from_named(named, PARAMS, names=NAMES)
    np.testing.assert_array_equal(params["dense"]["kernel"], named["classifier.weight"].T)
    back = convert.params_to_named(params, names=NAMES)
    assert back.keys() == named.keys()
    jax.tree.map(np.testing.assert_array_equal, back, named)
    named["classifier.weight"] = named["classifier.weight"].T
    text = raised(lambda: convert.params_from_named(named | {"x": 1.0}, PARAMS, names=NAMES))
    assert "extra: 'x'" in text and "misshapen: 'classifier.weight (6, 5) for (6, 5)'" in text
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    assert convert.params_to_named(half)["scale"].dtype == np.float32


def test_a_linear_layer_behind_a_flattened_convolution():
    image = np.random.default_rng(0).normal(size=(2, 4, 5))  # C, H, W
    weight = np.random.default_rng(1).normal(size=(3, 40))
    names = convert.layer("dense", "fc", (2, 3, 1, 0), (-1, (2, 4, 5)), bias=False)
    layout = names["dense/kernel"]
    kernel = layout.ours(weight, (40, 3))
    expected = weight @ image.ravel()
    np.testing.assert_allclose(np.moveaxis(image, 0, -1).ravel() @ kernel, expected)
    np.testing.assert_array_equal(layout.theirs(kernel), weight)
    heads = convert.Layout("q.weight", (2, 0, 1), ((4, 2), -1))
    x = np.arange(48.0).reshape(8, 6)
    np.testing.assert_array_equal(heads.ours(x, (6, 4, 2)), x.T.reshape(6, 4, 2))
    np.testing.assert_array_equal(heads.theirs(heads.ours(x, (6, 4, 2))), x)
    with pytest.raises(ValueError, match="one -1"):
        convert.Layout("w", (1, 0), (-1, -1))
    with pytest.raises(ValueError, match="'dense/kernel'"):
        convert.params_to_named({"dense": {"kernel": jnp.ones((7, 3))}}, names=names)


def test_a_state_keyed_by_names_is_read_and_written():
    """As of `torch.distributed.checkpoint` and Accelerate."""
    tx, saved = MEMBERS["adamw"]
    state, order = convert.from_torch(saved, PARAMS, tx, names=NAMES), list(SHAPES)
    named = {
        "state": {order[index]: entry for index, entry in saved["state"].items()},
        "param_groups": [{"lr": 1e-3, "params": order}],
    }
    there = convert.from_torch(named, PARAMS, tx, names=NAMES)
    jax.tree.map(np.testing.assert_array_equal, there, state)
    back = convert.to_torch(there, PARAMS, tx, named, names=NAMES)
    assert set(back["state"]) == set(order)
    jax.tree.map(np.testing.assert_allclose, back["state"], named["state"])


@pytest.mark.parametrize("wrong", [types.SimpleNamespace(**adam_dict()), None, [1, 2], {}, ADAM])
def test_something_else_than_a_state_dict(wrong):
    message = raised(lambda: convert.from_torch(wrong, PARAMS, ADAM))
    assert message.startswith("state_dict must be that of an optimizer, with 'state' and")
    assert message.endswith("write optimizer.state_dict().")
    if not isinstance(wrong, dict):
        assert f"got {type(wrong).__name__}:" in message


@pytest.mark.parametrize("step", [0, -1, 1.5, np.nan, np.inf, None, "7", np.ones(2)])
def test_steps_that_are_no_count(step):
    message = raised(lambda: convert.from_torch(adam_dict(step=step), PARAMS, ADAM, names=NAMES))
    assert "the step of 'conv/bias' must be a whole number of steps taken, 1 or more" in message


@pytest.mark.parametrize("step", [1e12, 10**12, 2**31, np.float32(2**31), LARGEST])
def test_steps_past_the_largest_count_are_the_largest(step):
    """Counts saturate and do not wrap: there the bias corrections are 1."""
    state = convert.from_torch(adam_dict(step=step), PARAMS, ADAM, names=NAMES)
    assert int(state[0].count) == LARGEST
    updates, new = ADAM.update(PARAMS, state, PARAMS)
    assert int(new[0].count) == LARGEST
    assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))
    there = convert.to_torch(state, PARAMS, ADAM, adam_dict(), names=NAMES)
    assert int(convert.from_torch(there, PARAMS, ADAM, names=NAMES)[0].count) == LARGEST


def test_momenta_of_many_steps():
    """The product is 0 after thousands of steps; a list of all momenta would not fit in memory."""
    saved = adam_dict(step=1e12, mu_product=0.0)
    tx = adam_jax.nadam(2e-3, momentum_decay=0.004)
    assert int(convert.from_torch(saved, PARAMS, tx, names=NAMES)[0].count) == LARGEST


@pytest.mark.parametrize(
    "names", [None, {"q": "in_proj_weight"}, dict.fromkeys("qkv", "in_proj_weight")]
)
def test_query_key_and_value_in_one(names):
    """The conversion is a sample of docs/migrating/pytorch.md, which the page tests run."""
    params = {name: jnp.ones((4, 4)) for name in "qkv"}
    fused = {"step": 3.0, "exp_avg": np.ones((12, 4)), "exp_avg_sq": np.ones((12, 4))}
    state = {"state": {0: fused}, "param_groups": [{"params": [0]}]}
    for call in (
        lambda: convert.from_torch(state, params, ADAM, order=["in_proj_weight"], names=names),
        lambda: convert.params_from_named({"in_proj_weight": 1.0}, params, names=names),
    ):
        assert "is split before it is converted: docs/migrating/pytorch.md" in raised(call)


@pytest.mark.usefixtures("x64")
def test_a_parameter_without_a_gradient_so_far_has_no_entry():
    """It starts fresh beside the others, in a state keyed by names as well."""
    params = {"a": jnp.ones((4, 3)), "late": jnp.ones(3)}
    rng, t = np.random.default_rng(0), 9
    m, v = rng.normal(size=(4, 3)), rng.uniform(size=(4, 3))
    entry = {"step": t, "exp_avg": m, "exp_avg_sq": v}
    group = {"lr": 1e-3, "params": ["a", "late"]}
    state = convert.from_torch({"state": {"a": entry}, "param_groups": [group]}, params, ADAM)
    assert int(state[0].count) == t
    loop = {"a": (m, v), "late": (np.zeros(3), np.zeros(3))}
    theirs = jax.tree.map(np.asarray, params)
    for t in range(10, 210):
        grads = {k: rng.normal(size=p.shape) for k, p in params.items()}
        params, state = adam_jax.step(ADAM, jax.tree.map(jnp.asarray, grads), state, params)
        for k, (m, v) in loop.items():
            m, v = 0.9 * m + 0.1 * grads[k], 0.999 * v + 0.001 * grads[k] ** 2
            root = np.sqrt(v / (1 - 0.999**t)) + 1e-8
            loop[k], theirs[k] = (m, v), theirs[k] - 1e-3 * m / (1 - 0.9**t) / root
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-12), params, theirs)
