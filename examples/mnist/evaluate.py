"""How good a model is, and what it sees: loss, accuracy, probabilities; from images of any kind."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from PIL import Image, UnidentifiedImageError

from examples.mnist import data, preprocessing

CHUNK = 500  # digits at once


@jax.jit(static_argnums=0)
def _log_probabilities(graph: Any, params: Any, images: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(nnx.merge(graph, params)(preprocessing.normalise(images)))


def log_probabilities(graph: Any, params: Any, images: np.ndarray) -> np.ndarray:
    """Logarithms of the probabilities, float32 [count, 10], of images uint8 [count, 28, 28]."""
    chunks = [images[i : i + CHUNK] for i in range(0, len(images), CHUNK)]
    return np.concatenate([_log_probabilities(graph, params, chunk) for chunk in chunks])


def evaluate(graph: Any, params: Any, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mean cross-entropy in nats, and the share of digits whose most probable class is right."""
    log_p = log_probabilities(graph, params, images)
    loss = -log_p[np.arange(len(labels)), labels].mean()
    right = log_p.argmax(axis=1) == labels
    return {"test_loss": float(loss), "test_accuracy": float(right.mean())}


def read_digits(path: Path) -> np.ndarray:
    """Digits of a picture (PNG, JPEG, ...) or an IDX file, uint8 [count, 28, 28], light on dark.

    An IDX file is known by its name, as MNIST's are: ...-ubyte or ....idx, plain or .gz.

    A picture is one digit. It is made grey, turned to light on dark if its border is light, cut to
    the ink, scaled so that its longer side is 20 pixels, and placed with its centre of mass in the
    middle of 28x28: what was done to MNIST's own digits (LeCun et al. 1998, section III.A).

    Raises:
      DataError: if the file is no picture and no IDX file, or has no ink.
    """
    if path.name.removesuffix(".gz").endswith(("-ubyte", ".idx")):
        return data.read_images(path)
    try:
        with Image.open(path) as picture:
            # Transparent paper is white paper, not black.
            rgba = picture.convert("RGBA")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise data.DataError(f"{path} is not a picture ({reason}); expected PNG or IDX") from error
    paper = Image.new("RGBA", rgba.size, "white")
    grey = np.asarray(Image.alpha_composite(paper, rgba).convert("L"))
    if grey.shape == (data.SIDE, data.SIDE) and grey[[0, -1]].mean() < 64:
        return grey[None]  # One of MNIST's own: as it is.
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ink = 255 - grey if border.mean() > 127 else grey
    return _centred(ink, path)[None]


def _centred(ink: np.ndarray, path: Path) -> np.ndarray:
    rows, columns = (np.flatnonzero(ink.max(axis=axis) > 64) for axis in (1, 0))
    if not rows.size:
        raise data.DataError(
            f"{path} shows no digit; expected dark ink on light paper or the reverse"
        )
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = 20 / max(box.shape)
    height, width = (max(1, round(side * scale)) for side in box.shape)
    small = np.asarray(
        Image.fromarray(box).resize((width, height), Image.Resampling.LANCZOS), np.float64
    )
    weight = small.sum()
    top, left = (
        int(np.clip(round(13.5 - (small.sum(1 - axis) * np.arange(n)).sum() / weight), 0, 28 - n))
        for axis, n in enumerate(small.shape)
    )
    digit = np.zeros((data.SIDE, data.SIDE), np.uint8)
    digit[top : top + small.shape[0], left : left + small.shape[1]] = small.round()
    return digit
