"""Matrices of constant norm: Wen et al. 2026, Fantastic Pretraining Optimizers and Where to Find
Them II: Hyperball Optimization.

https://arxiv.org/abs/2606.16899
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from adam_jax._types import Number, Params, PyTree
from adam_jax.core.masks import Mask, MaskLike
from adam_jax.core.member import Member, Stage
from adam_jax.core.transformation import Transformation
from adam_jax.family.adam import scale_by_adam
from adam_jax.family.alias import alias
from adam_jax.formats.block_means import BlockMeans
from adam_jax.formats.dense import wider_dtype
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.numerics import divide, exact, root, squared, summed
from adam_jax.pytrees import exported, frozen_pytree
from adam_jax.rates import DecayRateLike, Schedule
from adam_jax.roles import roles
from adam_jax.rules.base import Rule, View
from adam_jax.rules.hyperparameters import Unit, hyperparameter, in_units_of
from adam_jax.slots import Slot
from adam_jax.validation import named_arguments


@exported
class ScaleOnSphereState(NamedTuple):
    """State of `scale_on_sphere`.

    Attributes:
      count: optimizer steps completed, int32.
      scale: the root mean square of each leaf in `init`, which it keeps; one number each.
    """

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]
    scale: PyTree


def _scale(param: Array) -> Array:
    """The root mean square of one leaf, or of one layer of it.

    Raises:
      ValueError: it is 0; the caller adds the path.
    """
    param = jnp.asarray(param, wider_dtype(param.dtype, jnp.dtype(jnp.float32)))
    unit = jnp.max(jnp.abs(param), keepdims=True, initial=0)
    rms = unit * root(_mean(squared(divide(param, unit))))
    if not isinstance(rms, jax.core.Tracer) and param.size and not np.all(rms):
        raise ValueError(
            "the parameter is zero, and would stay so: initialize it with random numbers, or leave"
            " it out of the sphere."
        )
    # Again, as a sum of small numbers.
    return rms * root(1 + _mean(_excess(param, rms)))


def _mean(x: Array) -> Array:
    return summed(x) / max(x.size, 1)


def _excess(x: Array, scale: Array) -> Array:
    """|x|²/r² - 1, in factors whose rounding errors do not add up over a leaf."""
    unit = divide(jnp.ones_like(scale), scale)
    size = jnp.abs(x)
    return ((size - scale) * unit) * ((size + scale) * unit)


@frozen_pytree
class ScaleOnSphere(Rule):
    """v·R/‖v‖ - θ for v = θ - α·R·u/‖u‖, with the norm R that θ has in `init`.

    ‖v‖²/R² is 1 + e for e = mean(θ²/r² - 1) + α² - 2α·mean(θ·u) / (r·r_u), with root mean squares r
    of θ and r_u of u: three sums in one pass, none of which is rounded at the size of R², as ‖v‖²
    would be. The norm is corrected by v·c for a small c = 1/√(1+e) - 1.
    """

    elementwise = True
    reads_sums = True
    needs_params = True
    squares = False
    ends_in_product = False
    slots = (Slot("scale", magnitude=True, start=_scale),)

    learning_rate: Number = in_units_of(Unit.ANGLE)

    def update(self, leaf: View) -> Array:
        """The difference to the turned leaf."""
        p, u, angle = leaf.param, leaf.g, self.learning_rate
        scale = leaf.renew("scale", leaf.old["scale"])
        size = exact(root(leaf.mean(squared(u))))
        along = divide(leaf.mean(jnp.real(jnp.conj(p) * u)), exact(size * scale))
        e = leaf.mean(_excess(p, scale)) + exact(angle * (angle - 2 * along))
        turn = divide(angle * scale, size)
        length = exact(root(jnp.maximum(1 + e, 0)))
        c = jnp.where((size > 0) & (length > 0), -e / exact(length * (1 + length)), 0)
        return exact(p * c) - exact(u * exact(turn + c * turn))


def _sphere(learning_rate: ArrayLike | Schedule, mask: Mask | None = None) -> Stage:
    rate = hyperparameter("learning_rate", learning_rate, instead="0.01 is usual")
    return Stage(ScaleOnSphere(rate), ScaleOnSphereState, (BlockMeans(None),), mask)


def scale_on_sphere(learning_rate: optax.ScalarOrSchedule) -> Transformation:
    """Moves each leaf along the sphere of its norm, in the place of `scale_by_learning_rate`.

        v = θ - α_t·R·u/‖u‖              θ ← v·R/‖v‖

    R is the norm of the leaf in `init`. So α is the angle of a step, in radians for small ones,
    whatever the sizes of θ and u are. Weight decay has no effect.

    Use it for weight matrices whose scale the model does not need, as before a normalization. A
    stacked leaf, declared with `with_layers`, has a norm per layer.

    Args:
      learning_rate: α ≥ 0, per optimizer step: a number, or a schedule.

    Returns:
      A transformation with the state `ScaleOnSphereState`; `update` needs `params`.

    Raises:
      ValueError: a learning rate that is negative, infinite, NaN, or not one number; in `init`, a
        leaf of zeros, which would stay zero.

    Example:
      >>> import adam_jax, jax.numpy as jnp
      >>> tx = adam_jax.chain(adam_jax.scale_by_adam(), adam_jax.scale_on_sphere(0.1))
      >>> params = jnp.array([[3.0, 4.0]])
      >>> params, state = adam_jax.step(tx, jnp.array([[1.0, 0.0]]), tx.init(params), params)
      >>> print([round(float(x), 3) for x in params[0]], jnp.linalg.norm(params))
      [2.65, 4.24] 5.0

    Reference: Wen et al. 2026. Levanter's AdamH has the norm of each step in place of R, which
    rounding then changes.
    """
    stage = _sphere(learning_rate)
    return Transformation.around(Member.of(stage, chained=False, name="scale_on_sphere"))


def _matrices(params: Params) -> PyTree:
    """The leaves whose names say that they are matrices inside the model."""
    kinds = jax.tree.map(lambda role: role.kind, roles(params))
    mask = jax.tree.map(lambda kind: kind in ("matrix", "convolution", "fused"), kinds)
    if "unknown" in jax.tree.leaves(kinds) and not any(jax.tree.leaves(mask)):
        raise ValueError(
            "sphere must be given where no name says matrix (adam_jax.roles(params)), got None:"
            " write sphere={'hidden': True, 'head': False}, a tree of booleans like the parameters."
        )
    return mask


# A class, not a closure, so that equal masks make equal transformations.
@dataclasses.dataclass(frozen=True)
class _Others:
    mask: Mask

    def __call__(self, params: Params) -> PyTree:
        leaves, treedef = jax.tree.flatten(params)
        return treedef.unflatten([not x for x in self.mask.flatten(params, treedef, leaves)])


@named_arguments
def adamh(
    learning_rate: optax.ScalarOrSchedule,
    others_learning_rate: ArrayLike | Schedule | None = None,
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    sphere: MaskLike = _matrices,
    weight_decay: ArrayLike | Schedule = 1e-4,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
) -> Transformation:
    """AdamH: Adam whose matrices keep their norm; all other leaves take AdamW's steps.

        v = θ - α_t·R·u/‖u‖,  θ ← v·R/‖v‖        on the sphere
        θ ← θ - α'_t·(u + λ_t·θ)                  off it

    u is Adam's direction, and R the norm of the leaf in `init`.

    Args:
      learning_rate: α ≥ 0, of the leaves on the sphere, per optimizer step: a number or a schedule.
      others_learning_rate: α', of all other leaves, likewise; usually smaller. None is
        `learning_rate`.
      sphere: the leaves on the sphere: a tree of booleans like the parameters, a prefix of one, or
        a function from the parameters to one. The default is the leaves that `roles` calls matrix,
        convolution or fused; embeddings, heads and unknown leaves take AdamW's steps.
      weight_decay: λ of the other leaves.

    The other arguments and the errors are those of `adamw`.

    Returns:
      A transformation whose state is a tuple: `optax.ScaleByAdamState`, an entry for weight decay,
      one for the learning rate of the others, and a `ScaleOnSphereState`, the last three masked.

    Neither Optax nor PyTorch has it. Levanter's differs as its sphere does: see `scale_on_sphere`.

    Reference: Wen et al. 2026.
    """
    mask = Mask.of(sphere)
    others = Mask.of(_Others(mask))
    numbers = {"b1": b1, "b2": b2, "eps": eps, "mu_dtype": mu_dtype, "nu_dtype": nu_dtype}
    rate = learning_rate if others_learning_rate is None else others_learning_rate
    adamw = alias("adamh", scale_by_adam, rate, weight_decay=weight_decay, **numbers)
    first, *behind = adamw.body.stages
    behind = [dataclasses.replace(stage, mask=others) for stage in behind]
    return Transformation.around(
        Member.of(first, *behind, _sphere(learning_rate, mask), name="adamh")
    )
