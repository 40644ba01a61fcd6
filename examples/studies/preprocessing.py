"""Test accuracy with different preprocessing, three seeds each.

Pixels are bytes, scaled to 0 to 1, standardized to mean 0 and variance 1, or scaled to 0 to 1 with
every training batch shifted by up to 2 pixels and rotated by up to 10 degrees. An MLP and a small
CNN are trained by Adam with a cosine schedule.

Writes OUT/table.md, table.csv and digits.png, which shows preprocessed digits.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import adam_jax
from examples.mnist import data
from examples.mnist.preprocessing import augment, normalise
from examples.shared import study
from examples.studies import population
from examples.studies.population import Prepare, Split

SEEDS, BATCH, HELD_OUT, LEARNING_RATE = 3, 64, 1000, 1e-3
EPOCHS = {"mlp": 30, "small-cnn": 12}
CHUNK = 100
"""Optimizer steps of a dispatch."""


def as_bytes(key: jax.Array, images: jax.Array) -> jax.Array:
    """Pixels from 0 to 255."""
    del key
    return 255 * normalise(images)


def standardised(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mean 0 and variance 1 over the pixels of MNIST's training digits."""
    del key
    return (normalise(images) - 0.1307) / 0.3081


def shifted_and_turned(key: jax.Array, images: jax.Array) -> jax.Array:
    """Pixels from 0 to 1, each digit moved at random."""
    return augment(key, normalise(images))


# By name: the preprocessing of training digits, and of test digits.
WAYS: dict[str, tuple[Prepare, Prepare]] = {
    "bytes, 0 to 255": (as_bytes, as_bytes),
    "0 to 1": (population.as_they_are, population.as_they_are),
    "standardised": (standardised, standardised),
    "0 to 1, shifted and turned": (shifted_and_turned, population.as_they_are),
}


def make_adam(steps: int, *, learning_rate: jax.Array) -> adam_jax.Transformation:
    """Adam with a cosine schedule over `steps`."""
    decay = optax.cosine_decay_schedule(1.0, steps)
    return adam_jax.adam(lambda count: learning_rate * decay(jnp.asarray(count, jnp.float32)))


@functools.cache
def maker(steps: int) -> population.Make:
    """The same function for the same number of steps, so that it is compiled once."""
    return functools.partial(make_adam, steps)


def measure(model: str, way: str, parts: tuple[Split, ...], steps: int, seed: int) -> study.Result:
    """Test accuracy and loss of each seed, and the last training loss, [3] each."""
    train, _, test = parts
    while_training, while_testing = WAYS[way]
    keys = jax.random.split(jax.random.key(seed), SEEDS)
    numbers = {"learning_rate": jnp.full(SEEDS, LEARNING_RATE)}
    order = population.orders(keys, len(train.labels), BATCH, steps)
    make = maker(steps)
    state = population.start(population.initial(keys, model=model), numbers, make)
    loss = np.zeros((SEEDS, 1))
    for i in range(0, steps, CHUNK):
        state, loss = population.advance(
            state,
            numbers,
            order[:, i : i + CHUNK],
            train,
            jax.random.fold_in(keys[0], i),
            model=model,
            make=make,
            prepare=while_training,
        )
    test_loss, accuracy = population.evaluate(
        state.params, test, model=model, prepare=while_testing
    )
    return {
        "test_accuracy": np.asarray(accuracy),
        "test_loss": np.asarray(test_loss),
        "train_loss": np.asarray(loss).mean(axis=1),
    }


def picture(images: np.ndarray, seed: int, path: Path) -> None:
    """Twelve digits: as they are, and three times shifted and turned."""
    keys = jax.random.split(jax.random.key(seed), 3)
    rows = [normalise(images)] + [shifted_and_turned(key, jnp.asarray(images)) for key in keys]
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    axes = figure.subplots(len(rows), len(images), squeeze=False)
    for row, digits in zip(axes, rows, strict=True):
        for axis, digit in zip(row, np.asarray(digits)[..., 0], strict=True):
            axis.imshow(digit, cmap="gray_r", vmin=0, vmax=1)
            axis.axis("off")
    figure.suptitle(
        "First row: originals. Others: shifted by up to 2 pixels and rotated by up to 10°."
    )
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> None:
    """Runs the missing measurements, then writes table and picture."""
    parser = study.Parser("studies.preprocessing", __doc__, fast=15, full=166)
    parser.add_argument("--models", nargs="+", choices=EPOCHS)
    options = parser.options(argv)
    digits = data.load()
    parts = population.split(digits, HELD_OUT)
    per_epoch = len(parts[0].labels) // BATCH
    models = options.models or (["mlp"] if options.fast else list(EPOCHS))
    steps = {m: CHUNK if options.fast else EPOCHS[m] * per_epoch for m in EPOCHS}
    work = study.Study(options.out, {"seed": options.seed, "steps": steps})

    def piece(model: str, way: str) -> study.Piece:
        def compute() -> study.Result:
            return measure(model, way, parts, steps[model], options.seed)

        cost = steps[model] * (20.0 if model == "small-cnn" else 1.0)
        return study.Piece(f"{model}, {way}", compute, cost, loss="train_loss")

    found = work.run([piece(model, way) for model in models for way in WAYS])
    rows = []
    for name, result in found.items():
        accuracy = np.asarray(result["test_accuracy"])
        shown = (accuracy.mean(), accuracy.min(), accuracy.max())
        losses = (np.mean(result["test_loss"]), np.mean(result["train_loss"]))
        rows.append([*name.split(", ", 1), *(f"{x:.4f}" for x in (*shown, *losses))])
    columns = ["model", "pixels", "test accuracy", "lowest", "highest", "test loss", "train loss"]
    print(work.table(columns, rows, "table"))
    picture(digits.train_images[:12], options.seed, options.out / "digits.png")
    print(f"{options.out}/table.md, digits.png")


if __name__ == "__main__":
    study.command(main)
