"""The conversions that `benchmarks.interchange` measures: optimizers of each library and ours."""

import importlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import optax

import adam_jax
from adam_jax import convert
from benchmarks.interchange.runs import NAMES, InJax, InTorch, nested

RATE = 1e-2


class Conversion(NamedTuple):
    """One way from one library to another.

    Attributes:
      way: the direction of the conversion.
      name: of the optimizer there, and here.
      begin: makes the original run from some parameters.
      go_on: makes the continued run from the original; False: with a new state.
      decades: the range of the gradients of one leaf; smaller for 8-bit moments.
    """

    way: str
    name: str
    begin: Callable[[Any], Any]
    go_on: Callable[[Any, bool], Any]
    decades: float = 4.0


def radam(rate: float, **rest: Any) -> Any:
    return adam_jax.radam(rate, eps=0.0, eps_hat=1e-8, **rest)


LATE = {"max_before_correction": True}
TORCH: list[tuple[str, dict[str, Any], Callable[..., Any], dict[str, Any]]] = [
    ("Adam", {}, adam_jax.adam, {}),
    ("Adam", {"weight_decay": 0.1}, adam_jax.adam, {"l2": 0.1}),
    # An uncorrected nu grows for 1 / (1 - b2) steps, so its maximum would be nu itself.
    ("Adam", {"amsgrad": True, "betas": (0.9, 0.8)}, adam_jax.amsgrad, LATE | {"b2": 0.8}),
    ("AdamW", {"weight_decay": 0.1}, adam_jax.adamw, {"weight_decay": 0.1}),
    (
        *("AdamW", {"amsgrad": True, "betas": (0.9, 0.8)}),
        *(adam_jax.amsgrad, LATE | {"b2": 0.8, "weight_decay": 1e-2}),
    ),
    ("NAdam", {}, adam_jax.nadam, {"momentum_decay": 0.004}),
    ("RAdam", {}, radam, {}),
    ("Adamax", {}, adam_jax.adamax, {}),
]
TWINS = ("adamw", "amsgrad", "nadamw", "radam", "adamax", "adabelief", "yogi", "adan", "lion")


def written(name: str, keywords: dict[str, Any]) -> str:
    return f"`{name}({', '.join(f'{key}={value}' for key, value in keywords.items())})`"


def in_jax(tx: Any, every: int = 1) -> Callable[[Any], InJax]:
    return lambda arrays: InJax(tx, arrays, every=every)


def carried(ours: Any, every: int = 1, convert_with: Any = convert.from_optax) -> Any:
    """To another transformation in JAX."""

    def go_on(run: Any, converted: bool) -> InJax:
        tree = nested(run.params())
        state = convert_with(run.state, tree, ours) if converted else None
        return InJax(ours, run.params(), state, every)

    return go_on


def from_torch(ours: Any) -> Any:
    def go_on(run: Any, converted: bool) -> InJax:
        tree, state = nested(run.params()), None
        if converted:
            state_dict = run.optimizer.state_dict()
            state = convert.from_torch(state_dict, tree, ours, names=NAMES, order=run.order)
        return InJax(ours, run.params(), state)

    return go_on


def to_torch(ours: Any, make: Any) -> Any:
    def go_on(run: Any, converted: bool) -> InTorch:
        new = InTorch(make, run.params())
        if converted:
            like = new.optimizer.state_dict()
            new.load(
                convert.to_torch(run.state, run.tree, ours, like, names=NAMES, order=new.order)
            )
        return new

    return go_on


def torch_conversions() -> Iterable[Conversion]:
    torch = importlib.import_module("torch")
    for name, theirs, alias, ours in TORCH:
        tx = alias(RATE, **ours)

        def make(named: Any, name: str = name, theirs: Any = theirs) -> Any:
            return getattr(torch.optim, name)([p for _, p in named], lr=RATE, **theirs)

        def begin(arrays: Any, make: Any = make) -> InTorch:
            return InTorch(make, arrays)

        label = written(f"torch.optim.{name}", theirs)
        yield Conversion("from PyTorch", label, begin, from_torch(tx))
        yield Conversion("to PyTorch", label, in_jax(tx), to_torch(tx, make))


def optax_conversions() -> Iterable[Conversion]:
    for name in TWINS:
        theirs, ours = (getattr(library, name)(RATE) for library in (optax, adam_jax))
        yield Conversion("from Optax", f"`optax.{name}`", in_jax(theirs), carried(ours))
        back = carried(theirs, convert_with=convert.to_optax)
        yield Conversion("to Optax", f"`optax.{name}`", in_jax(ours), back)
    theirs, ours = optax.adamw(RATE), adam_jax.adamw(RATE)
    grouped = adam_jax.groups(adam_jax.adamw, {"conv/.*": {"b2": 0.99}}, learning_rate=RATE)
    labels = {"conv": "a", "dense": "b", "scale": "b"}
    in_8_bits = adam_jax.adamw(RATE, mu_dtype=jax.numpy.int8, nu_dtype=jax.numpy.int8)
    pairs = {
        "`MultiSteps(adamw, 2)`, `accumulate`": (
            optax.MultiSteps(theirs, 2).gradient_transformation(),
            adam_jax.accumulate(ours, 2),
            2,
        ),
        "`inject_hyperparams(adamw)`, `with_hyperparams`": (
            optax.inject_hyperparams(optax.adamw)(RATE),
            adam_jax.with_hyperparams(adam_jax.adamw)(RATE),
            1,
        ),
        "`partition`, `groups`": (
            optax.partition({"a": optax.adamw(RATE, b2=0.99), "b": theirs}, labels),
            grouped,
            1,
        ),
        "`adamw`, 8 bits": (theirs, in_8_bits, 1),
    }
    for label, (other, own, every) in pairs.items():
        there, back = carried(own, every), carried(other, every, convert.to_optax)
        decades = 0.5 if own is in_8_bits else 4.0
        yield Conversion("from Optax", label, in_jax(other, every), there, decades=decades)
        yield Conversion("to Optax", label, in_jax(own, every), back, decades=decades)


LIBRARIES = {
    "optax": optax_conversions,
    "torch": torch_conversions,
}
