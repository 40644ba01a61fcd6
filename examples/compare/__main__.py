"""Optimizers on three models of handwritten digits, each at its best learning rate.

Optax's SGD, momentum, Nesterov, Adagrad, Adadelta and RMSprop, and members of Adam's family, as
listed in `optimizers.py`, on softmax regression, an MLP and a small CNN. Each optimizer gets five
learning rates, half a decade apart, and three seeds: fifteen runs, trained as one program
(`jax.vmap`, compiled once). The rate is chosen on digits held out from training; everything else is
measured on the test digits.

Writes OUT/table.md, table.csv, figures.json and curves.png. --publish requires the whole study and
also updates the documentation: figures, picture, and the pages that cite them.
"""

import functools
import shutil
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples import study
from examples.compare import figures, pages, report
from examples.compare.optimizers import OPTIMIZERS
from examples.mnist import data, population
from examples.mnist.population import Split

FACTORS = 10.0 ** np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
SEEDS, BATCH, HELD_OUT = 3, 64, 1000
STEPS = {"softmax": 500, "mlp": 500, "small-cnn": 150}
CHUNK = 25
"""Optimizer steps of a dispatch; the held-out accuracy is measured after each dispatch."""


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
      For each run, rates by seeds: `rates` [5], `accuracy` (held-out) [5, 3, chunks], `step_loss`
      [5, 3, steps], `validation_loss`, `test_loss`, `test_accuracy` [5, 3]; and `step_seconds`, the
      share of one run in the time of a joint step.
    """
    make, middle = OPTIMIZERS[optimizer]
    train, validation, test = splits
    rates = middle * FACTORS
    shape = (len(rates), SEEDS)
    members = shape[0] * shape[1]
    keys = jnp.tile(seeds(seed), len(rates))
    numbers = {"learning_rate": jnp.asarray(np.repeat(rates, SEEDS), jnp.float32)}
    order = population.orders(keys, len(train.labels), BATCH, steps)
    state = population.start(params, numbers, make)
    losses, accuracies, seconds = [], [], []
    for i in range(0, steps, CHUNK):
        began = time.perf_counter()
        state, loss = population.advance(
            state, numbers, order[:, i : i + CHUNK], train, keys[0], model=model, make=make
        )
        losses.append(np.asarray(loss))
        seconds.append(time.perf_counter() - began)
        _, accuracy = population.evaluate(state.params, validation, model=model)
        accuracies.append(np.asarray(accuracy))
    by_step = np.concatenate(losses, axis=1)
    validation_loss, _ = population.evaluate(state.params, validation, model=model)
    test_loss, test_accuracy = population.evaluate(state.params, test, model=model)
    result = {
        "step_loss": by_step,
        "accuracy": np.stack(accuracies, axis=1),
        "validation_loss": np.asarray(validation_loss),
        "test_loss": np.asarray(test_loss),
        "test_accuracy": np.asarray(test_accuracy),
    }
    grids = {name: x.reshape(*shape, *x.shape[1:]).round(5) for name, x in result.items()}
    # The first chunk includes compilation.
    step_seconds = float(np.median(seconds[1:] or seconds)) / CHUNK / members
    return {"rates": rates, "step_seconds": step_seconds, **grids}


def seeds(seed: int) -> jax.Array:
    """One key per seed: all rates share initial parameters and batches."""
    return jax.random.split(jax.random.key(seed), SEEDS)


def piece_name(model: str, optimizer: str) -> str:
    """The name of a piece; another grid gives another name."""
    return f"{model} {optimizer} around {OPTIMIZERS[optimizer][1]:g}"


def main(argv: list[str] | None = None) -> None:
    """Runs the missing part of the comparison, then writes table and picture."""
    parser = study.arguments("examples.compare", __doc__)
    parser.add_argument("--models", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--publish", action="store_true", help="update the documentation")
    options = parser.parse_args(argv)
    whole = ("fast", "seed", "data_dir", "models", "optimizers")
    partly = [name for name in whole if getattr(options, name) != parser.get_default(name)]
    if options.publish and partly:
        parser.error(f"--publish takes the whole study: leave --{partly[0].replace('_', '-')} out")
    steps = {model: 2 * CHUNK if options.fast else STEPS[model] for model in options.models}
    digits = data.load(options.data_dir)
    splits = population.split(digits, HELD_OUT)
    settings = {"seed": options.seed, "steps": steps, "data_dir": str(options.data_dir)}
    work = study.Study(options.out, settings)

    @functools.cache
    def params(model: str) -> Any:
        keys = jnp.tile(seeds(options.seed), len(FACTORS))
        return population.initial(keys, model=model)

    def piece(model: str, optimizer: str) -> study.Piece:
        def compute() -> study.Result:
            return measure(model, optimizer, params(model), splits, steps[model], options.seed)

        cost = {"softmax": 3.0, "mlp": 7.0, "small-cnn": 25.0}[model]  # Seconds, about.
        return study.Piece(piece_name(model, optimizer), compute, cost)

    found = work.run([piece(m, o) for m in options.models for o in options.optimizers])
    results = {
        model: {name: found[piece_name(model, name)] for name in options.optimizers}
        for model in options.models
    }
    seconds = sum(work.seconds[name] for name in found)
    written = figures.figures(results, seconds)
    figures.write(options.out / "figures.json", written)
    report.picture(results, written["models"], CHUNK, options.out / "curves.png")
    print(report.table(work, results, written["models"]))
    print(pages.verdict(written))
    print(f"{options.out}/table.md, table.csv, figures.json, curves.png; {seconds:.0f} s of work")
    if options.publish:
        figures.write(pages.FIGURES, written)
        shutil.copyfile(options.out / "curves.png", pages.PICTURE)
        pages.write(written)


if __name__ == "__main__":
    study.command(main)
