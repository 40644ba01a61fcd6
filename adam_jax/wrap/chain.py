"""Transformations one after the other, with update and apply in one at their end."""

import optax

from adam_jax.engine.chain import Chain, inner_body
from adam_jax.engine.transformation import Transformation


def chain(*txs: optax.GradientTransformation) -> Transformation:
    """Transformations one after the other, as `optax.chain`, that keep `step`.

    Args:
      *txs: of this package or any other; the updates of one are the gradients of the next. None
        at all leave the gradients as they are.

    Returns:
      A transformation whose state is that of `optax.chain`, the tuple of theirs. It compares by
      value, and its `step` is that of the last.

    Raises:
      ValueError: one is not a transformation.

    Differs from Optax in: between two of this package updates are float32 or wider, and are rounded
    to the gradient's dtype (or the parameter's, if wider) behind the last one only.

    Example:
      >>> import adam_jax
      >>> tx = adam_jax.chain(adam_jax.clip_by_global_norm(1.0), adam_jax.adamw(1e-3))
    """
    if not txs:
        return Transformation.of()
    bodies = (inner_body(f"txs[{i}]", tx) for i, tx in enumerate(txs))
    return Transformation.around(Chain(tuple(bodies)))
