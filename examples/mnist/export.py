"""From a run's last checkpoint to one file: batch-polymorphic, weights inside, for cpu and cuda."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from examples.mnist import exported, preprocessing
from examples.mnist.models import CLASSES, Conv3x3, convolve_by_library
from examples.mnist.runs import Run
from examples.mnist.train import trained

PLATFORMS = ("cpu", "cuda")


def classifier(run: Run) -> exported.Classifier:
    """The model of a run's last checkpoint, from bytes to log-probabilities.

    Convolutions are the backend's own, on the CPU too: where nothing is trained they take two
    thirds of the time of matrix products for one digit and a third for 32. Products have float32's
    precision on every platform; CUDA's default would round their factors to TF32.

    Raises:
      RunError: if the run has no checkpoint that can be read.
    """
    model = nnx.merge(*trained(run))
    model.set_attributes(Conv3x3, convolve=convolve_by_library, raise_if_not_found=False)

    @jax.jit
    def log_probabilities(images: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(model(preprocessing.normalise(images)))

    shape = jax.export.symbolic_shape("batch, 28, 28")
    with jax.default_matmul_precision("highest"):
        program = jax.export.export(log_probabilities, platforms=PLATFORMS)(
            jax.ShapeDtypeStruct(shape, jnp.uint8)
        )
    labels = [str(digit) for digit in range(CLASSES)]
    return exported.Classifier(program, exported.describe(run.config.model, program, labels))


def write(run: Run, path: Path) -> int:
    """Writes the file, all of it or nothing; returns its size in bytes."""
    content = classifier(run).to_bytes()
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
    return len(content)
