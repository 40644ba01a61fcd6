"""Each member that PyTorch has, compared with PyTorch, and docs/migrating/pytorch.md.

All in float64, where the two differ only by rounding. The largest differences are printed.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_jax
from adam_jax import convert, schedules
from tests.catalogue.migrating import check_arguments, pairs
from tests.catalogue.pages import DOCS, codes, table

torch = pytest.importorskip("torch", reason="PyTorch is in a group of its own: make test-peers")

STEPS = 200
SHAPES = {"kernel": (6, 5), "bias": (10,)}
SETTINGS = (
    {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8},
    {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-3},
    {"lr": 0.1, "betas": (0.3, 0.99), "eps": 1e-12},
)


@pytest.fixture(autouse=True)
def double_precision(x64):
    """PyTorch stores the product of NAdam's momenta in the default dtype, not the parameter's."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


# Expressions as in the page's table; `s` is one of SETTINGS, `n` its numbers in our order.
PAIRS = [
    ("o.Adam(params, **s)", "a.adam(*n)"),
    ("o.Adam(params, **s, weight_decay=0.1)", "a.adam(*n, l2=0.1)"),
    ("o.Adam(params, **s, amsgrad=True)", "a.amsgrad(*n, max_before_correction=True)"),
    (
        "o.Adam(params, **s, amsgrad=True, weight_decay=0.1)",
        "a.amsgrad(*n, l2=0.1, max_before_correction=True)",
    ),
    ("o.AdamW(params, **s, weight_decay=0.1)", "a.adamw(*n, weight_decay=0.1)"),
    ("o.AdamW(params, **s)", "a.adamw(*n, weight_decay=0.01)"),
    (
        "o.AdamW(params, **s, amsgrad=True, weight_decay=0.1)",
        "a.amsgrad(*n, weight_decay=0.1, max_before_correction=True)",
    ),
    ("o.NAdam(params, **s)", "a.nadam(*n, momentum_decay=0.004)"),
    ("o.NAdam(params, **s, momentum_decay=0.05)", "a.nadam(*n, momentum_decay=0.05)"),
    ("o.NAdam(params, **s, momentum_decay=0.0)", "a.nadam(*n, momentum_decay=0.0)"),
    ("o.NAdam(params, **s, weight_decay=0.1)", "a.nadam(*n, momentum_decay=0.004, l2=0.1)"),
    (
        "o.NAdam(params, **s, decoupled_weight_decay=True, weight_decay=0.1)",
        "a.nadamw(*n, momentum_decay=0.004, weight_decay=0.1)",
    ),
    # PyTorch's RAdam adds eps to the root of the uncorrected moment.
    ("o.RAdam(params, **s)", "a.radam(*n[:3], 0.0, eps_hat=n[3])"),
    ("o.RAdam(params, **s, weight_decay=0.1)", "a.radam(*n[:3], 0.0, eps_hat=n[3], l2=0.1)"),
    (
        "o.RAdam(params, **s, decoupled_weight_decay=True, weight_decay=0.1)",
        "a.radam(*n[:3], 0.0, eps_hat=n[3], weight_decay=0.1)",
    ),
    ("o.Adamax(params, **s)", "a.adamax(*n)"),
    ("o.Adamax(params, **s, weight_decay=0.1)", "a.adamax(*n, l2=0.1)"),
]
PAGE = DOCS / "migrating" / "pytorch.md"
CLASSES = {"Adam": "adam", "AdamW": "adamw", "NAdam": "nadam", "RAdam": "radam", "Adamax": "adamax"}


def start_and_gradients():
    """Forty parameters, each with a random gradient per step, of sizes around 1e-3 to 1e3."""
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    gradients = {}
    for name, shape in SHAPES.items():
        # A separate scale per parameter: if large gradients dominate small ones, eps has no effect.
        exponents = rng.uniform(-2, 2, shape) + rng.uniform(-1, 1, (STEPS, *shape))
        gradients[name] = rng.normal(size=(STEPS, *shape)) * 10.0**exponents
    return params, gradients


def flat(tree):
    return np.concatenate([np.ravel(tree[name]) for name in SHAPES])


def torch_path(build, setting):
    """The parameters after every step; `build` as in `compare`."""
    start, gradients = start_and_gradients()
    params = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in start.items()}
    steppers, path = build(params, setting), []
    for t in range(STEPS):
        for name, p in params.items():
            p.grad = torch.tensor(gradients[name][t])
        for stepper in steppers:
            stepper.step()
        path.append(flat({name: p.detach().numpy() for name, p in params.items()}))
    return np.stack(path)


def our_path(tx):
    start, gradients = start_and_gradients()
    params = {name: jnp.asarray(x) for name, x in start.items()}
    step = jax.jit(lambda grads, state, params: adam_jax.step(tx, grads, state, params))
    state, path = tx.init(params), []
    for t in range(STEPS):
        grads = {name: jnp.asarray(g[t]) for name, g in gradients.items()}
        params, state = step(grads, state, params)
        path.append(flat(params))
    return np.stack(path)


def compare(label, build, transformation, record_property, settings=SETTINGS):
    """Checks every parameter after every step, and prints the largest relative difference.

    `build` maps the parameters by name and a setting to the objects that PyTorch steps: an
    optimizer and, if there is one, a learning rate scheduler.
    """
    largest, tiny = 0.0, np.finfo(np.float64).tiny
    for setting in settings:
        theirs = torch_path(build, setting)
        ours = our_path(transformation(setting["lr"], *setting["betas"], setting["eps"]))
        assert ours.dtype == theirs.dtype == np.float64
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=tiny, err_msg=str(setting))
        largest = max(largest, np.max(np.abs(ours - theirs) / np.maximum(np.abs(theirs), tiny)))
    record_property("printed", f"largest relative difference, {label}: {largest:.1e}")


@pytest.mark.parametrize(("theirs", "ours"), PAIRS + pairs(PAGE, "PyTorch"), ids=lambda code: code)
def test_200_steps_as_in_pytorch(theirs, ours, record_property):
    def build(params, setting):
        return [eval(theirs, {"o": torch.optim, "params": list(params.values()), "s": setting})]

    def transformation(*numbers):
        return eval(ours, {"a": adam_jax, "optax": optax, "n": numbers})

    settings = SETTINGS if "**s" in theirs else SETTINGS[:1]
    compare(theirs, build, transformation, record_property, settings)


def test_a_schedule_as_in_pytorch(record_property):
    def build(params, setting):
        optimizer = torch.optim.AdamW(params.values(), **setting, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / math.sqrt(1 + t))
        return [optimizer, schedule]

    def transformation(rate, *numbers):
        schedule = schedules.inverse_sqrt_schedule(rate)
        return adam_jax.adamw(schedule, *numbers, weight_decay=0.1)

    compare("AdamW with LambdaLR", build, transformation, record_property)


def test_parameter_groups_are_a_mask(record_property):
    def build(params, setting):
        undecayed = {"params": [params["bias"]], "weight_decay": 0.0}
        groups = [{"params": [params["kernel"]]}, undecayed]
        return [torch.optim.AdamW(groups, weight_decay=0.1, **setting)]

    mask = {"kernel": True, "bias": False}
    transformation = functools.partial(adam_jax.adamw, weight_decay=0.1, mask=mask)
    compare("AdamW, its groups a mask", build, transformation, record_property)


def test_every_argument_is_there_with_its_defaults():
    check_arguments(PAGE, {getattr(torch.optim, name): ours for name, ours in CLASSES.items()})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Raised by PyTorch's import.
def test_what_the_training_loop_names_is_there():
    for row in table(PAGE, "## The rest of a training loop"):
        for name in codes(row["PyTorch"]):
            if name.startswith("torch."):
                __import__(name.rpartition(".")[0])
                assert eval(name, {"torch": torch}), name
        for name in codes(row["here"]):
            assert eval(name.removeprefix("adam_jax."), vars(adam_jax) | {"optax": optax}), name


def test_a_state_of_bfloat16_and_one_from_a_file(tmp_path):
    model = torch.nn.Linear(3, 2).to(torch.bfloat16)
    optimizer = torch.optim.Adam(model.named_parameters())
    model(torch.ones(4, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    names = convert.layer("dense", "")
    like = {"dense": {"kernel": jnp.zeros((3, 2), "bfloat16"), "bias": jnp.zeros(2, "bfloat16")}}
    params = convert.params_from_named(dict(model.named_parameters()), like, names=names)
    state = convert.from_torch(saved, params, adam_jax.adam(1e-3), names=names)
    mu = state[0].mu["dense"]["kernel"]
    assert mu.dtype == jnp.float32
    np.testing.assert_array_equal(mu, saved["state"][0]["exp_avg"].float().numpy().T)
