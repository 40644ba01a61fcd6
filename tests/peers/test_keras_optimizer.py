"""`adam_jax.trainers.keras.Optimizer` in Keras' own training loop, beside Keras' optimizers."""

import doctest
import importlib
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import adam_jax

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras", reason="Keras is in a group of its own: make test-peers")
module = importlib.import_module("adam_jax.trainers.keras")

pytestmark = [
    pytest.mark.usefixtures("standard_promotion"),
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # Keras 3.15, of its variables.
]

SAME = dict(eps=0.0, eps_hat=1e-7)
IMAGES, DIGITS = load_digits(return_X_y=True)
ADAMW = adam_jax.with_hyperparams(adam_jax.adamw)
PLAIN = adam_jax.adamw(1e-3)


def compiled(optimizer, **kwargs):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(96, "relu", name="first"), keras.layers.Dense(10, name="last")]
    model = keras.Sequential([keras.Input((64,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, **kwargs)
    return model


def fit(model, epochs=3, **kwargs):
    x, y = np.float32(IMAGES[:1024] / 16), DIGITS[:1024]
    run = model.fit(x, y, 64, epochs, shuffle=False, verbose=0, **kwargs)
    return run.history


def losses(optimizer, **kwargs):
    return fit(compiled(optimizer, **kwargs))["loss"]


def arrays(model):
    model.jax_state_sync()
    return [np.asarray(v.value) for v in [*model.trainable_variables, *model.optimizer.variables]]


@pytest.mark.parametrize(
    ("theirs", "ours", "shared"),
    [
        ("AdamW()", "a.adamw(1e-3, weight_decay=0.004, **same)", ""),
        ("Adam()", "a.adam(1e-3, **same)", ""),
        ("Adam()", "a.with_hyperparams(a.adam)(1e-3, **same)", ""),
        ("Adam()", "a.adam(1e-3, **same)", "global_clipnorm=0.5"),
        ("Adam()", "a.adam(1e-3, **same)", "clipnorm=0.2"),
        ("Adam()", "a.adam(1e-3, **same)", "clipvalue=0.01"),
        ("Adam()", "a.adam(1e-3, **same)", "loss_scale_factor=64.0"),
        ("Adam()", "a.adam(1e-3, **same)", "use_ema=True, ema_overwrite_frequency=5"),
        ("Adam()", "a.adam(1e-3, **same)", "gradient_accumulation_steps=4"),
        ("Adam(gradient_accumulation_steps=4)", "a.accumulate(a.adam(1e-3, **same), 4)", ""),
        (
            "Adam(global_clipnorm=0.5)",
            "a.skip_nonfinite(a.chain(a.clip_by_global_norm(0.5), a.adam(1e-3, **same)))",
            "",
        ),
    ],
    ids=lambda code: code,
)
def test_the_losses_are_those_of_keras(theirs, ours, shared):
    names = {"a": adam_jax, "same": SAME}
    shared = eval(f"dict({shared})")
    theirs = eval(f"keras.optimizers.{theirs}", {"keras": keras})
    for name, value in shared.items():
        setattr(theirs, name, value)
    theirs = type(theirs).from_config(theirs.get_config())
    ours = module.Optimizer(eval(ours, names), **shared)
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-5, abs=0)


def test_transformations_of_optax():
    ours = losses(module.Optimizer(adam_jax.adamw(1e-3)))
    assert losses(module.Optimizer(optax.adamw(1e-3))) == pytest.approx(ours, rel=1e-5)


def test_each_array_of_the_state_is_a_variable_and_an_eager_step_is_the_compiled_one():
    coded = ADAMW(1e-3, mu_dtype=jnp.int8, nu_dtype=jnp.int8)
    tx = adam_jax.chain(adam_jax.clip_by_global_norm(1.0), coded)
    model = compiled(module.Optimizer(tx))
    assert losses(module.Optimizer(tx), run_eagerly=True) == pytest.approx(
        fit(model)["loss"], rel=1e-4
    )
    state = model.optimizer.state
    counter, rate, *rest = model.optimizer.variables
    assert counter.value == 48 and rate.value == jnp.float32(1e-3)
    for variable, x in zip(rest, jax.tree.leaves(state), strict=True):
        assert variable.value is x
    assert {"int8", "uint8"} <= {str(v.dtype) for v in rest}
    assert {v.name for v in rest} >= {"1_count", "1_hyperparams_b2"}
    assert len({v.name for v in rest}) == len(rest)


def test_stateless_apply_is_one_step():
    params = {"w": jnp.ones(3), "b": jnp.zeros(2)}
    w, b = (keras.Variable(params[name], name=name) for name in "wb")
    optimizer = module.Optimizer(PLAIN)
    optimizer.build([w, b])
    gradients = {"w": jnp.array([1.0, 2.0, -3.0]), "b": jnp.array([0.5, 0.0])}
    step = jax.jit(optimizer.stateless_apply)
    before = [v.value for v in optimizer.variables]
    (new_w, new_b), after = step(before, [gradients["w"], gradients["b"]], [w.value, b.value])
    expected, state = adam_jax.step(PLAIN, gradients, PLAIN.init(params), params)
    np.testing.assert_array_equal(new_w, expected["w"])
    np.testing.assert_array_equal(new_b, expected["b"])
    assert optimizer.iterations.value == 0 and after[0] == 1
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([gradients["w"], None])
    np.testing.assert_array_equal(w.value, expected["w"])
    np.testing.assert_array_equal(b.value, params["b"])


def test_a_rate_of_keras_drives_with_hyperparams():
    decay = keras.optimizers.schedules.CosineDecay(2e-3, 48)
    theirs = losses(keras.optimizers.Adam(decay))
    ours = adam_jax.with_hyperparams(adam_jax.adam)(1e-3, **SAME)
    assert losses(module.Optimizer(ours, decay)) == pytest.approx(theirs, rel=1e-5)

    halves = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    stuck = keras.callbacks.ReduceLROnPlateau("loss", 0.1, patience=1, min_delta=100.0)
    model = compiled(module.Optimizer(ours, 8e-3))
    history = fit(model, callbacks=[halves, stuck])
    np.testing.assert_allclose(history["learning_rate"], [4e-3, 2e-3, 1e-4], rtol=1e-6)
    numbers = adam_jax.hyperparams(model.optimizer.state)
    np.testing.assert_allclose(numbers["learning_rate"], 1e-4, rtol=1e-6)
    model = compiled(keras.optimizers.Adam(8e-3))
    assert fit(model, callbacks=[halves, stuck])["loss"] == pytest.approx(history["loss"], 1e-5)


scheduled = ADAMW(optax.linear_schedule(1e-3, 0.0, 48))
several = adam_jax.chain(ADAMW(1e-3), ADAMW(1e-3))


@pytest.mark.parametrize("tx", [PLAIN, optax.adam(1e-3), scheduled, several])
def test_a_rate_that_nothing_takes_is_an_error(tx):
    match = r"write adam_jax.with_hyperparams\(adamw\)\(learning_rate=1e-3\)"
    with pytest.raises(ValueError, match=match):
        module.Optimizer(tx, 1e-3)
    with pytest.raises(ValueError, match=match):
        module.Optimizer(tx).learning_rate = 1e-3
    stuck = keras.callbacks.ReduceLROnPlateau("loss", 0.1, patience=1, min_delta=100.0)
    if tx is PLAIN:
        with pytest.raises(ValueError, match=match):
            fit(compiled(module.Optimizer(tx)), callbacks=[stuck])


def test_weight_decay_is_refused():
    with pytest.raises(ValueError, match=r"write adamw\(1e-3, weight_decay=0.1\)"):
        module.Optimizer(PLAIN, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"write adamw\(1e-3, mask=...\)"):
        module.Optimizer(PLAIN).exclude_from_weight_decay(var_names=["bias"])
    with pytest.raises(ValueError, match="not recognized"):
        module.Optimizer(PLAIN, clip=1.0)
    with pytest.raises(ValueError, match="tx must be an Optax transformation, got str"):
        module.Optimizer("adamw")


TX = adam_jax.accumulate(
    adam_jax.skip_nonfinite(ADAMW(1e-3, mu_dtype=jnp.int8, nu_dtype=jnp.bfloat16)), 3
)


@pytest.mark.parametrize("kwargs", [{}, dict(gradient_accumulation_steps=2, clipnorm=1.0)], ids=str)
def test_a_loaded_run_continues_with_the_same_bits(tmp_path, kwargs):
    path, weights = tmp_path / "model.keras", tmp_path / "model.weights.h5"
    model = compiled(module.Optimizer(TX, 3e-3, **kwargs))
    fit(model, 1)
    model.save(path)
    model.save_weights(weights)
    loaded = keras.models.load_model(path, custom_objects={"tx": TX})
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    other = compiled(module.Optimizer(TX, **kwargs))
    other.optimizer.build(other.trainable_variables)
    other.load_weights(weights)
    models = model, loaded, other
    for one in models:
        fit(one, 1)
    for wanted, *found in zip(*map(arrays, models), strict=True):
        for x in found:
            np.testing.assert_array_equal(x, wanted)


def test_a_file_is_not_loaded_with_another_state(tmp_path):
    path, weights = tmp_path / "model.keras", tmp_path / "model.weights.h5"
    model = compiled(module.Optimizer(TX))
    fit(model, 1)
    model.save(path)
    model.save_weights(weights)
    with pytest.raises(ValueError, match=r"custom_objects=\{'tx': tx\}"):
        keras.models.load_model(path)
    for tx in (ADAMW(1e-3), adam_jax.accumulate(adam_jax.skip_nonfinite(ADAMW(1e-3)), 3)):
        with pytest.raises(ValueError, match="saved arrays must be those"):
            keras.models.load_model(path, custom_objects={"tx": tx})
    compiled(module.Optimizer(TX)).save(path)
    with pytest.warns(UserWarning, match="Skipping variable loading"):  # There are none.
        keras.models.load_model(path, custom_objects={"tx": TX})
    with pytest.raises(ValueError, match=r"optimizer\.build"):
        compiled(module.Optimizer(TX)).load_weights(weights)
    keras.models.load_model(path, compile=False)


def test_parameters_have_the_paths_of_their_variables():
    tx = adam_jax.groups(adam_jax.adamw, {".*/first/.*": None, ".*": {}}, learning_rate=1e-3)
    model = compiled(module.Optimizer(tx))
    before = arrays(model)[:4]
    fit(model, 1)
    moved = [not np.array_equal(x, y) for x, y in zip(arrays(model)[:4], before, strict=True)]
    assert moved == [False, False, True, True]

    same = [keras.Variable(np.ones(2), name="w") for _ in range(2)]
    optimizer = module.Optimizer(PLAIN)
    optimizer.build(same)
    optimizer.apply([jnp.ones(2), -jnp.ones(2)])
    assert same[0].value[0] < 1 < same[1].value[0]


def test_float16_and_bfloat16():
    """Keras scales the loss for float16; the weights of pure bfloat16 keep the rest."""
    x = compiled(keras.optimizers.LossScaleOptimizer(module.Optimizer(ADAMW(1e-3, **SAME))))
    y = compiled(module.Optimizer(ADAMW(1e-3, **SAME)))
    assert fit(x)["loss"] == pytest.approx(fit(y)["loss"], rel=1e-5)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("bfloat16")
    try:
        model = compiled(module.Optimizer(adam_jax.master_residual(PLAIN)))
    finally:
        keras.config.set_dtype_policy(before)
    assert fit(model)["loss"] == pytest.approx(losses(module.Optimizer(PLAIN)), rel=5e-2)
    assert {str(v.dtype) for v in model.trainable_variables} == {"bfloat16"}


def test_state_is_sharded_as_the_parameters():
    devices = keras.distribution.DeviceMesh((8,), ("model",), keras.distribution.list_devices())
    layout = keras.distribution.LayoutMap(devices)
    layout[".*first/kernel"] = (None, "model")
    plain = compiled(module.Optimizer(ADAMW(1e-3)))
    wanted = fit(plain)["loss"]
    keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layout))
    try:
        model = compiled(module.Optimizer(ADAMW(1e-3)))
        assert fit(model)["loss"] == pytest.approx(wanted, rel=1e-5)
    finally:
        keras.distribution.set_distribution(None)
    [mu] = [v.value for v in model.optimizer.variables if "mu" in v.name and v.shape == (64, 96)]
    assert mu.sharding.shard_shape(mu.shape) == (64, 12)


def test_the_example_of_the_docstring(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(module) == (0, 8)


def test_another_backend_is_refused():
    code = "import adam_jax.trainers.keras"
    env = os.environ | {"KERAS_BACKEND": "numpy"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "got numpy: set KERAS_BACKEND=jax before" in run.stderr
