"""Block-mean second moments under test: magnitudes, gradients, and naive means."""

import numpy as np

from tests.catalogue import MEMBERS, every, of_each_kind

WITH_NU = [m for m in MEMBERS if m.has("nu_dtype")]
every_kind_with_nu = every(of_each_kind(WITH_NU))


def naive(x, axes):
    """The mean of each element's block, at each element."""
    return np.broadcast_to(np.mean(x, axis=axes, keepdims=True), np.shape(x))


def magnitudes(shape, seed=0):
    rng = np.random.default_rng(seed)
    return np.asarray(rng.normal(size=shape) * 10.0 ** rng.integers(-3, 3, shape), np.float32) ** 2


def gradients(shape, steps=20, dtype=np.float32):
    rng = np.random.default_rng(1)
    scale = 10.0 ** rng.integers(-2, 2, shape)
    g = rng.normal(size=(steps, *shape)) * scale
    if np.issubdtype(dtype, np.complexfloating):
        g = g + 1j * rng.normal(size=g.shape) * scale
    return g.astype(dtype)
