"""A model as one file, as `jax.export` writes it: StableHLO with its weights, for cpu and cuda.

The program maps digits uint8 [batch, 28, 28], 0 (paper) to 255 (ink), to the logarithms of the
probabilities of 0 to 9, float32 [batch, 10]. Whoever reads the file needs neither Flax nor the
model's code. It is a program, without a limit on its time and memory: load only files that you
trust.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from examples.shared.command_line import UserError
from examples.shared.files import write_whole

PLATFORMS = ("cpu", "cuda")
Predict = Callable[[np.ndarray], np.ndarray]
"""Probabilities float32 [count, 10] of digits uint8 [count, 28, 28]."""


def of_run(folder: Path) -> jax.export.Exported:
    """The model of a run's last checkpoint.

    Convolutions are the backend's own, on the CPU too. Without training they take two thirds of the
    time of matrix products for one digit and a third for 32. Products have float32 precision on
    every platform; CUDA's default would round their factors to TF32.
    """
    from flax import nnx  # Whoever reads a file needs none of these.

    from examples.mnist import preprocessing
    from examples.mnist.models import Conv3x3, convolve_by_library
    from examples.mnist.runs import Run
    from examples.mnist.train import trained

    model = nnx.merge(*trained(Run(folder)))
    model.set_attributes(Conv3x3, convolve=convolve_by_library, raise_if_not_found=False)

    @jax.jit
    def log_probabilities(images: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(model(preprocessing.normalise(images)))

    shape = jax.export.symbolic_shape("batch, 28, 28")
    with jax.default_matmul_precision("highest"):
        return jax.export.export(log_probabilities, platforms=PLATFORMS)(
            jax.ShapeDtypeStruct(shape, jnp.uint8)
        )


def write(program: jax.export.Exported, path: Path) -> int:
    """Writes the file; returns its size in bytes."""
    content = bytes(program.serialize())
    write_whole(path, content)
    return len(content)


def load(path: Path) -> jax.export.Exported:
    """Reads a file that `python -m examples.mnist export` wrote.

    Raises:
      UserError: it is another file, or damaged.
    """
    content = bytearray(path.read_bytes())
    try:
        program = jax.export.deserialize(content)
        (images,), (log_p,) = program.in_avals, program.out_avals
        found = [(x.dtype.name, x.shape[1:]) for x in (images, log_p)]
        if found != [("uint8", (28, 28)), ("float32", (10,))]:
            raise ValueError(f"the program maps {found[0]} to {found[1]}")
    except (ImportError, MemoryError):
        raise  # The file is not the cause.
    except Exception as error:  # Damaged bytes can raise anything from KeyError upwards.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{path} is not an exported model ({reason});"
            f" write one with: python -m examples.mnist export RUN {path}"
        ) from error
    return program


def predictor(program: jax.export.Exported) -> Predict:
    """The probabilities; raises UserError if the program returns NaN."""
    call = jax.jit(program.call)

    def predict(images: np.ndarray) -> np.ndarray:
        probabilities = np.exp(np.asarray(call(images)))
        if np.isnan(probabilities).any():
            raise UserError("the model predicts NaN; train it again with a lower --learning-rate")
        return probabilities

    return predict
