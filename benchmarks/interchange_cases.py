"""The conversions that `benchmarks.interchange` measures: optimizers of each library and ours."""

import importlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import optax

import adam_jax
from adam_jax import convert
from benchmarks.interchange_runs import LAYOUTS, NAMES, InJax, InKeras, InTorch, nested

RATE = 1e-2


class Conversion(NamedTuple):
    """One way from one library to another.

    Attributes:
      way: the direction of the conversion.
      name: of the optimizer there, and here.
      begin: makes the original run from some parameters.
      go_on: makes the continued run from the original; False: with a new state.
      double: whether float64 is possible.
      decades: the range of the gradients of one leaf; smaller for 8-bit moments.
    """

    way: str
    name: str
    begin: Callable[[Any], Any]
    go_on: Callable[[Any, bool], Any]
    double: bool = True
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
        *(adam_jax.amsgradw, LATE | {"b2": 0.8, "weight_decay": 1e-2}),
    ),
    ("NAdam", {}, adam_jax.nadam, {"momentum_decay": 0.004}),
    ("RAdam", {}, radam, {}),
    ("Adamax", {}, adam_jax.adamax, {}),
]
KERAS: list[tuple[str, dict[str, Any], Callable[..., Any], dict[str, Any]]] = [
    ("Adam", {"epsilon": 1e-7}, adam_jax.adam, {"eps": 0.0, "eps_hat": 1e-7}),
    (
        *("Adam", {"epsilon": 1e-7, "amsgrad": True, "beta_2": 0.8}),
        *(adam_jax.amsgrad, {"b2": 0.8, "eps": 0.0, "eps_hat": 1e-7, **LATE}),
    ),
    (
        *("AdamW", {"epsilon": 1e-7, "weight_decay": 0.1}),
        *(adam_jax.adamw, {"eps": 0.0, "eps_hat": 1e-7, "weight_decay": 0.1}),
    ),
    ("Nadam", {"epsilon": 1e-7}, adam_jax.nadam, {"eps": 1e-7, "momentum_decay": 1.0}),
    ("Adamax", {"epsilon": 0.0}, adam_jax.adamax, {"eps": 0.0}),
    ("Lion", {}, adam_jax.lion, {"weight_decay": 0.0}),
]
TWINS = ("adamw", "amsgrad", "nadamw", "radam", "adamax", "adabelief", "yogi", "adan", "lion")
BNB_NAMES = {path: convert.Layout(layout.name) for path, layout in LAYOUTS.items()}


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


def from_torch(ours: Any, names: Any = NAMES, with_: Any = convert.from_torch) -> Any:
    def go_on(run: Any, converted: bool) -> InJax:
        tree, state = nested(run.params()), None
        if converted:
            state_dict = run.optimizer.state_dict()
            state = with_(state_dict, tree, ours, names=names, order=run.order)
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


def from_keras(ours: Any) -> Any:
    def go_on(run: Any, converted: bool) -> InJax:
        tree, state = nested(run.params()), None
        if converted:
            state = convert.from_keras(run.optimizer.variables, tree, ours, names=run.names)
        return InJax(ours, run.params(), state)

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


def keras_conversions() -> Iterable[Conversion]:
    importlib.import_module("keras")
    for name, theirs, alias, ours in KERAS:

        def begin(arrays: Any, name: str = name, theirs: Any = theirs) -> InKeras:
            return InKeras(lambda there: getattr(there, name)(RATE, **theirs), arrays)

        label = written(f"keras.optimizers.{name}", theirs)
        yield Conversion("from Keras", label, begin, from_keras(alias(RATE, **ours)))


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


def bitsandbytes_conversions() -> Iterable[Conversion]:
    optim = importlib.import_module("bitsandbytes").optim
    adamw, int8 = adam_jax.adamw, jax.numpy.int8
    cases = [
        ("AdamW8bit", "float32", adamw(RATE, weight_decay=1e-2), BNB_NAMES),
        ("AdamW8bit", "float32, transposed", adamw(RATE, weight_decay=1e-2), NAMES),
        (
            *("AdamW8bit", "`jnp.int8`"),
            *(adamw(RATE, weight_decay=1e-2, mu_dtype=int8, nu_dtype=int8), BNB_NAMES),
        ),
        ("AdamW32bit", "float32", adamw(RATE, weight_decay=1e-2), BNB_NAMES),
        (
            *("AdEMAMix8bit", "float32"),
            *(adam_jax.ademamix(RATE, alpha=5.0, weight_decay=1e-2), BNB_NAMES),
        ),
        ("Lion8bit", "float32", adam_jax.lion(RATE, weight_decay=0.0), BNB_NAMES),
    ]
    for name, form, tx, names in cases:

        def begin(arrays: Any, name: str = name, names: Any = names) -> InTorch:
            layouts = LAYOUTS if names is NAMES else BNB_NAMES
            make = getattr(optim, name)
            return InTorch(lambda named: make([p for _, p in named], lr=RATE), arrays, layouts)

        label = f"`bnb.optim.{name}`, {form}"
        go_on = from_torch(tx, names, convert.from_bitsandbytes)
        yield Conversion(
            "from bitsandbytes", label, begin, go_on, False, 4.0 if "32bit" in name else 0.5
        )


LIBRARIES = {
    "optax": optax_conversions,
    "torch": torch_conversions,
    "keras": keras_conversions,
    "bitsandbytes": bitsandbytes_conversions,
}
