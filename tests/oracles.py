"""Naive float64 versions, written from the papers in numpy, that judge everything else.

Each takes the gradients of all steps, float64[T, ...], and yields the direction u of each step, to
be multiplied by -α.
"""

import numpy as np


def adam(gradients, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, nesterov=False):
    """Kingma & Ba 2015, algorithm 1; with nesterov, Dozat 2016, algorithm 2, for a constant b1."""
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        m_hat = m / (1 - b1**t)
        if nesterov:
            m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        yield m_hat / (np.sqrt(v / (1 - b2**t) + eps_root) + eps)


def amsgrad(gradients, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, bias_correction=True):
    """Reddi, Kale & Kumar 2018, algorithm 2; with bias correction before the maximum, as Optax."""
    m = v = v_max = 0.0
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * np.abs(g) ** 2
        m_hat, v_hat = (m / (1 - b1**t), v / (1 - b2**t)) if bias_correction else (m, v)
        v_max = np.maximum(v_max, v_hat)
        yield m_hat / (np.sqrt(v_max + eps_root) + eps)
