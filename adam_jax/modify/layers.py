"""Declares stacked layers, which share a leaf, once for a whole transformation."""

import dataclasses
from typing import Any

import jax
import optax

from adam_jax._types import Function
from adam_jax.engine.call import map_inside
from adam_jax.engine.layers import Layers, LayersLike
from adam_jax.engine.optax_body import is_foreign
from adam_jax.engine.transformation import Transformation, body_of
from adam_jax.modify.modifiers import ModifiedFactory


def layers_of(tx: Any) -> Layers:
    """The layers that `with_layers` declared, of a transformation or a function that makes one."""
    if isinstance(tx, ModifiedFactory):
        return dict(tx.settings).get("layers") or layers_of(tx.factory)
    known = jax.tree.leaves(tx, is_leaf=lambda x: hasattr(x, "layers"))
    return next((x.layers for x in known if getattr(x, "layers", None)), Layers())


def with_layers(tx: Function | Transformation, layers: LayersLike | Layers) -> Any:
    r"""Steps each layer of a stacked leaf as a separate tensor.

    Layers under `jax.lax.scan` share one leaf with a leading axis, [layers, inputs, outputs]. An
    optimizer sees one tensor: norms, means and factors run over all layers, and a bias is a matrix
    that decays. `with_layers` steps each layer as if it were a leaf. This applies to the norms of
    `lamb` and `mars_adamw`; `cautious` and `clip_update_rms`; means of `Factored()`; the sizes by
    which `jnp.int8` and similar formats select leaves to quantize; random bits; a callable `mask`,
    which sees the shape of one layer; `transfer.mup`; and `telemetry(..., by_layer=True)`.

    Args:
      tx: a transformation of this package, including its outermost wrapper, or a function that
        makes one. Transformations of other libraries inside it see whole leaves.
      layers: a regular expression that matches the whole path of each leaf whose first axis is
        layers; or a dict from expressions to the number of such axes, where the first match wins. A
        path joins the dict keys, attributes and indices of a leaf with slashes:
        `blocks/attention/kernel`.

    Returns:
      The same transformation, with the same state. Results equal those of separate leaves ordered
      layer by layer: on CPUs bit for bit, except for MARS with 4-bit moments, where XLA contracts a
      product and a sum in one of the two programs; elsewhere sums may differ in the last place. The
      statistics of `telemetry` agree to rounding.

    Raises:
      ValueError: in this call, `layers` is not made of expressions, or `tx` is of another library;
        in `init`, an expression matches nothing, or a leaf has too few axes.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> params = {"blocks": {"kernel": jnp.ones((12, 64, 64)), "bias": jnp.zeros((12, 64))}}
      >>> tx = adam_jax.adamw(1e-3, weight_decay=0.1, mask=adam_jax.decay_mask)
      >>> tx = adam_jax.with_layers(tx, "blocks/.*")
      >>> state = tx.init(params)

    Differs from Optax in: Optax has no equivalent; the nearest is `jax.vmap` of the transformation
    over all leaves.
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
    """Declares layers to a body and the bodies inside it; `told_of` overrides how."""
    if own := getattr(body, "told_of", None):
        return own(layers)
    made = map_inside(lambda x: _told(x, layers), body)
    known = any(field.name == "layers" for field in dataclasses.fields(made))
    return dataclasses.replace(made, layers=layers) if known else made
