"""Optimizers compared on the character transformer, each at its best learning rate.

Members of Adam's family, modified members, and Muon on the matrices of the blocks with AdamW on the
rest. All have the same schedule (warmup and cosine), clipping, weight decay, b1 and b2. All are
tuned in the same way: learning rates a factor of 2 apart, on one seed; while the best rate is at
the edge of the grid, the grid is extended by one. Then three other seeds run at the best rate.
Rates are chosen on the first half of the held-out text; the reported loss is on the second half.

Writes OUT/table.md, table.csv, figures.json and losses.png; with --publish also the table and the
picture of the documentation. After an interruption, the same command resumes.
"""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import adam_jax
from examples.shared import strict_json, study
from examples.shared.study import Piece, Result, Study
from examples.studies.text import corpus, report
from examples.studies.text.corpus import Corpus
from examples.studies.text.train import Config, TrainState, model, schedule, step_of, validate

Rate = jax.Array
Make = Callable[[optax.Schedule, Rate], optax.GradientTransformation]
"""Maps the schedule of learning rates and its peak to an optimizer."""

FACTOR, RATES, BEYOND, SEEDS = 2.0, 5, 6, 3
"""Ratio of neighbouring rates; initial rates; most additional rates; seeds at the best rate."""

SHARED: dict[str, Any] = {"b1": 0.9, "b2": 0.99}
DECAY: dict[str, Any] = {"weight_decay": 0.1, "mask": adam_jax.decay_mask}


def plain(factory: Callable[..., optax.GradientTransformation], **numbers: Any) -> Make:
    """A member with the shared hyperparameters and some of its own."""
    return lambda rates, _: factory(rates, **(SHARED | numbers))


def corrected(rates: optax.Schedule, peak: Rate) -> optax.GradientTransformation:
    """AdamW whose decay is proportional to the square of the learning rate."""
    return adam_jax.corrected_weight_decay(adam_jax.adamw(rates, **SHARED, **DECAY), peak)


def muon_and_adamw(rates: optax.Schedule, _: Rate) -> optax.GradientTransformation:
    """Muon on the matrices of the blocks; AdamW on embeddings, output layer and vectors."""
    muon = optax.contrib.muon(
        rates,
        weight_decay=DECAY["weight_decay"],
        consistent_rms=0.2,  # The size of AdamW's updates, so that both share a learning rate.
        muon_weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(),
    )
    rest = adam_jax.adamw(rates, **SHARED, **DECAY)
    return adam_jax.groups({r"blocks/.*/kernel": muon, ".*": rest})


# Each with the middle of its learning rate grid.
OPTIMIZERS: dict[str, tuple[Make, float]] = {
    "adam": (plain(adam_jax.adam), 4e-3),
    "adamw": (plain(adam_jax.adamw, **DECAY), 4e-3),
    "adamw, AdamMini()": (plain(adam_jax.adamw, **DECAY, nu_dtype=adam_jax.AdamMini()), 4e-3),
    "lapropw": (plain(adam_jax.lapropw, **DECAY), 4e-3),
    "mars_adamw": (plain(adam_jax.mars_adamw, **DECAY), 4e-3),
    "grams(adamw)": (plain(adam_jax.grams(adam_jax.adamw), **DECAY), 4e-3),
    "cautious(adamw)": (plain(adam_jax.cautious(adam_jax.adamw), **DECAY), 4e-3),
    "corrected_weight_decay(adamw)": (corrected, 4e-3),
    "Muon and adamw": (muon_and_adamw, 1.6e-2),
}
FAST_OPTIMIZERS = ["adamw", "Muon and adamw"]
FULL = Config(steps=600, batch_size=32, context=64, width=64, layers=2)
FAST = Config(steps=30, batch_size=8, context=16, width=16, layers=1, heads=2)


def optimizer(name: str, config: Config, rate: Rate) -> optax.GradientTransformation:
    """On clipped gradients, with the schedule of `examples.studies.text` up to this rate."""
    shape = schedule(dataclasses.replace(config, learning_rate=1.0))
    make, _ = OPTIMIZERS[name]
    tx = make(lambda step: rate * shape(step), rate)
    return adam_jax.chain(adam_jax.clip_by_global_norm(1.0), tx)


@functools.partial(jax.jit, static_argnames=("name", "config", "vocabulary"))
def trained(
    rate: Rate,
    seed: jax.Array,
    text: jax.Array,
    held_out: Sequence[jax.Array],
    *,
    name: str,
    config: Config,
    vocabulary: int,
) -> tuple[jax.Array, list[jax.Array]]:
    """One run: the loss of each batch, and the final losses on the held-out texts."""
    initial, batches = jax.random.split(jax.random.key(seed))
    graph, params = nnx.split(model(config, vocabulary, initial))
    tx = optimizer(name, config, rate)
    state = TrainState(params, tx.init(params), jnp.zeros([], jnp.int32))
    one_step = step_of(tx, text, graph, config, batches)
    state, losses = jax.lax.scan(one_step, state, length=config.steps)
    judge = functools.partial(validate, stride=config.context, graph=graph, config=config)
    return losses, [judge(state.params, part).mean() for part in held_out]


class Comparison:
    """The runs of a study; each run is a piece."""

    def __init__(self, work: Study, config: Config, text: Corpus):
        """Starts without any run."""
        self.work, self.config, self.vocabulary = work, config, len(text.vocabulary)
        half = len(text.validation) // 2
        parts = (text.validation[:half], text.validation[half:])
        self.text, self.held_out = jnp.asarray(text.train), [jnp.asarray(x) for x in parts]

    def run(self, wanted: Sequence[tuple[str, float, int]]) -> list[Result]:
        """The results for optimizers, learning rates and seeds."""
        pieces = [
            Piece(
                f"{name}, rate {rate:.3g}, seed {seed}",
                functools.partial(self.compute, name, rate, seed),
                loss="loss",
            )
            for name, rate, seed in wanted
        ]
        return list(self.work.run(pieces).values())

    def compute(self, name: str, rate: float, seed: int) -> Result:
        """One run."""
        losses, (chosen_by, reported) = trained(
            jnp.float32(rate),
            jnp.uint32(seed),
            self.text,
            self.held_out,
            name=name,
            config=self.config,
            vocabulary=self.vocabulary,
        )
        return {
            "rate": rate,
            "seed": seed,
            "chosen_by": float(chosen_by),
            "loss": float(reported),
            "train_losses": np.asarray(losses, np.float64).round(4),
        }

    def tuned(self, names: Sequence[str], seed: int) -> dict[str, list[Result]]:
        """The runs of each grid, by rising rate; all optimizers advance one rate at a time."""
        grids = {name: first_grid(OPTIMIZERS[name][1]) for name in names}
        while True:
            wanted = [(name, rate, seed) for name in names for rate in grids[name]]
            found = self.run(wanted)
            results = {
                name: sorted(
                    (r for (n, *_), r in zip(wanted, found, strict=True) if n == name),
                    key=lambda r: r["rate"],
                )
                for name in names
            }
            more = {name: further(runs) for name, runs in results.items()}
            if not any(more.values()):
                return results
            for name, rates in more.items():
                grids[name] = [*grids[name], *rates]

    def bytes_of_state(self, name: str) -> float:
        """Per parameter."""

        def init() -> Any:
            return nnx.split(model(self.config, self.vocabulary, 0))[1]

        tx = optimizer(name, self.config, jnp.float32(1e-3))
        params = jax.eval_shape(init)
        return adam_jax.inspect.bytes_per_parameter(params, tx).per_parameter.state


def best(runs: list[Result]) -> int:
    """The index of the run with the lowest loss on the text used for choosing rates."""
    losses = np.asarray([run["chosen_by"] for run in runs], float)
    return int(np.where(np.isfinite(losses), losses, np.inf).argmin())


def first_grid(middle: float) -> list[float]:
    """The initial rates of the grid."""
    return [middle * FACTOR**i for i in range(-(RATES // 2), RATES - RATES // 2)]


def further(runs: list[Result]) -> list[float]:
    """The next rate beyond a best rate at the edge of the grid; none if it is inside."""
    if len(runs) >= RATES + BEYOND:
        return []
    if best(runs) == 0:
        return [runs[0]["rate"] / FACTOR]
    return [runs[-1]["rate"] * FACTOR] if best(runs) == len(runs) - 1 else []


def main(argv: list[str] | None = None) -> None:
    """Runs the missing part of the comparison, then writes table and picture."""
    parser = study.Parser("studies.text.compare", __doc__, fast=20, full=1700)
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS)
    parser.add_argument("--publish", action="store_true", help="update the documentation")
    options = parser.options(argv)
    if options.publish and (options.fast or options.seed or options.optimizers):
        parser.error("--publish takes the whole comparison: leave the other options out")
    names = options.optimizers or (FAST_OPTIMIZERS if options.fast else list(OPTIMIZERS))
    config, text = FAST if options.fast else FULL, corpus.load()
    config = dataclasses.replace(config, seed=options.seed)
    settings = dataclasses.asdict(config) | {"text": text.digest}
    del settings["learning_rate"]  # Each run has its own.
    comparison = Comparison(Study(options.out, settings), config, text)
    grids = comparison.tuned(names, options.seed)
    chosen = {name: grids[name][best(grids[name])]["rate"] for name in names}
    seeds = range(options.seed + 1, options.seed + 1 + SEEDS)
    wanted = [(name, chosen[name], seed) for name in names for seed in seeds]
    losses = np.reshape([run["loss"] for run in comparison.run(wanted)], (len(names), SEEDS))
    figures = {
        name: {
            "mean": float(own.mean()),
            "lowest": float(own.min()),
            "highest": float(own.max()),
            "rate": chosen[name],
            "edge": float(best(grids[name]) in (0, len(grids[name]) - 1)),
            "bytes": comparison.bytes_of_state(name),
        }
        for name, own in zip(names, losses, strict=True)
    }
    print(comparison.work.table(report.COLUMNS, report.table(figures), "table"))
    lines = [f" {strict_json.dumps(n)}: {strict_json.dumps(row)}" for n, row in figures.items()]
    (options.out / "figures.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    report.picture(figures, options.out / "losses.png")
    print(f"{options.out}/table.md, table.csv, figures.json, losses.png")
    if options.publish:
        shutil.copyfile(options.out / "figures.json", report.FIGURES)
        report.publish(figures)


if __name__ == "__main__":
    study.command(main)
