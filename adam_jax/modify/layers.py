"""Layers that are one leaf: said once, for a whole transformation."""

import dataclasses
from typing import Any

import jax
import optax

from adam_jax._types import Function
from adam_jax.engine.call import Body
from adam_jax.engine.layers import Layers, LayersLike
from adam_jax.engine.optax_body import is_foreign
from adam_jax.engine.transformation import Transformation, body_of
from adam_jax.modify.modifiers import ModifiedFactory


def layers_of(tx: Any) -> Layers:
    """What `with_layers` was told, of a transformation or of a function that makes one."""
    if isinstance(tx, ModifiedFactory):
        return dict(tx.settings).get("layers") or layers_of(tx.factory)
    known = jax.tree.leaves(tx, is_leaf=lambda x: hasattr(x, "layers"))
    return next((x.layers for x in known if getattr(x, "layers", None)), Layers())


def with_layers(tx: Function | Transformation, layers: LayersLike | Layers) -> Any:
    r"""Steps each layer of a stacked leaf as a tensor of its own.

    Layers under `jax.lax.scan` share one leaf with a leading axis, [layers, inputs, outputs]. To an
    optimizer it is one tensor: norms, means and factors run over all layers, and a bias is a matrix
    that decays. With this each layer is stepped as if it were a leaf: the norms of `lamb` and
    `mars_adamw`, `cautious` and `clip_update_rms`; means of `Factored()`; the sizes by which
    `jnp.int8` and the like choose what to quantize; random bits; a callable `mask`, which sees
    the shape of one layer; `transfer.mup`; `telemetry(..., by_layer=True)`.

    Args:
      tx: a transformation of this package, to its outermost wrapper, or a function that makes one.
        Inside of it, transformations of other libraries see whole leaves.
      layers: a regular expression that matches the whole path of each leaf with an axis of layers,
        its first; or a dict from expressions to how many such axes there are, the first match
        before the others. A path is the dict keys, attributes and indices down to the leaf, joined
        by slashes: `blocks/attention/kernel`.

    Returns:
      The same transformation, with the same state. Its numbers are those of separate leaves that
      follow each other layer by layer: on CPUs bit for bit, but for MARS with 4-bit moments, where
      XLA contracts a product and a sum in one of the two programs; elsewhere sums may differ in the
      last place. The statistics of `telemetry` agree to rounding.

    Raises:
      ValueError: here, for something else than expressions, or a `tx` of another library; in
        `init`, for an expression that matches nothing, or a leaf without so many axes.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> params = {"blocks": {"kernel": jnp.ones((12, 64, 64)), "bias": jnp.zeros((12, 64))}}
      >>> tx = adam_jax.adamw(1e-3, weight_decay=0.1, mask=adam_jax.decay_mask)
      >>> tx = adam_jax.with_layers(tx, "blocks/.*")
      >>> state = tx.init(params)

    Differs from Optax in: Optax has no such thing; there `jax.vmap` of the transformation over all
    leaves is the nearest.
    """
    known = layers if isinstance(layers, Layers) else Layers.of(layers)
    if callable(tx) and not isinstance(tx, optax.GradientTransformation):
        return ModifiedFactory(tx, with_layers, (("layers", known),))
    body = body_of("tx", tx)
    if is_foreign(body):
        raise ValueError(
            f"tx must be a transformation of adam_jax, got {type(tx).__name__}: write"
            f" with_layers(adam_jax.chain(...), layers) for optax.chain(...)."
        )
    return Transformation.around(_told(body, known))


def _told(body: Any, layers: Layers) -> Any:
    """A body, and the bodies in it, that know of layers; or say what becomes of them."""
    if own := getattr(body, "told_of", None):
        return own(layers)
    made = jax.tree.map(
        lambda x: _told(x, layers) if isinstance(x, Body) else x,
        body,
        is_leaf=lambda x: isinstance(x, Body) and x is not body,
    )
    known = any(field.name == "layers" for field in dataclasses.fields(made))
    return dataclasses.replace(made, layers=layers) if known else made
