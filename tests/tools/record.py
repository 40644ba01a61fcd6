"""Records state trees, and parameters after 12 steps, of members x storage x wrappers.

python -m tests.tools.record              writes the record, tests/tools/record.npz
python -m tests.tools.record --check      compares all cases with it

Every case is inside `skip_nonfinite`, and two of its steps are rejected. Write the file only for an
intended change of results, and document it in the changelog.
"""

import argparse
import functools
import inspect
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adam_jax
from tests.catalogue import modifiers
from tests.catalogue.recipes import stepper
from tests.catalogue.runs import schedule

RECORD = Path(__file__).parent / "record.npz"
STEPS, REFUSED = 12, {4: np.nan, 8: np.inf}
SHAPES = {"kernel": (2, 32), "bias": (3,)}
SMALL_BLOCKS = adam_jax.Quantized(min_size=1)
STORED = {
    "float32": {},
    "bfloat16": dict.fromkeys(("mu", "nu"), adam_jax.stochastic(jnp.bfloat16)),
    "int8": dict.fromkeys(("mu", "nu"), SMALL_BLOCKS),
    "int4": {"mu": adam_jax.Quantized("int4", min_size=1), "nu": SMALL_BLOCKS},
    "int4 nu": {"nu": adam_jax.Quantized("int4", min_size=1)},
    "factored": {"mu": SMALL_BLOCKS, "nu": adam_jax.Factored(1, 1)},
}
ALIASES = (
    *("adam", "adamw", "nadam", "nadamw", "amsgrad", "adamax", "adamaxw", "radam"),
    *("adabelief", "yogi", "adan", "adopt", "ademamix", "lion", "lamb"),
    *("schedule_free_adamw", "laprop", "mars_adamw"),
)
VARIANTS: dict[str, Callable[..., Any]] = {
    "adam l2": functools.partial(adam_jax.adam, l2=0.1),
    "adam nesterov": functools.partial(adam_jax.adam, nesterov=True),
    "adam eps_hat": functools.partial(adam_jax.adam, eps=0.0, eps_hat=1e-7),
    "adamw fully decoupled": functools.partial(adam_jax.adamw, scale_decay=False),
    "adamw masked": functools.partial(adam_jax.adamw, mask=adam_jax.decay_mask),
    "adamw slow b1": functools.partial(adam_jax.adamw, b1=0.3),
    "nadam decay": functools.partial(adam_jax.nadam, momentum_decay=0.004),
    "amsgrad max first": functools.partial(adam_jax.amsgrad, max_before_correction=True),
    # Under the names that they have in the record.
    **{
        f"{name}w": functools.partial(getattr(adam_jax, name), weight_decay=1e-4)
        for name in ("amsgrad", "radam", "laprop")
    },
    "adan change": functools.partial(adam_jax.adan, change_weight=0.92),
}
PEAK = {"peak_learning_rate": 2e-2}
MODIFIERS: dict[str, Callable[..., Any]] = {
    **modifiers.MODIFIERS,
    "corrected_weight_decay": functools.partial(adam_jax.corrected_weight_decay, **PEAK),
}
IN_WRAPPERS = ("adamw", "amsgrad", "adan", "lion", "ademamix")
WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "chain": lambda tx: adam_jax.chain(adam_jax.clip_by_global_norm(0.5), tx),
    "optax.chain": lambda tx: optax.chain(optax.clip_by_global_norm(0.5), tx),
    "optax trace": lambda tx: adam_jax.chain(tx, optax.trace(0.5)),
    "accumulate": lambda tx: adam_jax.accumulate(tx, 2),
    "accumulate int8": lambda tx: adam_jax.accumulate(tx, 3, dtype=SMALL_BLOCKS),
    "ema": lambda tx: adam_jax.chain(tx, adam_jax.ema_params(0.9)),
    "telemetry": lambda tx: adam_jax.telemetry(tx, 3),
    "stochastic_rounding": adam_jax.stochastic_rounding,
    "master_residual": adam_jax.master_residual,
    "master_residual 8": functools.partial(adam_jax.master_residual, bits=8),
    "clip_by_history": lambda tx: adam_jax.clip_by_history(tx, 2.0, updates=1.5, decay=0.75),
    "shard_state": lambda tx: adam_jax.sharding.shard_state(tx, jax.make_mesh((1,), ("data",))),
    "frozen": lambda tx: adam_jax.chain(
        adam_jax.clip_by_global_norm(0.5),
        adam_jax.groups(adam_jax.adamw, {"bias": None}, learning_rate=1e-2),
        optax.trace(0.5),
    ),
    "recipe": lambda tx: adam_jax.accumulate(
        adam_jax.chain(adam_jax.clip_by_global_norm(0.5), adam_jax.master_residual(tx)), 2
    ),
}


def dtypes(make: Callable[..., Any], stored: str) -> dict[str, Any]:
    parameters = inspect.signature(make).parameters
    given = {f"{slot}_dtype": spec for slot, spec in STORED[stored].items()}
    return {name: spec for name, spec in given.items() if name in parameters}


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    """The names of all cases, and a function that makes the transformation of each."""
    makes = {name: getattr(adam_jax, name) for name in ALIASES} | VARIANTS
    for (name, make), stored in itertools.product(makes.items(), STORED):
        given = dtypes(make, stored)
        if stored == "float32" or given:
            yield f"{name}, {stored}", functools.partial(make, 1e-2, **given)
    for (name, make), (modifier, change) in itertools.product(makes.items(), MODIFIERS.items()):
        yield f"{modifier}({name})", functools.partial(lambda f, g: f(g(1e-2)), change, make)
    for name, stored in itertools.product(IN_WRAPPERS, ("float32", "int8")):
        make = getattr(adam_jax, name)
        given = dtypes(make, stored)
        for wrapper, around in WRAPPERS.items():
            made = functools.partial(lambda f, g, k: f(g(1e-2, **k)), around, make, given)
            yield f"{wrapper}({name}, {stored})", made
        groups = functools.partial(adam_jax.groups, make, {"bias": {"b1": 0.5}})
        for around, f in (
            ("schedule", make),
            ("with_hyperparams", adam_jax.with_hyperparams(make)),
            ("groups", groups),
        ):
            yield (
                f"{around}({name}, {stored})",
                functools.partial(f, learning_rate=schedule, **given),
            )


def run(make: Callable[[], Any], dtype: Any, update: bool, of_grads: Any = None) -> Any:
    """Parameters and state after the steps, or the error."""
    random = np.random.default_rng(0)
    params = {k: jnp.asarray(random.normal(size=s), dtype) for k, s in SHAPES.items()}
    scales = 10.0 ** random.uniform(-2, 1, size=STEPS)
    try:
        tx = adam_jax.skip_nonfinite(make())
        state, step = tx.init(params), jax.jit(stepper(tx, "update" if update else "step"))
        for t in range(STEPS):
            grads = {k: scales[t] * random.normal(size=s) for k, s in SHAPES.items()}
            if t in REFUSED:
                grads["kernel"].flat[5] = REFUSED[t]
            grads = {k: jnp.asarray(g, of_grads or dtype) for k, g in grads.items()}
            with jax.numpy_dtype_promotion("standard"):  # For Optax's own code.
                params, state = step(params, state, grads)
    except ValueError as error:
        return str(error)
    return params, state


def described(tree: Any) -> list[str]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [f"{jax.tree_util.keystr(k)} {x.dtype} {list(x.shape)}" for k, x in flat]


Outcome = tuple[list[str] | str, np.ndarray, np.ndarray]
"""The state's tree (or the error), the parameters, and the codes in the state."""


def outcomes(which: slice = slice(None)) -> Iterator[tuple[Any, ...]]:
    """The name of each case, with its dtype and form of step, and its outcome."""
    for name, make in itertools.islice(cases(), which.start, which.stop, which.step):
        for dtype in (jnp.float32, jnp.bfloat16):
            for update in (False, True)[: 1 + name.endswith("(adamw, float32)")]:
                key = f"{name}, {jnp.dtype(dtype).name}{', update' * update}"
                yield key, *outcome(run(make, dtype, update))
        if name.endswith("(adamw, float32)"):
            for dtype, other in itertools.permutations((jnp.float32, jnp.bfloat16)):
                key = f"{name}, {jnp.dtype(dtype).name} by {jnp.dtype(other).name}"
                yield key, *outcome(run(make, dtype, False, other))
                yield f"{key}, update", *outcome(run(make, dtype, True, other))


def outcome(made: Any) -> Outcome:
    if isinstance(made, str):
        return made, np.zeros(0, np.float32), np.zeros(0, np.int8)
    params, state = made
    numbers = [np.ravel(np.asarray(x, np.float32)) for x in jax.tree.leaves(params)]
    codes = [x for x in jax.tree.leaves(state) if x.dtype.itemsize == 1 and x.ndim]
    codes = [np.ravel(np.asarray(x).astype(np.int16)).astype(np.int8) for x in codes]
    return described(state), np.concatenate(numbers), np.concatenate([np.zeros(0, np.int8), *codes])


def differences(name: str, before: Any, now: Any) -> list[str]:
    found = []
    if before[0] != now[0]:
        return [f"{name}: the tree was {before[0]}, is {now[0]}"]
    distance = np.spacing(np.maximum(np.abs(before[1]), np.abs(now[1])))
    distance *= 2**16 if "bfloat16" in name else 1
    apart = np.abs(before[1] - now[1]) > 2 * distance
    if apart.any() or not np.array_equal(np.isfinite(before[1]), np.isfinite(now[1])):
        found.append(f"{name}: {apart.sum()} parameters by more than 2 ulp")
    if np.mean(before[2] != now[2] if before[2].size else 0) > 1e-5:
        found.append(f"{name}: {np.sum(before[2] != now[2])} codes")
    return found


def write(made: Iterator[tuple[Any, ...]]) -> None:
    trees, params, codes, sizes = {}, [], [], {}
    for name, tree, its_params, its_codes in made:
        trees[name], sizes[name] = tree, (its_params.size, its_codes.size)
        params.append(its_params)
        codes.append(its_codes)
    text = np.frombuffer(json.dumps({"trees": trees, "sizes": sizes}).encode(), np.uint8)
    arrays = {"params": np.concatenate(params), "codes": np.concatenate(codes)}
    np.savez_compressed(RECORD, text=text, **arrays)


def read() -> dict[str, Outcome]:
    with np.load(RECORD) as arrays:
        text = json.loads(arrays["text"].tobytes())
        sizes = text["sizes"].values()
        params, codes = (
            np.split(arrays[key], np.cumsum([size[i] for size in sizes])[:-1])
            for i, key in enumerate(("params", "codes"))
        )
    made = zip(text["trees"].values(), params, codes, strict=True)
    return dict(zip(text["trees"], made, strict=True))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true", help="compares, and writes nothing")
    if not arguments.parse_args().check:
        return write(outcomes())
    before = read()
    wrong = [x for name, *now in outcomes() for x in differences(name, before[name], now)]
    print("\n".join(wrong) or "all as on record")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
