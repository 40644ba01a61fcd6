"""Writes a run's last checkpoint to one file: any batch size, weights inside, for cpu and cuda."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from examples.mnist import exported, preprocessing
from examples.mnist.errors import UserError
from examples.mnist.models import LABELS, Conv3x3, convolve_by_library
from examples.mnist.runs import Run
from examples.mnist.train import trained

PLATFORMS = ("cpu", "cuda")


def classifier(name: str, graph: Any, params: Any) -> exported.Classifier:
    """The function of a model from bytes to log-probabilities.

    Convolutions are the backend's own, on the CPU too. Without training they take two thirds of the
    time of matrix products for one digit and a third for 32. Products have float32 precision on
    every platform; CUDA's default would round their factors to TF32.

    Args:
      name: the kind of model, for people to read.
      graph: the model without its parameters.
      params: its parameters.
    """
    model = nnx.merge(graph, params)
    model.set_attributes(Conv3x3, convolve=convolve_by_library, raise_if_not_found=False)

    @jax.jit
    def log_probabilities(images: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(model(preprocessing.normalise(images)))

    shape = jax.export.symbolic_shape("batch, 28, 28")
    with jax.default_matmul_precision("highest"):
        program = jax.export.export(log_probabilities, platforms=PLATFORMS)(
            jax.ShapeDtypeStruct(shape, jnp.uint8)
        )
    return exported.Classifier(program, exported.describe(name, program, LABELS))


def of_run(run: Run) -> exported.Classifier:
    """The model of a run's last checkpoint. Raises RunError if there is none that can be read."""
    return classifier(run.config.model, *trained(run))


def write(model: exported.Classifier, path: Path) -> int:
    """Writes the file atomically; returns its size in bytes."""
    content = model.to_bytes()
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error.strerror})") from error
    return len(content)
