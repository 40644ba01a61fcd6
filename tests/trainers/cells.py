"""What every trainer runs: optimizers beside Optax's, and the cells of the table."""

import json
import re
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adam_jax

PAGE = Path(__file__).parents[2] / "docs" / "migrating" / "trainers.md"
STEPS = 20
RATE = optax.linear_schedule(3e-3, 1e-3, STEPS)


class Case(NamedTuple):
    """An optimizer, and Optax's that should train alike."""

    ours: Callable[..., Any]
    optax: Callable[..., Any]
    tolerance: float = 1e-5
    accumulated: int = 1


def injected(chain: Callable, clip: Callable, adamw: Callable) -> Callable[[Any], Any]:
    return lambda learning_rate: chain(clip(0.1), adamw(learning_rate))


OURS = (adam_jax.chain, adam_jax.clip_by_global_norm, adam_jax.adamw)
THEIRS = (optax.chain, optax.clip_by_global_norm, optax.adamw)
CODES = adam_jax.Quantized(min_size=0)  # Otherwise the leaves of these models stay float32.
BITS = dict(mu_dtype=CODES, nu_dtype=CODES)

# Functions of the learning rate.
CASES = {
    "adamw": Case(adam_jax.adamw, optax.adamw),
    "adamw, int8 moments": Case(partial(adam_jax.adamw, **BITS), optax.adamw, 2e-2),
    "chain(clip, adamw)": Case(injected(*OURS), injected(*THEIRS)),
    "with_hyperparams(adamw)": Case(
        adam_jax.with_hyperparams(adam_jax.adamw), optax.inject_hyperparams(optax.adamw)
    ),
    "chain(clip, with_hyperparams(adamw))": Case(
        injected(*OURS[:2], adam_jax.with_hyperparams(adam_jax.adamw)),
        injected(*THEIRS[:2], optax.inject_hyperparams(optax.adamw)),
    ),
    "with_hyperparams(chain(clip, adamw))": Case(
        adam_jax.with_hyperparams(injected(*OURS)), optax.inject_hyperparams(injected(*THEIRS))
    ),
    "accumulate(adamw, 2)": Case(
        lambda r: adam_jax.accumulate(adam_jax.adamw(r), 2),
        lambda r: optax.MultiSteps(optax.adamw(r), 2).gradient_transformation(),
        accumulated=2,
    ),
    "skip_nonfinite(adamw)": Case(
        lambda r: adam_jax.skip_nonfinite(adam_jax.adamw(r)),
        lambda r: optax.apply_if_finite(optax.adamw(r), 5),
    ),
}


class Run(NamedTuple):
    """What a trainer's loop leaves: its logged losses and rates, and all arrays of its state."""

    losses: Any
    rates: Any
    arrays: list[Any]


def arrays(state: Any) -> list[Any]:
    def plain(x: Any) -> np.ndarray:
        is_key = jnp.issubdtype(getattr(x, "dtype", None), jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    return [plain(x) for x in jax.tree.leaves(state)]


def far(a: Any, b: Any) -> float:
    """The largest relative difference; NaN equals NaN."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
        return np.inf
    return float(np.nanmax(np.abs(a - b) / np.abs(b), initial=0.0))


def same_bits(a: list[Any], b: list[Any]) -> str:
    other = [(x, y) for x, y in zip(a, b, strict=True) if x.tobytes() != y.tobytes()]
    if not other:
        return "right"
    pairs = [(x.astype(np.float64), y.astype(np.float64)) for x, y in other]
    most = max(np.abs(x - y).max() / max(np.abs(y).max(), 1e-30) for x, y in pairs)
    bound = next(10.0**n for n in range(-8, 9) if most < 10.0**n)
    return f"arrays differ by less than {bound:.0e} of their maximum"


def reason(error: BaseException) -> str:
    traceback.print_exception(error)
    return f"{type(error).__name__}: {str(error).strip()[:300]}"


def attempt(run: Callable[[], Any]) -> tuple[Any, str]:
    try:
        return run(), ""
    except Exception as error:  # Whatever a trainer raises is the content of the cell.
        return None, reason(error)


def resume(run: Callable[..., Run], make: Callable, name: str, whole: Run) -> str:
    """Trains in two halves, the second from the trainer's checkpoint; compares with `whole`."""

    def halves() -> Run:
        run(make, STEPS // 2, name)
        return run(make, STEPS, name)

    result, failed = attempt(halves)
    return failed or same_bits(result.arrays, whole.arrays)


def measure(trainer: str, mesh: str, run: Callable[..., Run], cases: Any = CASES) -> None:
    """Prints the cells of one mesh. `run(make, steps, name)` continues from the run `name`, if any.

    `make` takes a learning rate. "with Optax" holds what fails with Optax too.
    """
    for name, case in cases.items():
        row = {"trainer": trainer, "mesh": mesh, "optimizer": name}
        row |= {"losses": "right", "rate": "right", "resume": "", "with Optax": ""}
        ours, failed = attempt(partial(run, case.ours, STEPS, f"{mesh} {name} whole"))
        theirs, row["with Optax"] = attempt(partial(run, case.optax, STEPS, f"{mesh} {name} optax"))
        if failed:
            row |= {"losses": failed, "rate": ""}
        else:
            row["resume"] = resume(run, case.ours, f"{mesh} {name}", ours)
            if theirs and row["resume"] != "right":
                of_optax = resume(run, case.optax, f"{mesh} {name} halves of optax", theirs)
                row["with Optax"] = f"resume: {of_optax}"
        if ours and theirs:
            row["distance"] = far(ours.losses, theirs.losses)
            if not row["distance"] <= case.tolerance:
                row["losses"] = f"differ by {row['distance']:.1e}"
            if not far(ours.rates, theirs.rates) <= 1e-5:
                row["rate"] = f"{len(ours.rates)} rates, with Optax {len(theirs.rates)}"
            elif len(ours.rates) == 0:
                row["rate"] = "none"
        print(json.dumps(row), flush=True)


def on_page(word: str) -> str:
    """The sample with this word, in a trainer's environment; in `py`, which tests/docs skips."""
    found = re.findall(r"^```py\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    [code] = [x for x in found if word in x]
    return code


def mesh_of(axes: tuple[str, ...], shape: tuple[int, ...]) -> jax.sharding.Mesh:
    return jax.make_mesh(shape, axes, axis_types=(jax.sharding.AxisType.Auto,) * len(axes))
