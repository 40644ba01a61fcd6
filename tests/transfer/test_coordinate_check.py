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
from adam_jax import adamw, transfer
from adam_jax.transfer import CoordinateCheck, coordinate_check, mup
from tests.transfer import coordinate_models as models

pytestmark = pytest.mark.slow

WIDTHS = 64, 128, 256, 512
HIDDEN = ["hidden1", "hidden2", "hidden3", "hidden4"]


def with_mup(base, learning_rate):
    return lambda params: mup(adam_jax.adamw, base, params)(learning_rate)


@functools.cache
def checked_mlp(with_plain_adamw=False, **kwargs):
    tx = with_mup(models.mlp_init(models.BASE, jax.random.key(0)), 1e-3)
    if with_plain_adamw:
        tx = lambda params: adam_jax.adamw(1e-3)  # noqa: E731
    make_model = functools.partial(models.mlp, **kwargs)
    return coordinate_check(make_model, WIDTHS, tx, steps=3, seeds=5)


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


def test_a_transformer_in_nnx():
    learning_rate = 2e-3
    tx = with_mup(models.transformer_init(models.BASE, jax.random.key(0)), learning_rate)
    check = coordinate_check(models.transformer, [64, 256], tx)
    assert {"logits", "sown/blocks/0/mlp/0", "sown/features/0"} <= {*check.names}
    assert check.ok, str(check)

    standard = functools.partial(models.transformer, standard=True)
    plain = adam_jax.adamw(learning_rate)
    check = coordinate_check(standard, [64, 256], lambda params: plain, seeds=1)
    for name in ("logits", "sown/blocks/0/attention/0", "sown/blocks/0/mlp/0"):
        assert check.verdicts[name] == "grows with width"


class Small(nnx.Module):
    """A model with one hidden layer."""

    def __init__(self, width, rngs):
        self.hidden = nnx.Linear(3, width, rngs=rngs)
        self.out = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        hidden = self.hidden(x)
        return self.out(jnp.tanh(hidden)), hidden


@pytest.mark.parametrize("captured", [False, True])
def test_activations_of_nnx_returned_or_captured(captured):
    def make_model(width, key):
        graph, params = nnx.split(Small(width, nnx.Rngs(params=key)))

        def loss(params):
            model, kind = nnx.merge(graph, params), nnx.Intermediate
            (out, hidden), outputs = nnx.capture(model, kind, method_outputs=kind)(jnp.eye(3))
            return jnp.mean((out - 1) ** 2), outputs if captured else {"hidden": hidden}

        return params, loss

    check = coordinate_check(make_model, [4, 8], lambda _: adam_jax.adamw(1e-2), steps=2, seeds=1)
    names = ("__call__/0/0", "__call__/0/1", "hidden/__call__/0", "out/__call__/0")
    assert check.names == (names if captured else ("hidden",))
    params, _ = make_model(8, jax.random.key(0))
    kernel = np.asarray(params["hidden"]["kernel"][...])  # The bias is 0.
    found = check.rms[0, 1, [i for i, name in enumerate(check.names) if "hidden" in name]]
    np.testing.assert_allclose(found, np.sqrt(np.mean(kernel**2)), rtol=1e-6)


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
        (-0.5, 0.5, "grows with width"),
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


@pytest.mark.slow
def test_a_narrow_gelu_mlp_under_mup_is_not_accused():
    """The change of its logits shrinks up to a width of some hundreds."""
    widths = [64, 128, 256, 512]

    def values(width, key=None):
        keys = jax.random.split(jax.random.key(0) if key is None else key, 3)
        shapes = {"in": (16, width), "a": (width, width), "b": (width, width)}
        drawn = zip(shapes.items(), keys, strict=True)
        params = {name: jax.random.normal(k, shape) / shape[0] ** 0.5 for (name, shape), k in drawn}
        return params | {"out": jnp.zeros((width, 8))}

    def make_model(width, key):
        x, y = jax.random.normal(jax.random.key(7), (32, 16)), jnp.arange(32) % 8

        def loss(params):
            seen = {"h": jax.nn.gelu(x @ params["in"])}
            for name in ("a", "b"):
                seen[name] = jax.nn.gelu([*seen.values()][-1] @ params[name])
            seen["logits"] = seen["b"] @ params["out"] * transfer.output_factor(width, 32)
            entropy = optax.softmax_cross_entropy_with_integer_labels(seen["logits"], y)
            return jnp.mean(entropy), seen

        return transfer.mup_init(values(width, key), values(32)), loss

    right = coordinate_check(make_model, widths, lambda p: mup(adamw, values(32), p)(1e-2), seeds=4)
    assert right.ok, str(right)
    plain = coordinate_check(make_model, widths, lambda p: adamw(1e-2), seeds=4)
    assert "grows with width" in plain.verdicts.values()


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
    assert str(check).splitlines()[1].split() == [
        "x",
        "3",
        "3",
        "+0.00",
        "none",
        *"does not move".split(),
    ]


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
