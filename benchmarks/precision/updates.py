"""Errors of Adam's updates with low-precision moments, compared with codecs of other libraries.

python -m benchmarks.precision.updates [--fast] [--json FILE]

First on real gradients: those of the character transformer of `examples.text`, along a run of AdamW
in float32. Each format of (mu, nu) gets the same gradients, and is written and read in every step.
Then a long run on synthetic gradients. The error of an update u = m̂ / (√v̂ + ε) is
‖u - u'‖ / ‖u'‖ per leaf, where u' is that of float32 moments. The peers are in `codecs`.

"Fallen" is the root mean square of the updates, relative to u', of coordinates whose gradients are
a tenth since step 1000: below 1 if nu does not follow.
"""

import argparse
import functools
import math
import shlex
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import adam_jax
from benchmarks.machine import describe
from benchmarks.precision.codecs import BITSANDBYTES, FLASH, peers
from benchmarks.precision.tasks import Task, text_task
from examples import strict_json

Form = tuple[Any, Any]
"""The formats of mu and nu: `mu_dtype` and `nu_dtype`."""
FLOAT32: Form = (jnp.float32, jnp.float32)
Row = dict[str, Any]
Columns = list[tuple[str, str, Callable[[Any], str]]]

BLOCK = 128
INT8 = "adam_jax int8"
# Limit of the mean error with b2 = .95, where bitsandbytes has 4.0 % without the embedding; and of
# the largest update relative to float32's: FlashOptim has a zero among its codes of nu: no bound.
MEAN_TARGET, LARGEST_TARGET = 0.021, 1.3
B2S = {"95": 0.95, "999": 0.999}
SHAPE = (128, 128)  # Of the synthetic gradients.
# Powers of two, so that only the format makes a difference.
SMALL, LARGE = 2.0**-20, 2.0**20


class Sizes(NamedTuple):
    """The size of all runs."""

    steps: int  # With real gradients;
    first: int  # the first measured step,
    leaves: int | None  # and the largest number of leaves.
    long: int  # Steps of the long run.
    fall: int  # The step at which gradients fall in it.


FULL, FAST = Sizes(120, 40, None, 2500, 1000), Sizes(12, 4, 1, 30, 10)


def forms(fast: bool) -> dict[str, Form]:
    """Our formats and the peers'."""
    stochastic = adam_jax.stochastic
    ours: dict[str, Any] = {
        "float32": jnp.float32,
        INT8: jnp.int8,
        "adam_jax int8 stochastic": stochastic(jnp.int8),
        "adam_jax int8 nearest": adam_jax.Quantized("int8", stochastic=False),
        "adam_jax int4": jnp.int4,
        "adam_jax int4 stochastic": stochastic(jnp.int4),
        "adam_jax int4 nearest": adam_jax.Quantized("int4", stochastic=False),
        "bfloat16 nearest": jnp.bfloat16,
        "adam_jax bfloat16 stochastic": stochastic(jnp.bfloat16),
    }
    both = {name: (dtype, dtype) for name, dtype in ours.items()} | peers()
    return {name: both[name] for name in (INT8, BITSANDBYTES, FLASH)} if fast else both


def adam(form: Form, b2: Any = 0.999, eps: float = 1e-8) -> Any:
    return adam_jax.scale_by_adam(b2=b2, eps=eps, mu_dtype=form[0], nu_dtype=form[1])


def bytes_per_parameter(stored: Any, params: Any) -> float:
    """Bytes of a stored array: codes of 4 bits are half a byte."""

    def bits(x: Any) -> int:
        of = jnp.iinfo if jnp.issubdtype(x.dtype, jnp.integer) else jnp.finfo
        return of(x.dtype).bits * x.size

    parameters = sum(p.size for p in jax.tree.leaves(params))
    return sum(map(bits, jax.tree.leaves(stored))) / 8 / parameters


def real_gradients(task: Task, steps: int) -> dict[str, jax.Array]:
    """By path, for every leaf that all formats quantize: float32 [steps, *shape].

    That excludes vectors, and the output layer: no block divides its 103 characters, so `Quantized`
    keeps it in float32.
    """
    tx, key = adam_jax.adamw(task.learning_rate), jax.random.key(0)

    def step(carry: Any, t: jax.Array) -> Any:
        params, state = carry
        grads = jax.grad(task.loss)(params, task.batch(key, t))
        few = {k: g for k, g in grads.items() if g.size >= 4096 and g.shape[-1] % BLOCK == 0}
        return adam_jax.step(tx, grads, state, params), few

    params = task.weights(0)
    return jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(steps))[1])(
        (params, tx.init(params))
    )


def update_error(name: str, form: Form, grads: dict[str, jax.Array], first: int) -> Row:
    """A row of the first table: over the steps from `first` on, and over the leaves."""
    params = {path: jnp.zeros(g.shape[1:]) for path, g in grads.items()}

    # A concrete number: `jnp.int8` uses it to choose how to round nu.
    @functools.partial(jax.jit, static_argnums=1)
    def run(grads: dict[str, jax.Array], b2: float) -> Any:
        tx, exact = adam(form, b2), adam(FLOAT32, b2)

        def step(states: Any, g: Any) -> Any:
            us, state = tx.update(g, states[0])
            xs, exact_state = exact.update(g, states[1])
            errors = {k: jnp.linalg.norm(us[k] - x) / jnp.linalg.norm(x) for k, x in xs.items()}
            largest = {k: jnp.max(jnp.abs(us[k] - x)) for k, x in xs.items()}
            return (state, exact_state), (errors, largest)

        return jax.lax.scan(step, (tx.init(params), exact.init(params)), grads)[1]

    state: Any = jax.eval_shape(adam(form).init, params)
    row: Row = {"form": name, "bytes": bytes_per_parameter((state.mu, state.nu), params)}
    for label, b2 in B2S.items():
        errors, largest = run(grads, b2)
        leaves = {path: float(e[first:].mean()) for path, e in errors.items()}
        row[f"mean_{label}"] = statistics.fmean(leaves.values())
        row[f"worst_{label}"] = max((error, path) for path, error in leaves.items())
        row[f"largest_{label}"] = max(float(x[first:].max()) for x in largest.values())
        row[f"leaves_{label}"] = leaves
    return row | {"mean_target": MEAN_TARGET if name == INT8 else None}


class Ended(NamedTuple):
    """Results of a long run, one number for each of the simultaneous runs."""

    error: jax.Array  # Of the last update.
    largest: jax.Array  # |u| of all steps,
    beside: jax.Array  # and relative to the largest |u'|.
    last: jax.Array  # The largest |u| of the last update.
    median: jax.Array  # |u| / |u'| of the last update.
    fallen: jax.Array  # The same, of root mean squares where gradients fell.


def long_runs(form: Form, steps: int, cases: list[tuple[float, float, int, int]]) -> Ended:
    """For each (sigma, factor, fall, seed): normal gradients with log-normal sizes times a factor.

    From step `fall` on every other coordinate has a tenth of its gradient. eps is 0.
    """
    tx, exact = adam(form, eps=0.0), adam(FLOAT32, eps=0.0)
    every_other = jnp.arange(SHAPE[1]) % 2 == 0
    zeros = jnp.zeros(SHAPE)

    def run(sigma: jax.Array, factor: jax.Array, fall: jax.Array, seed: jax.Array) -> Ended:
        sizes_key, key = jax.random.split(jax.random.key(seed))
        sizes = factor * jnp.exp(sigma * jax.random.normal(sizes_key, SHAPE))

        def step(carry: Any, t: jax.Array) -> Any:
            states, _, largest = carry
            g = jax.random.normal(jax.random.fold_in(key, t), SHAPE) * sizes
            g = jnp.where(every_other & (t >= fall), 0.1 * g, g)
            u, state = tx.update(g, states[0])
            x, exact_state = exact.update(g, states[1])
            largest = jnp.maximum(largest, jnp.stack([jnp.abs(u).max(), jnp.abs(x).max()]))
            return ((state, exact_state), (u, x), largest), None

        first = (tx.init(zeros), exact.init(zeros)), (zeros, zeros), jnp.zeros(2)
        (_, (u, x), (largest, exact_largest)), _ = jax.lax.scan(step, first, jnp.arange(steps))
        return Ended(
            error=jnp.linalg.norm(u - x) / jnp.linalg.norm(x),
            largest=largest,
            beside=largest / exact_largest,
            last=jnp.abs(u).max(),
            median=jnp.median(jnp.abs(u) / jnp.abs(x)),
            fallen=jnp.linalg.norm(u[:, ::2]) / jnp.linalg.norm(x[:, ::2]),
        )

    return jax.jit(jax.vmap(run))(*(jnp.asarray(column) for column in zip(*cases, strict=True)))


def long_row(name: str, form: Form, sizes: Sizes) -> Row:
    """A row of the second table."""
    never = sizes.long
    cases = [(0.5, 1.0), (1.0, 1.0), (1.0, SMALL), (1.0, LARGE)]
    cases = [(sigma, factor, never, 0) for sigma, factor in cases]
    cases += [(0.5, 1.0, sizes.fall, 0), (1.0, 1.0, never, 1), (1.0, 1.0, never, 2)]
    ended = long_runs(form, sizes.long, cases)
    errors = ended.error.tolist()[:4]
    seeds = jnp.array([1, 5, 6])  # For sigma = 1.
    return {
        "form": name,
        **dict(zip(("sigma_half", "sigma_one", "small", "large"), errors, strict=True)),
        "largest": float(ended.largest[seeds].max()),
        "beside": float(ended.beside[seeds].max()),
        "last": float(ended.last[seeds].max()),
        "beside_target": LARGEST_TARGET if name == INT8 else None,
        "median": float(ended.median[1]),
        "fallen": float(ended.fallen[4]),
    }


def percent(x: float) -> str:
    return f"{100 * x:.3g} %" if math.isfinite(x) else str(x)


def worst(leaf: tuple[float, str]) -> str:
    return f"{percent(leaf[0])} {leaf[1]}" if leaf[0] else ""


ERRORS: Columns = [
    ("mu, nu", "form", str),
    ("B/p", "bytes", "{:.3f}".format),
    ("mean, b2 .95", "mean_95", percent),
    ("target", "mean_target", lambda x: "" if x is None else f"<= {percent(x)}"),
    ("worst leaf", "worst_95", worst),
    ("mean, b2 .999", "mean_999", percent),
    ("worst leaf", "worst_999", worst),
    ("largest \\|u - u'\\|", "largest_999", "{:.3g}".format),
]
LONG: Columns = [
    ("mu, nu", "form", str),
    ("error, sigma .5", "sigma_half", percent),
    ("error, sigma 1", "sigma_one", percent),
    ("largest \\|u\\|", "largest", "{:.3g}".format),
    ("/ float32's", "beside", "{:.3g}".format),
    ("target", "beside_target", lambda x: "" if x is None else f"<= {x:g}"),
    ("last \\|u\\|", "last", "{:.3g}".format),
    ("median \\|u / u'\\|", "median", "{:.3f}".format),
    ("fallen", "fallen", "{:.3f}".format),
    ("error, g·2⁻²⁰", "small", percent),
    ("error, g·2²⁰", "large", percent),
]


def table(columns: Columns, rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = [[title for title, _, _ in columns], ["---"] * len(columns)]
    lines += [[show(row[key]) for _, key, show in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_json(path: Path, module: str, machine: str, tables: dict[str, list[Row]]) -> None:
    command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    found = {"machine": machine, "command": command, "tables": tables}
    path.write_text(strict_json.dumps(found, indent=1) + "\n")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--fast", action="store_true", help="few steps, to try it out")
    arguments.add_argument("--json", metavar="FILE", type=Path, help="the rows go there too")
    args = arguments.parse_args()
    sizes, machine = FAST if args.fast else FULL, describe("jax", "jaxlib")
    print(f"{machine}\n", flush=True)
    grads = real_gradients(text_task(args.fast), sizes.steps)
    grads = dict(list(grads.items())[: sizes.leaves])
    parameters = f"{len(grads)} leaves, {sum(g[0].size for g in grads.values()):,} parameters"
    measured = f"steps {sizes.first + 1} to {sizes.steps}"
    title = f"Update error on real gradients: {parameters}, {measured}"
    long_title = f"The long run: {sizes.long} steps, b2 .999"
    chosen = forms(args.fast)
    rows = [update_error(name, form, grads, sizes.first) for name, form in chosen.items()]
    print(f"{title}\n\n{table(ERRORS, rows)}\n", flush=True)
    long_rows = [long_row(name, form, sizes) for name, form in chosen.items()]
    print(f"{long_title}\n\n{table(LONG, long_rows)}\n", flush=True)
    if args.json:
        tables = {title: rows, long_title: long_rows}
        write_json(args.json, "benchmarks.precision.updates", machine, tables)


if __name__ == "__main__":
    main()
