"""Members x storage x weights x shapes, for tests/tools/kernel_bits.py."""

import functools
import inspect
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

import adam_jax
from tests.catalogue import MEMBERS, Member, low_precision
from tests.catalogue.runs import schedule
from tests.tools.record import ALIASES, SMALL_BLOCKS, VARIANTS

SHAPES = {
    "ragged rows and columns": (264, 1152),
    "three axes, turned": (1024, 16, 64),
    "three axes, turned, ragged": (640, 4, 64),
    "turned, ragged": (520, 200),
    "a leading axis": (3, 40, 640),
    "few rows": (72, 1024),
}
STORED: dict[str, tuple[Any, Any]] = {
    "float32": (jnp.float32, jnp.float32),
    "bfloat16": (jnp.bfloat16, jnp.bfloat16),
    "stochastic bfloat16": (adam_jax.stochastic(jnp.bfloat16), adam_jax.stochastic(jnp.bfloat16)),
    "int8": (jnp.int8, jnp.int8),
    "int8, nearest": (adam_jax.Quantized(stochastic=False), adam_jax.Quantized(stochastic=False)),
    "int8, stochastic": (adam_jax.Quantized(stochastic=True), adam_jax.Quantized(stochastic=True)),
    "int4": (jnp.int4, jnp.int4),
    "int8 and bfloat16": (jnp.int8, jnp.bfloat16),
    "float32 and int8": (jnp.float32, jnp.int8),
    "int4 and stochastic bfloat16": (jnp.int4, adam_jax.stochastic(jnp.bfloat16)),
}
# The wrapper around the transformation, and the dtype of the parameters.
WEIGHTS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "float32": (lambda tx: tx, jnp.float32),
    "bfloat16": (lambda tx: tx, jnp.bfloat16),
    **{name: (wrap, jnp.bfloat16) for name, wrap in low_precision.WEIGHTS.items()},
}
MODIFIERS: dict[str, Callable[..., Any]] = {
    "atan2": lambda tx, _: adam_jax.atan2(tx),
    "cautious_weight_decay": lambda tx, _: adam_jax.cautious_weight_decay(tx),
    "grams": lambda tx, _: adam_jax.grams(tx),
    "cautious": lambda tx, _: adam_jax.cautious(tx),
    "clip_update_rms": lambda tx, _: adam_jax.clip_update_rms(tx, 0.5),
    "cautious_clip_update_rms": lambda tx, _: adam_jax.cautious(adam_jax.clip_update_rms(tx, 0.5)),
}
# The modifier, and the wrapper instead of `recipe`, of some members in `each_once`.
MODIFIED = {
    "yogi": "atan2",
    "adamw": "cautious_weight_decay",
    "adan-paper": "grams",
    "adabelief": "cautious",
    "radam": "clip_update_rms",
    "adamax": "cautious_clip_update_rms",
}
WRAPPED = {"adam": "nothing", "nadam-decay": "accumulate", "laprop": "accumulate inside"}


def recipe(tx: Any) -> Any:
    """The wrappers around the transformation in most cases."""
    return adam_jax.skip_nonfinite(adam_jax.chain(adam_jax.clip_by_global_norm(1.0), tx))


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda tx: tx,
    "skip": adam_jax.skip_nonfinite,
    "clip": lambda tx: adam_jax.chain(adam_jax.clip_by_global_norm(1.0), tx),
    "clip of Optax": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "accumulate": lambda tx: adam_jax.accumulate(recipe(tx), 2),
    "accumulate int8": lambda tx: adam_jax.accumulate(recipe(tx), 3, dtype=SMALL_BLOCKS),
    "accumulate inside": lambda tx: recipe(adam_jax.accumulate(tx, 2)),
    "ema": lambda tx: recipe(adam_jax.chain(tx, adam_jax.ema_params(0.9))),
    "telemetry": lambda tx: adam_jax.telemetry(recipe(tx), 3),
}


class Case(NamedTuple):
    """One transformation on one leaf."""

    name: str
    make: Callable[[str], Any]  # From the argument of `with_kernel`.
    shape: tuple[int, ...]
    dtype: Any
    of_grads: Any
    update: bool  # Instead of `step`.


def case(
    name: str,
    make: Callable[..., Any],
    stored: str,
    *,
    weights: str = "float32",
    shape: str = "ragged rows and columns",
    update: bool = False,
    modifier: str | None = None,
    around: Callable[[Any], Any] = recipe,
    of_grads: Any = None,
) -> Case:
    """A case from the names of its parts, and a function of kernel, mu and nu."""
    mu, nu = STORED[stored]
    wrap, dtype = WEIGHTS[weights]
    if nu == jnp.int4 and name.startswith(("amsgrad", "adamax")):
        nu = jnp.int8  # A maximum over the steps refuses 4 bits.

    def made(kernel: str) -> Any:
        tx = make(kernel, mu, nu)
        return around(wrap(tx if modifier is None else MODIFIERS[modifier](tx, mu)))

    of_grads = of_grads or dtype
    words = [
        f"{modifier}({name})" if modifier else name,
        *(f"moments {stored}", f"weights {weights}", shape),
        *(f"gradients {jnp.dtype(of_grads).name}",) * (of_grads != dtype),
        *("update",) * update,
    ]
    return Case(", ".join(words), made, SHAPES[shape], dtype, of_grads, update)


def members() -> dict[str, Callable[..., Any]]:
    """Every member of which kernels step tiles."""

    def make(member: Member, kernel: str, mu: Any, nu: Any) -> Any:
        return adam_jax.with_kernel(member.alias(1e-2, **member.stored(mu, nu)), kernel)

    return {
        m.name: functools.partial(make, m) for m in MEMBERS if m.elementwise or m.name == "lamb"
    }


def variants() -> dict[str, Callable[..., Any]]:
    """Other arguments of their aliases, and transformations made from them, in the same form."""

    def by(make: Callable[..., Any], around: Any, kernel: str, mu: Any, nu: Any) -> Any:
        accepted = inspect.signature(make).parameters
        given = {k: x for k, x in (("mu_dtype", mu), ("nu_dtype", nu)) if k in accepted}
        return around(adam_jax.with_kernel(make, kernel))(learning_rate=schedule, **given)

    makes: dict[str, Any] = {name: getattr(adam_jax, name) for name in ALIASES} | VARIANTS
    del makes["mars_adamw"]  # Its clipping reads whole leaves.
    for mode in ("smooth", "refined"):
        makes[f"lion {mode}"] = functools.partial(adam_jax.lion, mode=mode)
    wrappers = {
        "groups": lambda f: functools.partial(adam_jax.groups, f, {"bias": {"b1": 0.5}}),
        "frozen": lambda f: functools.partial(adam_jax.groups, f, {"bias": None}),
        "with_hyperparams": adam_jax.with_hyperparams,
    }
    made = {name: functools.partial(by, make, lambda f: f) for name, make in makes.items()}
    return made | {name: functools.partial(by, adam_jax.adamw, f) for name, f in wrappers.items()}


def fits(modifier: str, name: str) -> bool:
    try:
        MODIFIERS[modifier](members()[name]("xla", jnp.float32, jnp.float32), jnp.float32)
    except ValueError:
        return False
    return True


def drawn(count: int, seed: int) -> Iterator[Case]:
    draw, makes = random.Random(seed), members() | variants()
    for _ in range(count):
        name = draw.choice(list(makes))
        modifier = draw.choice([None, *MODIFIERS]) if name in members() else None
        yield case(
            name,
            makes[name],
            draw.choice(list(STORED)),
            weights=draw.choice(list(WEIGHTS)),
            shape=draw.choice(list(SHAPES)),
            update=draw.random() < 0.5,
            modifier=modifier if modifier and fits(modifier, name) else None,
            around=draw.choice([recipe, *WRAPPERS.values()]),
            of_grads=draw.choice([None, jnp.bfloat16, jnp.float32]),
        )


def each_once() -> Iterator[Case]:
    """Cases that cover each member, modifier, storage, form of weights and shape at least once."""
    ways, forms = itertools.cycle((False, True, True, False)), itertools.cycle(WEIGHTS)
    large = ("ragged rows and columns", "three axes, turned")
    shapes = itertools.cycle([name for name in SHAPES if name not in large])
    stored = itertools.cycle(["int8", *STORED])
    makes = members()

    def others() -> dict[str, Any]:
        return {"weights": next(forms), "shape": next(shapes), "update": next(ways)}

    for shape in large:
        yield case("adamw", makes["adamw"], "int8", weights="master_residual 16", shape=shape)
    for name, make in makes.items():
        given: dict[str, Any] = {"modifier": MODIFIED.get(name)}
        if name in WRAPPED:
            given |= {"around": WRAPPERS[WRAPPED[name]], "of_grads": jnp.bfloat16}
        yield case(name, make, next(stored), **given, **others())
    for name in ("adam l2", "groups", "with_hyperparams"):
        yield case(name, variants()[name], next(stored), **others())
