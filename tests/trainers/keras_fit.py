"""Keras' `fit`: python -m tests.trainers.keras_fit (in an environment with it)."""
# pyright: reportMissingImports=false

import os
import tempfile
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"  # Before the import.

import jax
import keras
import numpy as np

from adam_jax.trainers.keras import Optimizer
from tests.trainers.cells import RATE, STEPS, Run, arrays, measure

BAD = 6  # The batch that is NaN.
ROWS, WIDTH = 8, 64


def model(tx) -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(128, "gelu", name="up"), keras.layers.Dense(WIDTH, name="down")]
    made = keras.Sequential([keras.Input((WIDTH,)), *layers])
    made.compile(Optimizer(tx), "mse")
    return made


def runner(distribution, folder: Path):
    def run(make, steps: int, name: str) -> Run:
        keras.distribution.set_distribution(distribution)
        path, tx = folder / f"{name}.keras", make(RATE)
        trained: Any
        if path.exists():
            trained = keras.models.load_model(path, custom_objects={"tx": tx})
        else:
            trained = model(tx)
        data = np.float32(np.random.default_rng(1).normal(size=(STEPS, ROWS, WIDTH)))
        if "skip" in name:
            data[BAD] = np.nan
        losses = []
        for x in data[int(trained.optimizer.iterations) : steps]:
            logged = trained.fit(x, np.roll(x, 1, 1), ROWS, shuffle=False, verbose=0)
            losses += logged.history["loss"]
        trained.jax_state_sync()
        trained.save(path)
        values = [v.value for v in [*trained.trainable_variables, *trained.optimizer.variables]]
        return Run(losses, [], arrays(values))

    return run


def main() -> None:
    ways = {"1 device": None}
    if jax.device_count() > 1:
        devices = keras.distribution.list_devices()
        mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"), devices)
        layout = keras.distribution.LayoutMap(mesh)
        layout[".*up/kernel"], layout[".*down/kernel"] = (None, "model"), ("model", None)
        shared = keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
        ways = {
            "DataParallel, 4": keras.distribution.DataParallel(devices=devices),
            "ModelParallel, batch 2, model 2": shared,
        }
    with tempfile.TemporaryDirectory() as folder:
        for name, distribution in ways.items():
            measure("Keras", name, runner(distribution, Path(folder)))


if __name__ == "__main__":
    main()
