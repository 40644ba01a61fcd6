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


def with_eps_hat(alias):
    """PyTorch's RAdam adds eps to the root of the uncorrected moment."""
    return lambda rate, b1, b2, eps, **rest: alias(rate, b1, b2, 0.0, eps_hat=eps, **rest)


radam, radamw = with_eps_hat(adam_jax.radam), with_eps_hat(adam_jax.radamw)
corrected_late = {"max_before_correction": True}

# PyTorch's class and arguments, our alias and arguments; lr, betas and eps come from SETTINGS.
PAIRS = [
    ("Adam", {}, adam_jax.adam, {}),
    ("Adam", {"weight_decay": 0.1}, adam_jax.adam, {"l2": 0.1}),
    ("Adam", {"amsgrad": True}, adam_jax.amsgrad, corrected_late),
    (
        *("Adam", {"amsgrad": True, "weight_decay": 0.1}),
        *(adam_jax.amsgrad, corrected_late | {"l2": 0.1}),
    ),
    ("AdamW", {"weight_decay": 0.1}, adam_jax.adamw, {"weight_decay": 0.1}),
    ("AdamW", {}, adam_jax.adamw, {"weight_decay": 0.01}),
    (
        *("AdamW", {"amsgrad": True, "weight_decay": 0.1}),
        *(adam_jax.amsgradw, corrected_late | {"weight_decay": 0.1}),
    ),
    ("NAdam", {}, adam_jax.nadam, {"momentum_decay": 0.004}),
    ("NAdam", {"momentum_decay": 0.05}, adam_jax.nadam, {"momentum_decay": 0.05}),
    ("NAdam", {"momentum_decay": 0.0}, adam_jax.nadam, {"momentum_decay": 0.0}),
    ("NAdam", {"weight_decay": 0.1}, adam_jax.nadam, {"momentum_decay": 0.004, "l2": 0.1}),
    (
        *("NAdam", {"decoupled_weight_decay": True, "weight_decay": 0.1}),
        *(adam_jax.nadamw, {"momentum_decay": 0.004, "weight_decay": 0.1}),
    ),
    ("RAdam", {}, radam, {}),
    ("RAdam", {"weight_decay": 0.1}, radam, {"l2": 0.1}),
    (
        *("RAdam", {"decoupled_weight_decay": True, "weight_decay": 0.1}),
        *(radamw, {"weight_decay": 0.1}),
    ),
    ("Adamax", {}, adam_jax.adamax, {}),
    ("Adamax", {"weight_decay": 0.1}, adam_jax.adamax, {"l2": 0.1}),
]


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
    """The parameters after every step."""
    start, gradients = start_and_gradients()
    params = {name: jnp.asarray(x) for name, x in start.items()}
    step = jax.jit(lambda grads, state, params: adam_jax.step(tx, grads, state, params))
    state, path = tx.init(params), []
    for t in range(STEPS):
        grads = {name: jnp.asarray(g[t]) for name, g in gradients.items()}
        params, state = step(grads, state, params)
        path.append(flat(params))
    return np.stack(path)


def compare(label, build, transformation, record_property):
    """Checks every parameter after every step, and prints the largest relative difference.

    Args:
      label: the name of PyTorch's optimizer.
      build: maps the parameters by name and a setting to the objects that PyTorch steps: an
        optimizer and, if there is one, a learning rate scheduler.
      transformation: maps learning rate, b1, b2 and eps to our transformation.
      record_property: the pytest fixture.
    """
    largest, tiny = 0.0, np.finfo(np.float64).tiny
    for setting in SETTINGS:
        theirs = torch_path(build, setting)
        ours = our_path(transformation(setting["lr"], *setting["betas"], setting["eps"]))
        assert ours.dtype == theirs.dtype == np.float64
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=tiny, err_msg=str(setting))
        largest = max(largest, np.max(np.abs(ours - theirs) / np.maximum(np.abs(theirs), tiny)))
    record_property("printed", f"largest relative difference, torch.optim.{label}: {largest:.1e}")


def call(name, keywords):
    return f"{name}({', '.join(f'{key}={value}' for key, value in keywords.items())})"


@pytest.mark.parametrize(
    "name, their_keywords, alias, our_keywords",
    [pytest.param(*pair, id=call(*pair[:2])) for pair in PAIRS],
)
def test_200_steps_as_in_pytorch(name, their_keywords, alias, our_keywords, record_property):
    def build(params, setting):
        return [getattr(torch.optim, name)(params.values(), **setting, **their_keywords)]

    transformation = functools.partial(alias, **our_keywords)
    compare(call(name, their_keywords), build, transformation, record_property)


@pytest.mark.parametrize(
    "name, alias, decay",
    [("Adam", adam_jax.adam, {}), ("AdamW", adam_jax.adamw, {"weight_decay": 0.1})],
    ids=["Adam", "AdamW"],
)
def test_a_schedule_as_in_pytorch(name, alias, decay, record_property):
    def build(params, setting):
        optimizer = getattr(torch.optim, name)(params.values(), **setting, **decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / math.sqrt(1 + t))
        return [optimizer, schedule]

    def transformation(rate, *numbers):
        return alias(lambda count: rate / jnp.sqrt(count.astype(float) + 1.0), *numbers, **decay)

    compare(f"{call(name, decay)} with LambdaLR", build, transformation, record_property)


def test_parameter_groups_are_a_mask(record_property):
    def build(params, setting):
        undecayed = {"params": [params["bias"]], "weight_decay": 0.0}
        groups = [{"params": [params["kernel"]]}, undecayed]
        return [torch.optim.AdamW(groups, weight_decay=0.1, **setting)]

    mask = {"kernel": True, "bias": False}
    transformation = functools.partial(adam_jax.adamw, weight_decay=0.1, mask=mask)
    compare("AdamW, its groups a mask", build, transformation, record_property)


PAGE = DOCS / "migrating" / "pytorch.md"
CLASSES = {"Adam": "adam", "AdamW": "adamw", "NAdam": "nadam", "RAdam": "radam", "Adamax": "adamax"}


def test_every_argument_is_there_with_its_defaults():
    check_arguments(PAGE, {getattr(torch.optim, name): ours for name, ours in CLASSES.items()})


@pytest.mark.parametrize(("theirs", "ours"), pairs(PAGE, "PyTorch"), ids=lambda code: code)
def test_the_same_numbers(theirs, ours):
    def build(params, setting):
        del setting
        return [eval(theirs, {"o": torch.optim, "params": list(params.values())})]

    tx = eval(ours, {"a": adam_jax, "optax": optax})
    tiny = np.finfo(np.float64).tiny
    np.testing.assert_allclose(our_path(tx), torch_path(build, None), rtol=1e-9, atol=tiny)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Raised by PyTorch's import.
def test_what_the_training_loop_names_is_there():
    for row in table(PAGE, "## The rest of a training loop"):
        for name in codes(row["PyTorch"]):
            if name.startswith("torch."):
                __import__(name.rpartition(".")[0])
                assert eval(name, {"torch": torch}), name
        for name in codes(row["here"]):
            assert eval(name.removeprefix("adam_jax."), vars(adam_jax) | {"optax": optax}), name
