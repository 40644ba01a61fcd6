"""Hyperparameters of a wider and deeper model from those of a small one: muP and CompleteP.

Yang et al. 2022, Tensor Programs V, https://arxiv.org/abs/2203.03466
Everett et al. 2024, Scaling Exponents Across Parameterizations and Optimizers,
https://arxiv.org/abs/2407.05872
Dey et al. 2025, Don't be lazy: CompleteP enables compute-efficient deep transformers,
https://arxiv.org/abs/2505.01618
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from adam_jax._types import Leaf, Params, PyTree
from adam_jax.engine.leaf_factors import Factors, LeafFactors, check_scalable
from adam_jax.engine.pipeline import Pipeline
from adam_jax.engine.trees import leaf_paths
from adam_jax.formats.dense import is_floating, leaf_dtype, wider_dtype
from adam_jax.modify.layers import layers_of
from adam_jax.modify.modifiers import Modifiable, modified
from adam_jax.rules.arithmetic import abs_squared
from adam_jax.transfer.growth import Growth, growths
from adam_jax.validation import check_number


def mup(
    tx: Modifiable,
    base: PyTree,
    params: Params,
    *,
    layers: str | None = None,
    alpha: float = 1.0,
    outputs_last: bool = True,
) -> Modifiable:
    r"""Trains a large model with the hyperparameters of a small one (muP, CompleteP).

    Let the input axes of a leaf be n times and its output axes m times as long as in the base
    model, and let the model have d times as many layers of its kind. Its hyperparameters are

        learning rate   α·d^(alpha-1) / n    n = 1 unless m grows too
        ε               ε·d^(-alpha) / m     m: the width, for an output layer n
        weight decay    λ·n                  so that α·λ does not depend on the width

    The two trees of shapes determine which axes grow; no layer needs a label. The model applies the
    rest of the parametrization: `mup_init` for the initial values, and three factors in the forward
    pass, `output_factor`, `attention_scale` and `residual_factor`. `mup_table` shows all of them.
    If nothing grows, every factor is 1.

    Args:
      tx: a transformation of this package with a learning rate, or a function that makes one, such
        as `adamw`. The first steps of `radam`, which do not divide yet, and the initial values of
        Yogi's accumulators have no factor.
      base: the parameters of the small model whose hyperparameters are known, or their shapes,
        `jax.eval_shape(init)`. It may have fewer layers, which are identified by the numbers in
        their paths (`blocks/3/kernel`, `Block_3/kernel`).
      params: those of the model to train, or their shapes.
      layers: a regular expression for the whole paths of leaves whose first axis counts layers
        (`jax.lax.scan` over blocks); None for those that `with_layers` declared to `tx`, if any:
        `mup(with_layers(adamw, "blocks/.*"), base, params)`. Without either, such an axis is an
        error if it grows and is recognized: all leaves of a subtree share it, and one of them grows
        unlike any kernel. A kernel that is alone in its subtree is not recognized if it grows as an
        attention kernel may, [8, 32, 32] for [2, 16, 16]: check `mup_table`. `""` turns the check
        off.
      alpha: the exponent of the residual factor, 1/2 to 1. 1 is CompleteP.
      outputs_last: kernels are [inputs, outputs], as in Flax and Haiku; False for [outputs,
        inputs], as in Equinox and PyTorch. It matters only where the two grow differently. An
        embedding then has the role of an output, and the same factors.

    Returns:
      The transformation, or a function with the arguments of `tx`. The state is the member's own.
      `groups(mup(adamw, base, params), ...)` and `with_hyperparams(mup(adamw, base, params))` apply
      the factors too.

    Raises:
      ValueError: in this call, or when the transformation is made, trees that do not match, `l2`,
        an update that depends on the size of the parameters (`lamb`), or `mup` of `mup`; in `init`
        and `update`, other parameters.

    Example:
      >>> import adam_jax, jax, jax.numpy as jnp
      >>> def init(width):
      ...     return {"in": jnp.ones((784, width)), "mid": jnp.ones((width, width))}
      >>> base = jax.eval_shape(lambda: init(64))
      >>> params = init(256)
      >>> tx = adam_jax.transfer.mup(adam_jax.adamw, base, params)(learning_rate=1e-2, eps=0.0)
      >>> grads = jax.tree.map(jnp.ones_like, params)
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> print(updates["in"][0, 0].round(4), updates["mid"][0, 0].round(4))
      -0.01 -0.0025

    Differs from Microsoft's `mup` (`MuAdamW`) in: ε has a factor; axes follow JAX; the model
    applies its factors itself.

    Reference: Yang et al. 2022, table 8, for the learning rate; Dey et al. 2025, table 1, for
    depth, weight decay and ε; Everett et al. 2024 for an ε that falls with each layer's gradient.
    """
    alpha = check_number("alpha", alpha, 0.5, 1.0, closed=True, instead="1.0 is CompleteP")
    layers = layers_of(tx).expression if layers is None else layers
    its = growths(base, params, layers, outputs_last)
    return with_leaf_factors(tx, tuple((g.path, factors_of(g, alpha)) for g in its))


def factors_of(growth: Growth, alpha: float) -> Factors:
    """The factors of a leaf's hyperparameters."""
    depth, inputs = growth.depth or 1.0, growth.hidden_inputs
    return Factors(depth ** (alpha - 1) / inputs, depth**-alpha / growth.width, inputs)


def with_leaf_factors(tx: Modifiable, factors: LeafFactors) -> Modifiable:
    """Multiplies the hyperparameters of each leaf by its own factors."""

    def edit(pipeline: Pipeline) -> Pipeline:
        check_scalable(pipeline)
        return dataclasses.replace(pipeline, factors=factors)

    return modified(with_leaf_factors, tx, edit, "mup", factors=factors)


def mup_init(
    params: Params, base: Params, *, layers: str | None = None, outputs_last: bool = True
) -> Params:
    """Scales initial values to the size that follows from the base model's.

        hidden:                                  RMS(θ) = RMS(θ_base) / √n
        input, output, bias, norm, embedding:    RMS(θ) = RMS(θ_base)

    n is the growth of the input axes. Any initializer works, however it depends on the width: each
    leaf is multiplied by the factor that gives it this root mean square. Zeros stay zeros, and ones
    stay ones.

    Args:
      params: initial values of the model.
      base: initial values of the base model, as arrays; of several layers the first is used.
      layers: as in `mup`.
      outputs_last: as in `mup`.

    Returns:
      The scaled values, with the dtypes of `params`.

    Raises:
      ValueError: trees that do not match, or `base` has shapes instead of values.

    Differs from Microsoft's `mup` (`set_base_shapes`) in: that multiplies output layers by √n and
    leaves hidden ones unchanged, which is the same for initializers of variance 1 / inputs; sizes
    are measured here, so those of small leaves are exact only to 1/√(2·size).

    Reference: Yang et al. 2022, table 8.
    """
    values = dict(zip(leaf_paths(base, none_is_leaf=False), jax.tree.leaves(base), strict=True))
    for path, value in values.items():
        if isinstance(value, jax.ShapeDtypeStruct):
            raise ValueError(
                f"base must have initial values, got the shape {value.shape} at {path!r}:"
                f" initialize the base model."
            )
    leaves, treedef = jax.tree.flatten(params)
    scaled = []
    for leaf, growth in zip(leaves, growths(base, params, layers, outputs_last), strict=True):
        if not is_floating(leaf):
            scaled.append(leaf)
            continue
        now, in_base = _rms(leaf), _rms(values[growth.base_path])
        wanted = in_base / math.sqrt(growth.hidden_inputs)
        factor = jnp.where((now > 0) & (wanted > 0), wanted / jnp.where(now > 0, now, 1), 1)
        scaled.append((jnp.asarray(leaf, factor.dtype) * factor).astype(leaf_dtype(leaf)))
    return jax.tree.unflatten(treedef, scaled)


def _rms(x: Leaf) -> jax.Array:
    wide = jnp.asarray(x, wider_dtype(leaf_dtype(x), jnp.dtype(jnp.float32)))
    return jnp.sqrt(jnp.mean(abs_squared(wide)))
