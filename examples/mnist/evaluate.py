"""The quality of a model and its predictions: loss, accuracy, probabilities."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from examples.mnist import preprocessing

CHUNK = 500  # digits at once


@jax.jit(static_argnums=0)
def _log_probabilities(graph: Any, params: Any, images: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(nnx.merge(graph, params)(preprocessing.normalise(images)))


def log_probabilities(graph: Any, params: Any, images: np.ndarray) -> np.ndarray:
    """Logarithms of the probabilities, float32 [count, 10], of images uint8 [count, 28, 28]."""
    chunks = [images[i : i + CHUNK] for i in range(0, len(images), CHUNK)]
    return np.concatenate([_log_probabilities(graph, params, chunk) for chunk in chunks])


def evaluate(graph: Any, params: Any, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mean cross-entropy in nats, and the share of correctly classified digits."""
    log_p = log_probabilities(graph, params, images)
    loss = -log_p[np.arange(len(labels)), labels].mean()
    right = log_p.argmax(axis=1) == labels
    return {"test_loss": float(loss), "test_accuracy": float(right.mean())}
