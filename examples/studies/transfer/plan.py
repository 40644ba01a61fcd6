"""The models to train, their sizes and learning rates, and the expected time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import adam_jax
from adam_jax import transfer
from examples.mnist import data
from examples.mnist.preprocessing import augment, normalise
from examples.studies.text import corpus
from examples.studies.transfer.models import CONTEXT
from examples.studies.transfer.train import Data, Run

SCALES = ("standard", "scaled")


def rates(first: float, count: int) -> tuple[float, ...]:
    """Learning rates, each √2 times the one before."""
    return tuple(float(first * 2 ** (i / 2)) for i in range(count))


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A model in several sizes, each with a grid of learning rates in both parametrizations.

    Attributes:
      model: as in `Run`.
      sizes: the first is the base size.
      standard: learning rates of the standard parametrization; the best rate falls with size.
      scaled: those of muP or CompleteP.
      seeds: the number of seeds.
      steps: of the optimizer.
      batch_size: as in `Run`.
      seconds: of one run of each size, on two cores.
    """

    model: str
    sizes: tuple[int, ...]
    standard: tuple[float, ...]
    scaled: tuple[float, ...]
    seeds: int
    steps: int
    batch_size: int
    seconds: tuple[float, ...]

    scales = SCALES

    def cost(self, size: int, scale: str) -> float:
        """The estimated seconds of a piece."""
        return len(getattr(self, scale)) * self.seeds * self.seconds[self.sizes.index(size)]

    def run(self, size: int, scale: str, vocabulary: int) -> tuple[Run, tuple[float, ...]]:
        """The run of one piece, and its learning rates.

        Small models are trained in parallel, which keeps both cores busy.
        """
        run = Run(
            self.model,
            size,
            self.sizes[0],
            scale == "scaled",
            self.steps,
            self.batch_size,
            together=6 if self.seconds[self.sizes.index(size)] < 2.5 else 1,
            vocabulary=vocabulary,
        )
        return run, getattr(self, scale)


@dataclasses.dataclass(frozen=True)
class Batches:
    """The transformer of one width, trained on the same number of windows at any batch size.

    Attributes:
      sizes: windows of text in a batch; the hyperparameters of the first size are known.
      windows: of text per run.
      width: of the model.
      numbers: the hyperparameters for the first batch size.
      seeds: the number of seeds.
      seconds: of one run of each size, on two cores.
    """

    sizes: tuple[int, ...]
    windows: int
    width: int
    numbers: tuple[tuple[str, float], ...]
    seeds: int
    seconds: float

    model = "text"
    scales = (True, False)

    def cost(self, size: int, rule: bool) -> float:
        """The estimated seconds of a piece."""
        return self.seconds * self.seeds

    def run(self, size: int, rule: bool, vocabulary: int) -> tuple[Run, tuple[float, ...]]:
        """The run of one piece, and its learning rate."""
        numbers = dict(self.numbers)
        if rule:
            factor = size / self.sizes[0]
            numbers = dict(transfer.scale_batch(adam_jax.adam, factor).hyperparameters(**numbers))
        rate = float(numbers.pop("learning_rate"))
        given = {name: float(numbers[name]) for name in ("b1", "b2", "eps")}
        return Run(
            "text",
            self.width,
            self.width,
            scaled=False,
            steps=self.windows // size,
            batch_size=size,
            factory=functools.partial(adam_jax.adam, **given),
            together=3,
            vocabulary=vocabulary,
        ), (rate,)


WIDTHS = Sweep(
    "mlp",
    (64, 128, 256, 512, 1024),
    standard=rates(5e-4, 14),
    scaled=rates(4e-3, 9),
    seeds=3,
    steps=200,
    batch_size=128,
    seconds=(0.5, 0.8, 1.5, 4.0, 12.0),
)
TEXT = Sweep(
    "text",
    (32, 64, 128, 256),
    standard=rates(2e-3, 11),
    scaled=rates(8e-3, 8),
    seeds=3,
    steps=200,
    batch_size=32,
    seconds=(1.0, 2.0, 4.0, 11.0),
)
SPHERE = Sweep(
    "sphere",
    (32, 64, 128, 256),
    standard=rates(0.0078, 7),
    scaled=rates(0.0156, 6),
    seeds=2,
    steps=200,
    batch_size=32,
    seconds=(1.0, 2.0, 4.0, 11.0),
)
DEPTHS = Sweep(
    "residual",
    (2, 4, 8, 16, 32),
    standard=rates(1e-3, 12),
    scaled=rates(4e-3, 9),
    seeds=12,
    steps=250,
    batch_size=128,
    seconds=(0.15, 0.2, 0.3, 0.5, 0.9),
)
BATCHES = Batches(
    (16, 32, 64, 128, 256, 512),
    windows=25600,
    width=64,
    numbers=(("learning_rate", 0.01), ("b1", 0.97), ("b2", 0.9985), ("eps", 1e-8)),
    seeds=3,
    seconds=14.0,
)
FULL = (WIDTHS, TEXT, SPHERE, DEPTHS, BATCHES)
FAST = (Sweep("mlp", (16, 32), rates(4e-3, 2), rates(4e-3, 2), 1, 10, 32, (0.1, 0.1)),)


def digits(fast: bool) -> Data:
    """Digits randomly shifted and rotated, four times each: none repeats in a run."""
    found = data.load()
    train = _distorted(found.train_images, found.train_labels, 1 if fast else 4, seed=1)
    return Data(*train, _distorted(found.test_images, found.test_labels, 1 if fast else 5, seed=2))


def _distorted(
    images: np.ndarray, labels: np.ndarray, times: int, seed: int
) -> tuple[jax.Array, jax.Array]:
    @jax.jit
    def once(key: jax.Array) -> jax.Array:
        return augment(key, normalise(images)).reshape(len(images), -1)

    keys = jax.random.split(jax.random.key(seed), times)
    return jnp.concatenate(list(map(once, keys))), jnp.tile(jnp.asarray(labels, jnp.int32), times)


def text() -> tuple[Data, int]:
    """The Python language reference, and the number of its distinct characters."""
    found = corpus.load()
    held_out = found.validation[: len(found.validation) // (CONTEXT + 1) * (CONTEXT + 1)]
    windows = jnp.asarray(held_out).reshape(-1, CONTEXT + 1)[:1024]
    train = jnp.asarray(found.train)
    return Data(train, train, (windows[:, :-1], windows[:, 1:])), len(found.vocabulary)
