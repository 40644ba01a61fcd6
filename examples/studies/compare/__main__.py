"""Optimizers on three models of handwritten digits, each at its best learning rate.

Optax's SGD, momentum, Nesterov, Adagrad, Adadelta and RMSprop, and members of Adam's family, as
listed in `optimizers.py`, on softmax regression, an MLP and a small CNN. Each optimizer gets five
learning rates, half a decade apart, and three seeds: fifteen runs, trained as one program
(`jax.vmap`, compiled once). The rate is chosen on digits held out from training; everything else is
measured on the test digits.

Writes OUT/table.md, table.csv, figures.json and accuracies.png. --publish requires the whole study
and also updates the documentation: figures, picture and table.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples.mnist import data
from examples.shared import study
from examples.studies import population
from examples.studies.compare import report
from examples.studies.compare.optimizers import OPTIMIZERS
from examples.studies.population import Split

FACTORS = 10.0 ** np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
SEEDS, BATCH, HELD_OUT = 3, 64, 1000
STEPS = {"softmax": 500, "mlp": 500, "small-cnn": 150}
FAST_MODELS, FAST_OPTIMIZERS = ["softmax", "mlp"], ["sgd", "adam", "adamw", "lion"]
CHUNK = 25
"""Optimizer steps of a dispatch."""


def measure(
    model: str,
    optimizer: str,
    params: Any,
    splits: tuple[Split, Split, Split],
    steps: int,
    seed: int,
) -> study.Result:
    """Trains the grid of one optimizer on one model.

    Args:
      model: of `MODELS`.
      optimizer: of `OPTIMIZERS`.
      params: of all runs before the first step; rates by seeds are one axis.
      splits: training, held-out and test digits.
      steps: optimizer steps.
      seed: of initial parameters and batches.

    Returns:
      For each run, rates by seeds: `rates` [5], `step_loss` [5, 3, steps], `validation_loss` and
      `test_accuracy` [5, 3]; and `least_loss`, the lowest held-out loss.
    """
    make, middle = OPTIMIZERS[optimizer]
    train, validation, test = splits
    rates = middle * FACTORS
    keys = jnp.tile(seeds(seed), len(rates))
    numbers = {"learning_rate": jnp.asarray(np.repeat(rates, SEEDS), jnp.float32)}
    order = population.orders(keys, len(train.labels), BATCH, steps)
    state = population.start(params, numbers, make)
    losses = []
    for i in range(0, steps, CHUNK):
        state, loss = population.advance(
            state, numbers, order[:, i : i + CHUNK], train, keys[0], model=model, make=make
        )
        losses.append(np.asarray(loss))
    validation_loss, _ = population.evaluate(state.params, validation, model=model)
    _, test_accuracy = population.evaluate(state.params, test, model=model)
    result = {
        "step_loss": np.concatenate(losses, axis=1),
        "validation_loss": np.asarray(validation_loss),
        "test_accuracy": np.asarray(test_accuracy),
    }
    grids = {n: x.reshape(len(rates), SEEDS, *x.shape[1:]).round(5) for n, x in result.items()}
    return {"rates": rates, "least_loss": np.nanmin(result["validation_loss"]), **grids}


def seeds(seed: int) -> jax.Array:
    """One key per seed: all rates share initial parameters and batches."""
    return jax.random.split(jax.random.key(seed), SEEDS)


def piece_name(model: str, optimizer: str) -> str:
    """The name of a piece; another grid gives another name."""
    return f"{model} {optimizer} around {OPTIMIZERS[optimizer][1]:g}"


def main(argv: list[str] | None = None) -> None:
    """Runs the missing part of the comparison, then writes table and picture."""
    parser = study.Parser("studies.compare", __doc__, fast=18, full=624)
    parser.add_argument("--models", nargs="+", choices=STEPS)
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS)
    parser.add_argument("--publish", action="store_true", help="update the documentation")
    options = parser.options(argv)
    if options.publish and (options.fast or options.seed or options.models or options.optimizers):
        parser.error("--publish takes the whole study: leave the other options out")
    models = options.models or (FAST_MODELS if options.fast else list(STEPS))
    names = options.optimizers or (FAST_OPTIMIZERS if options.fast else list(OPTIMIZERS))
    steps = {model: 2 * CHUNK if options.fast else STEPS[model] for model in STEPS}
    splits = population.split(data.load(), HELD_OUT)
    work = study.Study(options.out, {"seed": options.seed, "steps": steps})

    @functools.cache
    def params(model: str) -> Any:
        keys = jnp.tile(seeds(options.seed), len(FACTORS))
        return population.initial(keys, model=model)

    def piece(model: str, optimizer: str) -> study.Piece:
        def compute() -> study.Result:
            return measure(model, optimizer, params(model), splits, steps[model], options.seed)

        cost = {"softmax": 3.0, "mlp": 7.0, "small-cnn": 25.0}[model]  # Seconds, about.
        return study.Piece(piece_name(model, optimizer), compute, cost, loss="least_loss")

    found = work.run([piece(m, o) for m in models for o in names])
    results = {model: {name: found[piece_name(model, name)] for name in names} for model in models}
    figures = report.figures(results)
    report.write(options.out / "figures.json", figures)
    report.picture(figures, options.out / "accuracies.png")
    print(work.table(*report.table(figures), "table"))
    print(f"{options.out}/table.md, table.csv, figures.json, accuracies.png")
    if options.publish:
        report.write(report.FIGURES, figures)
        report.publish(figures)


if __name__ == "__main__":
    study.command(main)
