"""Searches AdamW's learning rate, b1, b2, ε, weight decay and schedule for a model of digits.

A random population is trained at once under `jax.vmap`, and the worst two thirds are dropped three
times (successive halving). The heat map is a grid of learning rates and b2 around the best.

Writes OUT/runs.csv, best.json, search.png (and table.md).
"""

import jax
import jax.numpy as jnp
import numpy as np

from examples.mnist import data
from examples.shared import study
from examples.studies import population
from examples.studies.population import Split
from examples.studies.tune import report, search
from examples.studies.tune.search import BATCH, HELD_OUT, Halving, Horizon, Rung

RATES, DECAYS = 9, 7
"""Learning rates and values of b2 in the heat map."""


def ladder(model: str, fast: bool) -> list[Rung]:
    """The number of members and their training steps, by rung."""
    if fast:
        return search.rungs(9, 10, 30)
    return search.rungs(243, 40, 1080) if model != "small-cnn" else search.rungs(27, 20, 180)


def grid(best: dict[str, float], fast: bool) -> tuple[np.ndarray, np.ndarray, dict]:
    """The axes and hyperparameters of the heat map: `best` with other learning rates and b2."""
    rates = best["learning_rate"] * np.logspace(-1, 1, 3 if fast else RATES)
    complements = np.logspace(-4, -1, 2 if fast else DECAYS)
    pairs = np.array([(rate, c) for c in complements for rate in rates])
    numbers = {name: jnp.full(len(pairs), x, jnp.float32) for name, x in best.items()}
    numbers["learning_rate"], numbers["one_minus_b2"] = jnp.asarray(pairs.T, jnp.float32)
    numbers["schedule"] = numbers["schedule"].astype(jnp.int32)
    return rates, 1 - complements, numbers


def heat_map(
    model: str, best: dict[str, float], steps: int, seed: int, fast: bool, parts: tuple[Split, ...]
) -> study.Result:
    """Held-out loss by b2 and learning rate, [b2, rates]; same initial parameters and batches."""
    train, validation, _ = parts
    rates, decays, numbers = grid(best, fast)
    members = len(rates) * len(decays)
    keys = jnp.tile(jax.random.key(seed), members)
    make = Horizon(steps)
    state = population.start(population.initial(keys, model=model), numbers, make)
    order = population.orders(keys, len(train.labels), BATCH, steps)
    state, _ = population.advance(state, numbers, order, train, keys[0], model=model, make=make)
    loss, _ = population.evaluate(state.params, validation, model=model)
    loss = np.nan_to_num(np.asarray(loss), nan=1e9).reshape(len(decays), len(rates))
    return {"rates": rates, "b2": decays, "validation_loss": loss, "steps": steps}


def main(argv: list[str] | None = None) -> None:
    """Runs the missing part of the search, then writes its results."""
    parser = study.Parser("studies.tune", __doc__, fast=18, full=38)
    parser.add_argument("--model", choices=("softmax", "mlp", "small-cnn"), default="mlp")
    options = parser.options(argv)
    parts = population.split(data.load(), HELD_OUT)
    rungs = ladder(options.model, options.fast)
    settings = {"model": options.model, "seed": options.seed}
    settings |= {"rungs": [(r.members, r.steps) for r in rungs]}
    work = study.Study(options.out, settings)
    halving = Halving(options.out, options.model, options.seed, rungs, parts[0])
    found = work.run(halving.pieces(parts[1]))
    last = found[f"rung {len(rungs) - 1}"]
    winner = last["members"][int(np.argmin(last["validation_loss"]))]
    best = {name: float(x[winner]) for name, x in halving.numbers.items()}

    def finish() -> study.Result:
        chosen, members = halving.read(len(rungs) - 1)
        own = int(np.flatnonzero(chosen == winner)[0])
        loss, accuracy = population.evaluate(members.params, parts[2], model=options.model)
        return {
            "validation_loss": float(np.min(last["validation_loss"])),
            "test_loss": float(loss[own]),
            "test_accuracy": float(accuracy[own]),
        }

    def draw() -> study.Result:
        steps = rungs[min(2, len(rungs) - 1)].steps
        return heat_map(options.model, best, steps, options.seed, options.fast, parts)

    found |= work.run([study.Piece("test", finish), study.Piece("heat map", draw)])
    report.halving(work, rungs, halving.numbers, found, winner)
    for path in options.out.glob("rung-*.npz"):
        path.unlink()


if __name__ == "__main__":
    study.command(main)
