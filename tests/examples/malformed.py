"""What the tests of malformed files share: readers of digits, and a run with two checkpoints."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.reliability.faults import leaves
from examples.mnist import data
from examples.mnist.runs import QUANTITIES, Config, Run
from examples.mnist.train import build

HEADERS = (0, 1, 2, 10, 27, 28, 29, 2049, 2051, 10**6, 10**6 + 1, 2**31 - 1, 2**31, 2**32 - 1)


def read_idx(path: Path) -> None:
    """Both readers return digits or raise a DataError; other exceptions propagate."""
    for reader, sides in ((data.read_images, (28, 28)), (data.read_labels, ())):
        try:
            array = reader(path)
        except data.DataError:
            continue
        if array.dtype != np.uint8 or len(array) < 1 or array.shape[1:] != sides:
            raise AssertionError(f"{path} was read as {array.dtype} {array.shape}")


def two_checkpoints(folder: Path, **settings: Any) -> tuple[Any, list[list[bytes]]]:
    """A fake run of two epochs: a state like those it saved, and their bits."""
    Run.prepare(folder, Config(model="softmax", **settings))
    run = Run.open(folder)
    _, like, _, _ = build(run.config, steps=1)
    bits = []
    for epoch in (1, 2):
        key = jax.random.key(epoch)

        def draw(x: jax.Array, key: jax.Array = key) -> jax.Array:
            return (100 * jax.random.uniform(key, x.shape)).astype(x.dtype)

        state = jax.tree.map(draw, like)
        run.write_metrics([dict.fromkeys(QUANTITIES, 1.0) | {"epoch": e + 1} for e in range(epoch)])
        run.save(epoch, state)
        bits.append(leaves(state))
    run.close()
    return like, bits


def reopened(folder: Path, like: Any) -> tuple[int, list[bytes]]:
    """The epochs and the bits that a run resumes from."""
    run = Run.open(folder)
    try:
        epochs = run.epochs_saved
        run.metrics()
        return epochs, leaves(run.restore(like))
    finally:
        run.close()
