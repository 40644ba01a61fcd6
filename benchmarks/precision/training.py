"""Training with low-precision moments and weights, compared with float32: do the losses differ?

python -m benchmarks.precision.training [--fast] [--seeds 3] [--model text|cnn|all]
    [--data-dir DIR] [--json FILE] [--plot PNG]

The character transformer of `examples.studies.text` and the CNN of `examples.mnist`, by AdamW on
clipped gradients. Only the optimizer differs between the cases of a model. All start with the same
weights, which bfloat16 represents, and see the same batches. The model computes in float32 from the
stored weights, and gradients are float32. Then the same with a twentieth of the learning rate,
where updates are small relative to the spacing of bfloat16 numbers.

The loss is the mean over the last 15 batches. "within" tells whether the mean over the seeds is
between float32's least and largest. "Unmoved" is the share of the weights, including the bits kept
in the state, that a step does not change: rounding to nearest loses those updates, stochastic
rounding compensates for them with others. The last check is whether `master_residual(16)` equals
training in float32, bit for bit.
"""

import argparse
import functools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adam_jax
from benchmarks.machine import describe
from benchmarks.precision.tasks import Task, cast, digits_task, first_weights, text_task
from benchmarks.precision.updates import Columns, Row, bytes_per_parameter, table, write_json
from examples.shared import style
from examples.shared.command_line import positive

LAST = 15  # Batches averaged for a run's loss.
SMALL = 1 / 20  # Of the usual learning rate.


class Case(NamedTuple):
    """The formats of moments and weights; nu has the moments' format by default."""

    moments: Any = jnp.float32
    weights: Any = jnp.float32
    around: Callable[[Any], Any] = lambda tx: tx
    nu: Any = None


BF16 = functools.partial(Case, weights=jnp.bfloat16)
residual8 = functools.partial(adam_jax.master_residual, bits=8)
FLOAT32 = "float32"
USUAL = {
    FLOAT32: Case(),
    "bfloat16 weights, master_residual(16)": BF16(around=adam_jax.master_residual),
    "8-bit moments": Case(jnp.int8),
    "4-bit moments": Case(jnp.int4),
    "Adam-mini": Case(nu=adam_jax.AdamMini()),
    "Adam-mini, 8-bit mu": Case(jnp.int8, nu=adam_jax.AdamMini()),
    "8-bit moments, bfloat16 weights, master_residual(8)": BF16(jnp.int8, around=residual8),
    "8-bit moments, bfloat16 weights, stochastic_rounding": BF16(
        jnp.int8, around=adam_jax.stochastic_rounding
    ),
}
SLOW = {
    FLOAT32: Case(),
    "bfloat16 weights, to the nearest": BF16(),
    "bfloat16 weights, stochastic_rounding": BF16(around=adam_jax.stochastic_rounding),
    "bfloat16 weights, master_residual(16)": BF16(around=adam_jax.master_residual),
    "bfloat16 weights, master_residual(8)": BF16(around=residual8),
}


def optimizer(task: Task, case: Case, rate: Any) -> Any:
    """Linear warmup over a tenth of the steps, then a cosine down to a tenth of the rate."""
    part = optax.warmup_cosine_decay_schedule(0.0, 1.0, task.steps // 10, task.steps, 0.1)
    adamw = adam_jax.adamw(
        lambda step: rate * part(jnp.asarray(step, jnp.float32)),
        b2=task.b2,
        mu_dtype=case.moments,
        nu_dtype=case.moments if case.nu is None else case.nu,
        weight_decay=0.1,
        mask=adam_jax.decay_mask,
    )
    return case.around(adam_jax.chain(adam_jax.clip_by_global_norm(1.0), adamw))


def unmoved(before: Any, after: Any) -> jax.Array:
    """The share of unchanged weights, including the bits kept by the optimizer."""

    def arrays(weights: Any, state: Any) -> list[Any]:
        rest = jax.tree.leaves(getattr(state, "rest", None))
        return [jax.tree.leaves(weights), rest or jax.tree.leaves(weights)]

    leaves = zip(*arrays(*before), *arrays(*after), strict=True)
    same = [(w == new_w) & (r == new_r) for w, r, new_w, new_r in leaves]
    return sum((x.sum() for x in same), jnp.zeros([], jnp.int32)) / sum(x.size for x in same)


@functools.cache
def program(task: Task, case: Case) -> Callable[..., Any]:
    """A run with given weights, key and learning rate: the final weights, and the losses."""

    @jax.jit
    def run(weights: Any, key: jax.Array, rate: jax.Array) -> Any:
        tx = optimizer(task, case, rate)

        def step(carry: Any, t: jax.Array) -> Any:
            weights, state = carry
            examples = task.batch(key, t)
            # Not of the stored weights: their gradients would be rounded to bfloat16.
            wide = cast(weights, jnp.float32)
            loss, grads = jax.value_and_grad(task.loss)(wide, examples)
            new_weights, new_state = adam_jax.step(tx, grads, state, weights)
            still = unmoved((weights, state), (new_weights, new_state))
            return (new_weights, new_state), (loss, still)

        weights = cast(weights, case.weights)
        return jax.lax.scan(step, (weights, tx.init(weights)), jnp.arange(task.steps))

    return run


def train(task: Task, case: Case, rate: float, seeds: int) -> list[Row]:
    """A run for each seed."""
    runs = []
    for seed in range(seeds):
        begin, key = first_weights(task, seed), jax.random.key(seed)
        (weights, state), (losses, still) = program(task, case)(begin, key, jnp.float32(rate))
        held_out = task.held_out(cast(weights, jnp.float32))
        runs.append(
            {
                "loss": float(losses[-LAST:].mean()),
                "held_out": held_out["loss"],
                "accuracy": held_out.get("accuracy"),
                "unmoved": float(still[1:].mean()),  # The first step's learning rate is 0.
                "bytes": bytes_per_parameter((weights, state), weights),
            }
        )
    return runs


def summary(name: str, runs: list[Row], exact: list[Row]) -> Row:
    """A row of a table; `exact` are float32's runs. NaN stays NaN, and is not within."""

    def mean(key: str) -> float | None:
        return None if runs[0][key] is None else statistics.fmean(r[key] for r in runs)

    losses, exact_losses = ([r["loss"] for r in rs] for rs in (runs, exact))
    apart = [x - y for x, y in zip(losses, exact_losses, strict=True)]
    numbers = {key: mean(key) for key in ("loss", "held_out", "accuracy", "unmoved", "bytes")}
    within = min(exact_losses) <= statistics.fmean(losses) <= max(exact_losses)
    bounds = {"least": min(losses), "most": max(losses), "apart": statistics.fmean(apart)}
    return {"case": name, **numbers, **bounds, "within": within}


def measure(task: Task, cases: dict[str, Case], rate: float, seeds: int) -> list[Row]:
    exact: list[Row] = []
    rows = []
    for name, case in cases.items():
        runs = train(task, case, rate, seeds)
        exact = exact or runs  # The first case is float32.
        rows.append(summary(name, runs, exact))
        print(f"{task.name}, {rate:g}, {name}: {rows[-1]['loss']:.4f}", flush=True)
    return rows


@jax.jit
def rounded(weights: Any) -> Any:
    """Rounded to the nearest bfloat16, ties away from zero, as in `master_residual`; float32."""

    def leaf(w: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(w, jnp.uint32)
        bits = (bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)
        return jax.lax.bitcast_convert_type(bits, jnp.float32)

    return jax.tree.map(leaf, weights)


def joined(p: jax.Array, rest: jax.Array) -> jax.Array:
    """The bits of the float32 weight given by bfloat16 and 16 more bits, uint32."""
    upper = jax.lax.bitcast_convert_type(p, jnp.uint16).astype(jnp.uint32) << np.uint32(16)
    return upper + jax.lax.bitcast_convert_type(rest.astype(jnp.int32), jnp.uint32)


def equal_bits(task: Task, steps: int) -> list[int]:
    """The number of weights equal to float32's, bit for bit, after each step of two runs.

    One run is in float32, with gradients of its rounded weights; one is `master_residual(16)`. The
    two steps are separate programs; otherwise XLA could share their common computations.
    """
    txs = [optimizer(task, USUAL[FLOAT32], task.learning_rate)]
    txs += [adam_jax.master_residual(txs[0])]
    grad = jax.jit(jax.grad(lambda weights, t: task.loss(weights, task.batch(key, t))))
    one, other = (jax.jit(functools.partial(adam_jax.step, tx)) for tx in txs)
    key = jax.random.key(0)
    w = first_weights(task, 0)
    p = cast(w, jnp.bfloat16)
    # Committed to a device like the weights; otherwise the second step recompiles.
    state, rest = jax.device_put((txs[0].init(w), txs[1].init(p)), jax.devices()[0])

    @jax.jit
    def equal(w: Any, p: Any, rest: Any) -> jax.Array:
        pairs = zip(*(jax.tree.leaves(tree) for tree in (w, p, rest)), strict=True)
        same = [joined(q, r) == jax.lax.bitcast_convert_type(x, jnp.uint32) for x, q, r in pairs]
        return sum((x.sum() for x in same), jnp.zeros([], jnp.int32))

    found = []
    for t in range(steps):
        w, state = one(grad(rounded(w), t), state, w)
        p, rest = other(grad(cast(p, jnp.float32), t), rest, p)
        found.append(int(equal(w, p, rest.rest)))
    return found


def number(form: str) -> Callable[[Any], str]:
    return lambda x: "" if x is None else format(x, form)


COLUMNS: Columns = [
    ("case", "case", str),
    ("B/p", "bytes", number(".2f")),
    ("loss", "loss", number(".4f")),
    ("least", "least", number(".4f")),
    ("most", "most", number(".4f")),
    ("- float32's", "apart", number("+.4f")),
    ("within", "within", lambda x: "yes" if x else "no"),
    ("held-out loss", "held_out", number(".4f")),
    ("accuracy", "accuracy", number(".4f")),
    ("unmoved", "unmoved", number(".3f")),
]


def draw(tables: dict[str, list[Row]], path: Path) -> None:
    """A column for each model, a row for each rate; grey: the range of float32's seeds."""
    columns = len(tables) // 2
    pairs = list(tables.values())
    by_rate = [sum(pairs[i::2], []) for i in (0, 1)]
    names = [list(dict.fromkeys(row["case"] for row in rows)) for rows in by_rate]
    figure, panels = style.panels(
        2, columns, width=4.7, height=2.4, height_ratios=[len(n) for n in names], sharey="row"
    )
    for i, (title, rows) in enumerate(tables.items()):
        axes, shown = panels[i % 2 * columns + i // 2], names[i % 2]
        exact = rows[0]
        axes.axvspan(exact["least"], exact["most"], color=style.GRID)
        for row in rows:
            place = shown.index(row["case"])
            colour = style.BLUE if row["within"] else style.VERMILION
            axes.plot([row["least"], row["most"]], [place] * 2, color=colour, linewidth=2)
            axes.plot(row["loss"], place, "o", color=colour)
        axes.set_yticks(range(len(shown)), shown)
        axes.set(ylim=(len(shown) - 0.5, -0.5), xlabel="training loss (nats)")
        model, rest = title.split(": ")
        axes.set_title(f"{model}, {rest.split(', ')[1]}", loc="left", fontsize=9)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(False, axis="y")
    style.save(figure, path)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--fast", action="store_true", help="a short version, to try it out")
    arguments.add_argument("--seeds", metavar="N", type=positive, default=3)
    arguments.add_argument("--model", choices=("text", "cnn", "all"), default="all")
    arguments.add_argument("--data-dir", metavar="DIR", type=Path, help="MNIST's four files")
    arguments.add_argument("--json", metavar="FILE", type=Path, help="the rows go there too")
    arguments.add_argument("--plot", metavar="PNG", type=Path, help="plot the losses")
    args = arguments.parse_args()
    machine = describe("jax", "jaxlib", "flax")
    print(f"{machine}\n", flush=True)
    build_tasks = {
        "text": lambda: text_task(args.fast),
        "cnn": lambda: digits_task(args.fast, args.data_dir),
    }
    tables: dict[str, list[Row]] = {}
    for model in build_tasks if args.model == "all" else [args.model]:
        task = build_tasks[model]()
        for cases, factor in ((USUAL, 1.0), (SLOW, SMALL)):
            rate = factor * task.learning_rate
            title = f"{task.name}: {task.steps} steps, learning rate {rate:g}, {args.seeds} seeds"
            chosen = dict(list(cases.items())[:2]) if args.fast else cases
            rows = tables[title] = measure(task, chosen, rate, args.seeds)
            columns = [c for c in COLUMNS if any(row[c[1]] is not None for row in rows)]
            print(f"\n{title}\n\n{table(columns, rows)}\n", flush=True)
        if model == "text":
            counts = equal_bits(task, 5 if args.fast else 100)
            size = sum(w.size for w in jax.tree.leaves(task.weights(0)))
            equal = all(count == size for count in counts)
            print(f"master_residual(16) is float32, bit for bit, {len(counts)} steps: {equal}")
            print(f"({min(counts):,} of {size:,} weights)\n", flush=True)
    if args.json:
        write_json(args.json, "benchmarks.precision.training", machine, tables)
    if args.plot:
        draw(tables, args.plot)


if __name__ == "__main__":
    main()
