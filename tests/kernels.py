"""Pallas kernels, interpreted, against XLA's programs: the same bits, over members x storage.

python -m tests.kernels                a third of the cases, drawn at random
python -m tests.kernels --all          all of them, which takes an hour
python -m tests.kernels --only WORD    those with the word in their names

Each case takes 20 steps, of which two are refused where it is inside `skip_nonfinite`. Beside the
leaf that a kernel steps lies a vector, which XLA steps. Everything is compared after each step: the
parameters or the updates, codes, scales, rests and counts.
"""

import argparse
import dataclasses
import functools
import itertools
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adam_jax
from adam_jax.engine.plan import Plan, plans_noted
from tests.catalogue import MEMBERS
from tests.record import SMALL_BLOCKS, VARIANTS, schedule

STEPS, REFUSED = 20, {4: np.nan, 11: np.inf}
SHAPES = {
    "ragged rows and columns": (264, 1152),
    "three axes, turned": (1024, 16, 64),
    "turned": (520, 200),
    "a leading axis": (3, 40, 640),
    "few rows": (72, 1024),
}
STORED: dict[str, tuple[Any, Any]] = {
    "float32": (jnp.float32, jnp.float32),
    "bfloat16": (jnp.bfloat16, jnp.bfloat16),
    "stochastic bfloat16": (adam_jax.stochastic(jnp.bfloat16),) * 2,
    "int8": (jnp.int8, jnp.int8),
    "int8, nearest": (adam_jax.Quantized(stochastic=False),) * 2,
    "int8, stochastic": (adam_jax.Quantized(stochastic=True),) * 2,
    "int4": (jnp.int4, jnp.int4),
}
FEWER: dict[str, tuple[Any, Any]] = {
    "int8 and bfloat16": (jnp.int8, jnp.bfloat16),
    "float32 and int8": (jnp.float32, jnp.int8),
    "int4 and stochastic bfloat16": (jnp.int4, adam_jax.stochastic(jnp.bfloat16)),
}
# What is around the transformation, and the dtype of the parameters.
WEIGHTS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "float32": (lambda tx: tx, jnp.float32),
    "bfloat16": (lambda tx: tx, jnp.bfloat16),
    "stochastic rounding": (adam_jax.stochastic_rounding, jnp.bfloat16),
    "Kahan": (adam_jax.kahan_summation, jnp.bfloat16),
    "residual 16": (adam_jax.master_residual, jnp.bfloat16),
    "residual 8": (lambda tx: adam_jax.master_residual(tx, 8), jnp.bfloat16),
}
MODIFIERS: dict[str, Callable[..., Any]] = {
    "atan2": lambda tx, _: adam_jax.atan2(tx),
    "nesterov": lambda tx, _: adam_jax.nesterov(tx),
    "cautious_weight_decay": lambda tx, _: adam_jax.cautious_weight_decay(tx),
    "grokfast": lambda tx, mu: adam_jax.grokfast(tx, slow_dtype=mu),
}


def recipe(tx: Any) -> Any:
    """What is around a transformation in most cases."""
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


@dataclasses.dataclass(frozen=True)
class Case:
    """One transformation on one leaf.

    Attributes:
      name: what it is made of.
      make: makes the transformation, of what `with_kernel` is told.
      shape: of the leaf.
      dtype: of the parameters.
      of_grads: of the gradients.
      update: by `update`, and not by `step`.
    """

    name: str
    make: Callable[[str], Any]
    shape: tuple[int, ...]
    dtype: Any
    of_grads: Any
    update: bool


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
    """A case by the names of its parts; `make` is a member's alias without its learning rate."""
    mu, nu = (STORED | FEWER)[stored]
    wrap, dtype = WEIGHTS[weights]

    def made(kernel: str, nu: Any = nu) -> Any:
        tx = make(1e-2, mu, nu)
        tx = tx if modifier is None else MODIFIERS[modifier](tx, mu)
        return around(wrap(adam_jax.with_kernel(tx, kernel)))

    def allowed(kernel: str) -> Any:
        """Four bits of nu are refused where a maximum is taken of it."""
        try:
            tx = made(kernel)
            jax.eval_shape(tx.init, jnp.zeros(SHAPES[shape]))
        except ValueError as error:
            if "4 bits" not in str(error):
                raise
            tx = made(kernel, jnp.int8)
        return tx

    of_grads = of_grads or dtype
    words = [
        *(name, f"moments {stored}", f"weights {weights}", shape),
        *(f"gradients {jnp.dtype(of_grads).name}",) * (of_grads != dtype),
        *("update",) * update,
    ]
    return Case(", ".join(words), allowed, SHAPES[shape], dtype, of_grads, update)


def aliases() -> dict[str, Callable[..., Any]]:
    """Every elementwise member, and what else one function makes; of a rate, and mu and nu."""
    members = {
        m.name: lambda rate, mu, nu, m=m: m.alias(rate, **m.stored(mu, nu))
        for m in MEMBERS
        if m.elementwise
    }
    variants = {
        name: lambda rate, mu, nu, make=make: make(rate, mu_dtype=mu, nu_dtype=nu)
        for name, make in VARIANTS.items()
        if name not in ("adam nesterov", "adam eps_hat", "adan change", "amsgrad max first")
    }
    lion = {
        f"lion {mode}": lambda rate, mu, _, mode=mode: adam_jax.lion(rate, mode=mode, mu_dtype=mu)
        for mode in ("smooth", "refined")
    }
    decoupled = {
        name: lambda rate, mu, nu, make=getattr(adam_jax, name): make(
            rate, mu_dtype=mu, nu_dtype=nu, weight_decay=0.1
        )
        for name in ("nadamw", "radamw", "amsgradw", "adamaxw")
    }
    return members | variants | lion | decoupled


def fits(modifier: str, name: str) -> bool:
    """Whether the member can be modified so."""
    try:
        MODIFIERS[modifier](aliases()[name](1e-2, jnp.float32, jnp.float32), jnp.float32)
    except ValueError:
        return False
    return True


def cases() -> Iterator[Case]:
    """All of them: not all products, but each pair of parts, and the three that matter most."""
    makes, shapes = aliases(), itertools.cycle(SHAPES)
    adamw = makes["adamw"]
    product = itertools.product
    for stored, weights, shape, update in product(STORED, WEIGHTS, SHAPES, (False, True)):
        yield case("adamw", adamw, stored, weights=weights, shape=shape, update=update)
    ways = itertools.cycle((False, True, True, False))
    for name, stored, weights in product(makes, STORED, WEIGHTS):
        given = {"weights": weights, "shape": next(shapes), "update": next(ways)}
        yield case(name, makes[name], stored, **given)
    forms = itertools.cycle(WEIGHTS)
    for modifier, name in product(MODIFIERS, makes):
        if not fits(modifier, name):
            continue
        for stored in STORED:
            given = {"weights": next(forms), "shape": next(shapes), "update": next(ways)}
            yield case(f"{modifier}({name})", makes[name], stored, modifier=modifier, **given)
    for stored, shape, update in product(FEWER, SHAPES, (False, True)):
        yield case("adamw", adamw, stored, shape=shape, update=update, weights=next(forms))
    kinds = ("adamw", "amsgrad", "adan", "lion", "ademamix")
    for wrapper, name, stored in product(WRAPPERS, kinds, ("float32", "int8")):
        given = {"weights": next(forms), "shape": next(shapes), "update": next(ways)}
        yield case(
            f"{name} in {wrapper}", makes[name], stored, around=WRAPPERS[wrapper], **given
        )
    for name, stored, shape in product(other_makes(), ("float32", "int8", "int4"), SHAPES):
        given = {"weights": next(forms), "shape": shape, "update": next(ways)}
        yield case(name, other_makes()[name], stored, **given)
    for stored, weights, update in product(STORED, WEIGHTS, (False, True)):
        other = jnp.bfloat16 if WEIGHTS[weights][1] == jnp.float32 else jnp.float32
        given = {"weights": weights, "shape": next(shapes), "update": update}
        yield case("adamw", adamw, stored, of_grads=other, **given)


def other_makes() -> dict[str, Callable[..., Any]]:
    """Numbers that differ from step to step and from leaf to leaf."""
    groups = functools.partial(adam_jax.groups, adam_jax.adamw, learning_rate=schedule)
    hyperparams = adam_jax.with_hyperparams(adam_jax.adamw)
    return {
        "groups": lambda _, mu, nu: groups({"bias": {"b1": 0.5}}, mu_dtype=mu, nu_dtype=nu),
        "frozen": lambda _, mu, nu: groups({"bias": None}, mu_dtype=mu, nu_dtype=nu),
        "with_hyperparams": lambda _, mu, nu: hyperparams(schedule, mu_dtype=mu, nu_dtype=nu),
        "schedule": lambda _, mu, nu: adam_jax.adamw(schedule, mu_dtype=mu, nu_dtype=nu),
        "schedule_free": lambda _, mu, nu: adam_jax.schedule_free_adamw(1e-2, nu_dtype=nu),
    }


@functools.lru_cache(2)
def gradients(shape: tuple[int, ...], dtype: Any) -> list[dict[str, jax.Array]]:
    """Of magnitudes from 1e-10 to 10, with zeros where a block is, and one too large to square."""
    drawn, of_steps = np.random.default_rng(0), []
    for t in range(STEPS):
        size = 10.0 ** drawn.uniform(-4, 1) * 10.0 ** drawn.uniform(-6, 0, size=shape)
        g = drawn.normal(size=shape) * size
        g[..., :2, :] = 0
        g.flat[5] = REFUSED.get(t, g.flat[5])
        g.flat[7] = 1e25 if t == STEPS - 3 else g.flat[7]
        g = {"kernel": g, "bias": drawn.normal(size=3)}
        of_steps.append({k: jnp.asarray(x, dtype) for k, x in g.items()})
    return of_steps


def program(tx: Any, update: bool) -> Callable[..., Any]:
    """One step, compiled: of gradients, state and parameters."""
    if not update:
        return jax.jit(lambda grads, state, params: ((), *adam_jax.step(tx, grads, state, params)))
    updated = jax.jit(tx.update)

    def step(grads: Any, state: Any, params: Any) -> Any:
        # Not compiled with the update: XLA:CPU adds without rounding what it multiplied just before
        updates, state = updated(grads, state, params)
        return updates, optax.apply_updates(params, updates), state

    return step


def run(case: Case, kernel: str) -> tuple[list[list[np.ndarray]], list[str], dict[str, Any]]:
    """All arrays after each step, their paths, and the plans of the leaves."""
    drawn = np.random.default_rng(1)
    shapes = {"kernel": case.shape, "bias": (3,)}
    params = {k: jnp.asarray(drawn.normal(size=s), case.dtype) for k, s in shapes.items()}
    tx = case.make(kernel)
    state, step, after = tx.init(params), program(tx, case.update), []
    paths: list[str] = []
    with plans_noted() as plans, jax.numpy_dtype_promotion("standard"):
        for grads in gradients(case.shape, case.of_grads):
            updates, params, state = step(grads, state, params)
            flat, _ = jax.tree_util.tree_flatten_with_path((updates, params, state))
            paths = [jax.tree_util.keystr(path) for path, _ in flat]
            after.append([np.asarray(x) for _, x in flat])
    return after, paths, plans


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Of the same dtype and shape too."""
    same = a.dtype == b.dtype and a.shape == b.shape
    return same and np.array_equal(np.ravel(a).view(np.uint8), np.ravel(b).view(np.uint8))


def differences(case: Case) -> list[str]:
    """What is not the same, in words: of the first step where anything is not."""
    (ours, paths, plans), (theirs, _, without) = (run(case, k) for k in ("pallas", "xla"))
    if not isinstance(plans["kernel"], Plan):
        return [f"{case.name}: no kernel, {plans['kernel']}"]
    if not all(isinstance(x, str) for x in (plans.get("bias", ""), *without.values())):
        return [f"{case.name}: kernels where there should be none"]
    for t, arrays in enumerate(zip(ours, theirs, strict=True)):
        found = [
            f"{case.name}, step {t}: {path}, {np.sum(a != b)} of {a.size}"
            for path, a, b in zip(paths, *arrays, strict=True)
            if not same_bits(a, b)
        ]
        if found:
            return found
    return []


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--all", action="store_true", help="and not a third of them")
    arguments.add_argument("--only", metavar="WORD", default="", help="in the names of cases")
    arguments.add_argument("--seed", type=int, default=0, help="of the third that is drawn")
    args = arguments.parse_args()
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    chosen = [x for x in cases() if args.only in x.name]
    if not (args.all or args.only):
        chosen = random.Random(args.seed).sample(chosen, len(chosen) // 3)
    chosen.sort(key=lambda x: (x.shape, jnp.dtype(x.of_grads).name))  # Gradients are kept.
    start, wrong = time.time(), 0
    for i, x in enumerate(chosen, start=1):
        found = differences(x)
        wrong += bool(found)
        print("\n".join(found), end="\n" * bool(found), flush=True)
        if not i % 50 or i == len(chosen):
            jax.clear_caches()
            minutes = (time.time() - start) / 60
            print(f"{i} of {len(chosen)} cases, {wrong} differ, {minutes:.1f} min", flush=True)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
