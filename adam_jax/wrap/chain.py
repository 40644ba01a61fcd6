"""Transformations in sequence; the last one fuses update and apply."""

import optax

from adam_jax.engine.chain import Chain, inner_body
from adam_jax.engine.transformation import Transformation


def chain(*txs: optax.GradientTransformation) -> Transformation:
    """Applies transformations in sequence, as `optax.chain` does, and keeps `step`.

    Args:
      *txs: transformations of this package or any other; the updates of one are the gradients of
        the next. An empty chain passes gradients through unchanged.

    Returns:
      A transformation with the state of `optax.chain`, the tuple of the individual states. It
      compares by value, and its `step` is that of the last transformation.

    Raises:
      ValueError: an argument is not a transformation.

    Differs from Optax in: between two transformations of this package updates are float32 or wider.
    Only after the last are they rounded to the gradient's dtype (or the parameter's, if wider).

    Example:
      >>> import adam_jax
      >>> tx = adam_jax.chain(adam_jax.clip_by_global_norm(1.0), adam_jax.adamw(1e-3))
    """
    if not txs:
        return Transformation.of()
    bodies = (inner_body(f"txs[{i}]", tx) for i, tx in enumerate(txs))
    return Transformation.around(Chain(tuple(bodies)))
