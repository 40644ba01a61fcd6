"""`coordinate_check`: sizes are constant in the width under muP, and planted mistakes are named."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import adam_jax
from adam_jax.transfer import CoordinateCheck, coordinate_check, mup, mup_init, output_factor
from examples.studies.transfer.train import Run

pytestmark = pytest.mark.slow

WIDTHS = 64, 128, 256, 512
BASE, FEATURES, CLASSES = 64, 32, 10
HIDDEN = ["hidden1", "hidden2", "hidden3", "hidden4"]
INPUTS = jax.random.normal(jax.random.key(100), (64, FEATURES))
LABELS = jax.random.randint(jax.random.key(101), (64,), 0, CLASSES)


def normal(key, size, std):
    """Drawn by NumPy, because JAX would compile a program for each shape."""
    seed = np.asarray(jax.random.key_data(key))
    return jnp.asarray(np.random.default_rng(seed).normal(scale=std, size=size), jnp.float32)


def mlp_init(width, key, std=None):
    """Kernels of four hidden layers and an output layer, which is ten times smaller than usual."""
    params, inputs = {}, FEATURES
    for i, name in enumerate(HIDDEN, 1):
        usual = (2 / inputs) ** 0.5
        params[name] = normal(jax.random.fold_in(key, i), (inputs, width), std or usual)
        inputs = width
    usual = (2 / width) ** 0.5
    return params | {"logits": normal(key, (width, CLASSES), 0.1 * usual)}


def mlp(width, key, std=None, scaled=True, factor=True):
    """Parameters and loss for `coordinate_check`; `scaled` and `factor` are muP's two changes."""
    params = mlp_init(width, key, std)
    if scaled:
        params = mup_init(params, mlp_init(BASE, jax.random.key(1000), std))

    def loss(params):
        x, activations = INPUTS, {}
        for name in HIDDEN:
            x = activations[name] = jax.nn.relu(x @ params[name])
        logits = x @ params["logits"]
        if factor:
            logits = output_factor(width, BASE) * logits
        of_batch = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
        return jnp.mean(of_batch), activations | {"logits": logits}

    return params, loss


@functools.cache
def checked_mlp(with_plain_adamw=False, **kwargs):
    base, plain = mlp_init(BASE, jax.random.key(0)), adam_jax.adamw(1e-3)
    tx = lambda params: plain if with_plain_adamw else mup(plain, base, params)  # noqa: E731
    return coordinate_check(functools.partial(mlp, **kwargs), WIDTHS, tx, steps=3, seeds=5)


def test_sizes_of_an_mlp_hold_under_mup():
    check = checked_mlp()
    assert check.widths == WIDTHS and list(check.names) == [*HIDDEN, "logits"]
    assert check.rms.shape == check.change.shape == (4, 4, 5)
    slopes = [of[name] for of in (check.slopes, check.change_slopes) for name in HIDDEN]
    assert max(map(abs, slopes)) <= 0.1
    assert abs(check.change_slopes["logits"]) <= 0.1
    assert check.ok, str(check)


@pytest.mark.parametrize(
    ("mistake", "wrong"),
    [
        ({"factor": False}, ["logits"]),
        ({"with_plain_adamw": True}, ["hidden2", "hidden3", "hidden4", "logits"]),
        ({"scaled": False, "std": 0.1}, ["hidden2", "hidden3", "hidden4", "logits"]),
    ],
    ids=["no output factor", "plain adamw", "initial values"],
)
def test_a_mistake_is_found_by_name(mistake, wrong):
    check = checked_mlp(**mistake)
    expected = {name: "grows with width" if name in wrong else "ok" for name in check.names}
    assert check.verdicts == expected, str(check)
    assert not check.ok and check.summary == f"Grows with width: {', '.join(wrong)}."
    # The layer with the mistake fails by a clear margin.
    assert max(check.slopes[wrong[0]], check.change_slopes[wrong[0]]) > 0.4


STUDIED = Run("text", BASE, BASE, True, steps=10, batch_size=8, vocabulary=16)


def transformer(width, key, scaled):
    """The model of examples/studies/transfer; the activations are the outputs of its modules."""
    run = dataclasses.replace(STUDIED, size=width, scaled=scaled)
    graph = nnx.graphdef(nnx.eval_shape(lambda: run.build(width, key)))
    text = jax.random.randint(jax.random.key(102), (8, 17), 0, 16)

    def loss(params):
        model, kind = nnx.merge(graph, params), nnx.Intermediate
        logits, outputs = nnx.capture(model, kind, method_outputs=kind)(text[:, :-1])
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:])
        return jnp.mean(entropy), outputs

    params = jax.jit(run.initial)(key)
    # Random logits shrink under muP, and the gradients of all layers depend on them.
    params["out"]["kernel"] = jax.tree.map(lambda p: 0.1 * p, params["out"]["kernel"])
    return params, loss


def test_a_transformer_in_nnx():
    def checked(scaled):
        run = dataclasses.replace(STUDIED, scaled=scaled)
        make_model = functools.partial(transformer, scaled=scaled)
        tx = lambda params: run.optimizer(params, jnp.float32(2e-3))  # noqa: E731
        return coordinate_check(make_model, [64, 256], tx, steps=2, seeds=2)

    check = checked(scaled=True)
    assert check.ok, str(check)
    standard = checked(scaled=False)
    for name in ("__call__/0", "blocks/0/attention/0", "blocks/1/down/__call__/0"):
        assert standard.verdicts[name] == "grows with width"


def linear(width, key):
    """w ← w - 2·lr·w in each step; activations of several dtypes, and a None."""

    def loss(w):
        half = w.astype(jnp.bfloat16)
        return jnp.sum(w**2), {"w": w, "none": None, "half": half, "complex": jax.lax.complex(w, w)}

    return jax.random.normal(key, (width,)), loss


def test_sizes_are_those_of_numpy():
    check = coordinate_check(linear, [2, 5, 9], lambda _: optax.sgd(0.25), steps=2, seeds=3)
    assert check.names == ("complex", "half", "w")
    for i, width in enumerate(check.widths):
        w = [np.asarray(jax.random.normal(jax.random.key(k), (width,)), float) for k in range(3)]
        size = np.exp(np.mean([np.log(np.sqrt(np.mean(x**2))) for x in w]))
        for name, unit, rtol in (("w", 1, 1e-6), ("complex", 2**0.5, 1e-6), ("half", 1, 1e-2)):
            k = check.names.index(name)
            expected = size * np.array([[1, 0.5, 0.25], [0, 0.5, 0.75]]) * unit
            measured = check.rms[:, i, k], check.change[:, i, k]
            np.testing.assert_allclose(measured, expected, rtol)


def test_a_width_is_compiled_once():
    traced = []

    def make_model(width, key):
        w, of_w = linear(width, key)

        def loss(params):
            traced.append(width)
            return of_w(params["w"])

        return {"w": w, "table": jnp.arange(3)}, loss  # Integers do not change.

    coordinate_check(make_model, [2, 4], lambda _: adam_jax.adamw(1e-2), steps=3, seeds=3)
    assert traced == [2, 4]


@pytest.mark.parametrize(("learning_rate", "change"), [(1e-30, 1e-30), (1e30, 1e30), (0, 0)])
def test_changes_whose_squares_are_out_of_range(learning_rate, change):
    def make_model(width, key):
        return jnp.zeros(width), lambda params: (jnp.sum(params), params)

    sgd = optax.sgd(learning_rate)
    check = coordinate_check(make_model, [2, 4], lambda _: sgd, steps=1)
    np.testing.assert_allclose(check.change[1], change, rtol=1e-6)
    assert check.verdicts == {"(the whole tree)": "ok" if change else "does not move"}


def of_powers(power=0.0, change_power=0.0, widths=(10, 100, 1000), **kwargs):
    """A check with sizes that are powers of the width."""
    widths_ = np.asarray(widths, float)
    rms = np.stack([widths_**power * 3] * 3)[..., None]
    change = np.stack([0 * widths_, widths_**change_power, widths_**change_power * 2])[..., None]
    check = CoordinateCheck(widths, ("x",), rms, change, np.zeros((2, 1)), 0.1)
    return dataclasses.replace(check, **kwargs)


@pytest.mark.parametrize(
    ("power", "change_power", "verdict"),
    [
        (0.0, 0.0, "ok"),
        (-0.5, 0.0, "ok"),  # muP's logits
        (0.09, -0.09, "ok"),
        (0.11, 0.0, "grows with width"),
        (0.0, 0.5, "grows with width"),
        (0.0, -0.5, "vanishes with width"),
        (1.0, -0.5, "grows with width"),
    ],
)
def test_verdicts_of_slopes(power, change_power, verdict):
    check = of_powers(power, change_power)
    assert check.slopes == {"x": pytest.approx(power, abs=1e-12)}
    assert check.change_slopes == {"x": pytest.approx(change_power, abs=1e-12)}
    assert check.verdicts == {"x": verdict} and check.ok is (verdict == "ok")
    assert of_powers(power, change_power, tolerance=2.0).ok


def test_a_slope_that_is_lost_with_width_or_in_noise_is_none():
    check = of_powers(0.0, -0.2)
    assert check.verdicts == {"x": "vanishes with width"}
    noisy = of_powers(0.0, -0.2, errors=np.array([[0.0], [0.15]]))
    assert noisy.ok
    bent = of_powers(widths=(64, 128, 256, 512))
    bent.change[-1, :, 0] = [1.0, 0.8, 0.7, 0.67]
    assert bent.change_slopes["x"] < -0.15 and bent.ok
    bent.change[-1, :, 0] = [1.0, 0.9, 0.8, 0.7]
    assert bent.verdicts == {"x": "vanishes with width"}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("at", [(0, 0, 0), (2, 1, 0)])
def test_a_size_that_is_not_finite(value, at):
    check = of_powers(power=1.0)
    check.rms[at] = value
    assert check.verdicts == {"x": "not finite"}
    assert check.summary == "Not finite: x."
    assert np.isnan(check.slopes["x"]) == (at[0] == 2)


def test_a_model_that_diverges_is_not_finite():
    make_model = lambda width, key: (jnp.ones(width), lambda p: (jnp.sum(p**3), p))  # noqa: E731
    check = coordinate_check(make_model, [2, 4], lambda _: optax.sgd(1e9), steps=4)
    assert set(check.verdicts.values()) == {"not finite"}


def test_what_does_not_move():
    check = of_powers()
    check.change[2, 1] = 0
    assert check.verdicts == {"x": "does not move"} and not check.ok
    assert np.isnan(check.change_slopes["x"])
    assert str(check).splitlines()[1].split() == "x 3 3 +0.00 none does not move".split()


def test_the_table():
    check = checked_mlp(factor=False)
    heading, *rows, summary = str(check).splitlines()
    assert heading.split("  ")[0] == "activation" and heading.endswith("slope of change  verdict")
    assert "RMS at 64" in heading and "at 512" in heading
    assert [row.split()[0] for row in rows] == [*HIDDEN, "logits"]
    assert rows[-1].endswith(f"{check.change_slopes['logits']:+.2f}  grows with width")
    assert summary == "Grows with width: logits."
    assert str(checked_mlp()).endswith("\nAll sizes hold from width 64 to 512.")


@pytest.mark.parametrize("widths", [[], [64], [64, 64], [128, 64], [0, 64], [64.0, 128], "64", 64])
def test_wrong_widths(widths):
    with pytest.raises(ValueError, match=r"widths must be two or more .*: write \[64, 128,"):
        coordinate_check(linear, widths, lambda _: optax.sgd(1.0))


@pytest.mark.parametrize(
    ("argument", "value"),
    [("steps", 0), ("steps", 1.5), ("seeds", 0), ("seeds", True), ("tolerance", -0.1)],
)
def test_other_wrong_arguments(argument, value):
    with pytest.raises(ValueError, match=f"^{argument} must be .* is usual"):
        coordinate_check(linear, [2, 4], lambda _: optax.sgd(1.0), **{argument: value})


def test_activations_must_have_names_that_stay():
    def make_model(width, key):
        return jnp.ones(width), lambda p: (jnp.sum(p), {"x": p, f"width{width}": p})

    message = r"width 4 lacks \['width2'\] and has \['width4'\] besides those of width 2"
    with pytest.raises(ValueError, match=message):
        coordinate_check(make_model, [2, 4], lambda _: optax.sgd(1.0))


def test_there_must_be_activations():
    make_model = lambda width, key: (jnp.ones(width), lambda p: (jnp.sum(p), {}))  # noqa: E731
    with pytest.raises(ValueError, match="loss with activations, got none"):
        coordinate_check(make_model, [2, 4], lambda _: optax.sgd(1.0))
