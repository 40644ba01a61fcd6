"""Optimizers compared on the character transformer, each at its best learning rates.

Members of Adam's family, modified members, Muon, and matrices on the sphere. Each optimizer has two
learning rates: of the matrices of the blocks, and of all other leaves, which AdamW or the optimizer
itself steps. All have the same schedule (warmup and cosine), clipping, b1 and b2, and the same
weight decay, except for matrices on the sphere, which have none. All are tuned in the same way, on
one seed, in factors of 2: both rates together, up or down while that helps, then that of the rest,
then that of the matrices, in turn, until twice and half of both or either are worse. Then three
other seeds run at the best rates. Rates are chosen on the first half of the held-out text; the
reported loss is on the second half.

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

Rates = tuple[float, float]
"""Peaks of the learning rates: of the matrices of the blocks, and of all other leaves."""
Make = Callable[[optax.Schedule], optax.GradientTransformation]

FACTOR, SEEDS = 2.0, 3
"""Ratio of neighbouring rates; seeds at the best rates."""

SHARED: dict[str, Any] = {"b1": 0.9, "b2": 0.99}
DECAY: dict[str, Any] = {"weight_decay": 0.1, "mask": adam_jax.decay_mask}
DIMENSIONS = optax.contrib.MuonDimensionNumbers()


def plain(factory: Callable[..., optax.GradientTransformation], **numbers: Any) -> Make:
    """A member with the shared hyperparameters and some of its own."""
    return functools.partial(factory, **(SHARED | numbers))


def muon(rates: optax.Schedule) -> optax.GradientTransformation:
    """Muon, with updates of the size of AdamW's."""
    return optax.contrib.muon(
        rates,
        weight_decay=DECAY["weight_decay"],
        consistent_rms=0.2,
        muon_weight_dimension_numbers=DIMENSIONS,
    )


def muon_on_sphere(rates: optax.Schedule) -> optax.GradientTransformation:
    """Muon's direction; the learning rate is the angle."""
    every = functools.partial(jax.tree.map, lambda _: DIMENSIONS)
    direction = optax.contrib.scale_by_muon(weight_dimension_numbers=every)
    return adam_jax.chain(direction, adam_jax.scale_on_sphere(rates))


adamw, cautious = plain(adam_jax.adamw, **DECAY), plain(adam_jax.cautious(adam_jax.adamw), **DECAY)
grams = plain(adam_jax.grams(adam_jax.adamw), **DECAY)
mini = plain(adam_jax.adamw, **DECAY, nu_dtype=adam_jax.AdamMini())
# For matrices of the blocks and for all other leaves, and where the search of the rates begins.
OPTIMIZERS: dict[str, tuple[Make, Make, Rates]] = {
    "adam": (plain(adam_jax.adam), plain(adam_jax.adam), (4e-3, 3.2e-2)),
    "adamw": (adamw, adamw, (4e-3, 3.2e-2)),
    "adamw, AdamMini()": (mini, mini, (4e-3, 3.2e-2)),
    "grams(adamw)": (grams, grams, (1.6e-2, 3.2e-2)),
    "cautious(adamw)": (cautious, cautious, (8e-3, 3.2e-2)),
    "adamh": (plain(adam_jax.adamh), adamw, (3.2e-2, 3.2e-2)),
    "cautious(adamh)": (plain(adam_jax.cautious(adam_jax.adamh)), cautious, (6.4e-2, 3.2e-2)),
    "Muon and adamw": (muon, adamw, (1.6e-2, 3.2e-2)),
    "Muon on the sphere and adamw": (muon_on_sphere, adamw, (3.2e-2, 3.2e-2)),
}
FAST_OPTIMIZERS = ["adamw", "Muon and adamw"]
FULL = Config(steps=600, batch_size=32, context=64, width=64, layers=2)
FAST = Config(steps=30, batch_size=8, context=16, width=16, layers=1, heads=2)


def optimizer(name: str, config: Config, rates: jax.Array) -> optax.GradientTransformation:
    """On clipped gradients, with the schedule of `examples.studies.text` up to these rates."""
    shape = schedule(dataclasses.replace(config, learning_rate=1.0))
    matrices, others, _ = OPTIMIZERS[name]

    def scheduled(make: Make, rate: jax.Array) -> optax.GradientTransformation:
        return make(lambda step: rate * shape(step))

    kernels, rest = scheduled(matrices, rates[0]), scheduled(others, rates[1])
    tx = adam_jax.groups({r"blocks/.*/kernel": kernels, ".*": rest})
    return adam_jax.chain(adam_jax.clip_by_global_norm(1.0), tx)


@functools.partial(jax.jit, static_argnames=("name", "config", "vocabulary"))
def trained(
    rates: jax.Array,
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
    tx = optimizer(name, config, rates)
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

    def run(self, name: str, rates: Rates, seeds: Sequence[int]) -> list[Result]:
        """The results for seeds."""
        pieces = [
            Piece(
                f"{name}, rates {rates[0]:.3g} and {rates[1]:.3g}, seed {seed}",
                functools.partial(self.compute, name, rates, seed),
                loss="loss",
            )
            for seed in seeds
        ]
        return list(self.work.run(pieces).values())

    def compute(self, name: str, rates: Rates, seed: int) -> Result:
        """One run."""
        losses, (chosen_by, reported) = trained(
            jnp.asarray(rates, jnp.float32),
            jnp.uint32(seed),
            self.text,
            self.held_out,
            name=name,
            config=self.config,
            vocabulary=self.vocabulary,
        )
        return {
            "rates": rates,
            "seed": seed,
            "chosen_by": float(chosen_by),
            "loss": float(reported),
            "train_losses": np.asarray(losses, np.float64).round(4),
        }

    def tuned(self, name: str, seed: int) -> Rates:
        """The best rates of an optimizer."""

        @functools.cache
        def loss(rates: Rates) -> float:
            return float(self.run(name, rates, [seed])[0]["chosen_by"])

        return search(loss, OPTIMIZERS[name][-1])

    def bytes_of_state(self, name: str) -> float:
        """Per parameter."""

        def init() -> Any:
            return nnx.split(model(self.config, self.vocabulary, 0))[1]

        tx = optimizer(name, self.config, jnp.full(2, 1e-3))
        params = jax.eval_shape(init)
        return adam_jax.inspect.bytes_per_parameter(params, tx).per_parameter.state


def search(loss: Callable[[Rates], float], start: Rates) -> Rates:
    """Rates with a lower loss than their neighbours, of both together and of each alone."""

    def along(rates: Rates, line: tuple[int, int]) -> Rates:
        steps = [FACTOR**i for i in line]
        near = [rates, (rates[0] * steps[0], rates[1] * steps[1])]
        near.append((rates[0] / steps[0], rates[1] / steps[1]))
        best = min(near, key=lambda x: value if np.isfinite(value := loss(x)) else np.inf)
        return rates if best == rates else along(best, line)

    rates, before = start, None
    while rates != before:
        before = rates
        for line in ((1, 1), (0, 1), (1, 0)):
            rates = along(rates, line)
    return rates


def main(argv: list[str] | None = None) -> None:
    """Runs the missing part of the comparison, then writes table and picture."""
    parser = study.Parser("studies.text.compare", __doc__, fast=20, full=1300)
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS)
    parser.add_argument("--publish", action="store_true", help="update the documentation")
    options = parser.options(argv)
    if options.publish and (options.fast or options.seed or options.optimizers):
        parser.error("--publish takes the whole comparison: leave the other options out")
    names = options.optimizers or (FAST_OPTIMIZERS if options.fast else list(OPTIMIZERS))
    config, text = FAST if options.fast else FULL, corpus.load()
    config = dataclasses.replace(config, seed=options.seed)
    settings = dataclasses.asdict(config) | {"text": text.digest}
    del settings["learning_rate"]  # Each run has its own two.
    comparison = Comparison(Study(options.out, settings), config, text)
    seeds, figures = range(options.seed + 1, options.seed + 1 + SEEDS), {}
    for name in names:
        rates = comparison.tuned(name, options.seed)
        own = np.array([run["loss"] for run in comparison.run(name, rates, seeds)])
        figures[name] = {
            "mean": float(own.mean()),
            "lowest": float(own.min()),
            "highest": float(own.max()),
            "matrices": rates[0],
            "rest": rates[1],
            "bytes": comparison.bytes_of_state(name),
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
