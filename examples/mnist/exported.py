"""A trained model as one file that runs without Flax and without the model's code.

The file is a zip archive of two uncompressed members: `metadata.json`, the inputs and outputs, and
`program.jax_export`, the program with its weights, StableHLO as `jax.export` writes it. It is a zip
because any tool opens it and each member has a CRC-32. It is one file because a program without its
preprocessing and labels is useless.

Reading one unpickles nothing and runs no Python code. Sizes are checked before anything is read.
A program with calls outside StableHLO is refused. The file is still a program, without a limit on
its time and memory: load only files that you trust.
"""

import dataclasses
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from examples.mnist.errors import UserError
from examples.mnist.pictures import PREPROCESSING

FORMAT = "mnist-classifier 1"
METADATA, PROGRAM = "metadata.json", "program.jax_export"
MAX_BYTES = {METADATA: 1 << 16, PROGRAM: 1 << 28}
# Those that `jax.export` itself writes: the check that the batch is not empty.
CUSTOM_CALLS = {"shape_assertion"}
CHUNK = 500  # digits at once


class ExportError(UserError):
    """One line for the user about a file with a model."""


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A program and its description.

    Attributes:
      program: uint8 [batch, 28, 28] to log-probabilities float32 [batch, classes].
      metadata: the content of metadata.json.
    """

    program: jax.export.Exported
    metadata: dict[str, Any]

    @property
    def labels(self) -> list[str]:
        """The name of each class."""
        return self.metadata["labels"]

    def log_probabilities(self, images: np.ndarray) -> np.ndarray:
        """Logarithms of the probabilities, float32 [count, 10], of images uint8 [count, 28, 28]."""
        call = jax.jit(self.program.call)
        chunks = [images[i : i + CHUNK] for i in range(0, len(images), CHUNK)]
        return np.concatenate([call(chunk) for chunk in chunks])

    def to_bytes(self) -> bytes:
        """The content of a file."""
        members = {
            METADATA: json.dumps(self.metadata, indent=1).encode(),
            PROGRAM: bytes(self.program.serialize()),
        }
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
            for name, content in members.items():
                archive.writestr(zipfile.ZipInfo(name), content)
        return packed.getvalue()


def describe(model: str, program: jax.export.Exported, labels: list[str]) -> dict[str, Any]:
    """The metadata of a program.

    Args:
      model: the kind of model, for people to read.
      program: see `Classifier`.
      labels: the name of each class.
    """
    return {
        "format": FORMAT,
        "model": model,
        "input_shape": ["batch", PREPROCESSING["side"], PREPROCESSING["side"]],
        "input_dtype": "uint8",
        "preprocessing": PREPROCESSING,
        "output": "natural logarithms of the labels' probabilities, float32",
        "labels": labels,
        "platforms": list(program.platforms),
        "jax": jax.__version__,
    }


def load(path: Path) -> Classifier:
    """Reads a file that `python -m examples.mnist export` wrote.

    Raises:
      ExportError: if it is another file, damaged, or requires features that this version lacks.
    """
    try:
        members = _members(path)
        metadata = json.loads(members[METADATA])
        _check_metadata(metadata)
        program = jax.export.deserialize(bytearray(members[PROGRAM]))
        _check_program(program, metadata)
    except OSError as error:
        raise ExportError(f"{path} cannot be read ({error.strerror})") from error
    except (ModuleNotFoundError, MemoryError):
        raise  # The file is not the cause.
    except Exception as error:  # Damaged bytes can raise anything from KeyError upwards.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ExportError(
            f"{path} is not an exported model ({reason});"
            f" write one with: python -m examples.mnist export RUN {path}"
        ) from error
    return Classifier(program, metadata)


def _members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        found = {info.filename: info for info in archive.infolist()}
        if found.keys() != MAX_BYTES.keys() or len(archive.infolist()) != len(MAX_BYTES):
            raise ValueError(f"expected the members {', '.join(MAX_BYTES)}")
        for name, info in found.items():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > MAX_BYTES[name]:
                raise ValueError(
                    f"{name} is compressed or has {info.file_size:,} bytes;"
                    f" expected up to {MAX_BYTES[name]:,}, stored"
                )
        return {name: archive.read(name) for name in found}


def _check_metadata(metadata: Any) -> None:
    wanted = {"format": FORMAT, "preprocessing": PREPROCESSING, "input_dtype": "uint8"}
    for name, value in wanted.items():
        if (found := metadata[name]) != value:
            raise ValueError(f"{name} is {str(found)[:80]}; this version has {value}")
    labels = metadata["labels"]
    if not (isinstance(labels, list) and labels and all(isinstance(x, str) for x in labels)):
        raise ValueError("labels are not a list of texts")


def _check_program(program: jax.export.Exported, metadata: dict[str, Any]) -> None:
    side = PREPROCESSING["side"]
    inputs = [(a.dtype.name, a.shape[1:]) for a in program.in_avals]
    outputs = [(a.dtype.name, a.shape[1:]) for a in program.out_avals]
    classes = len(metadata["labels"])
    if inputs != [("uint8", (side, side))] or outputs != [("float32", (classes,))]:
        raise ValueError(f"the program takes {inputs} and returns {outputs}")
    if metadata["input_shape"][1:] != [side, side]:
        raise ValueError(f"input_shape is {metadata['input_shape']}")
    if isinstance(program.in_avals[0].shape[0], int):
        raise ValueError("the program has a fixed batch size")
    if jax.default_backend() not in ("gpu", *program.platforms):
        raise ValueError(f"it is for {', '.join(program.platforms)}, not {jax.default_backend()}")
    called = set(re.findall(r"custom_call\s+@\"?([^\"(\s]+)", program.mlir_module()))
    if not called <= CUSTOM_CALLS:
        raise ValueError(f"the program calls {', '.join(sorted(called - CUSTOM_CALLS))}")
