"""MARS: Yuan et al. 2024, Unleashing the Power of Variance Reduction for Training Large Models.

https://arxiv.org/abs/2411.10438
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from adam_jax._types import Count, Number, Updates
from adam_jax.core.masks import MaskLike
from adam_jax.core.states import register
from adam_jax.core.transformation import Transformation, scale_by_rule
from adam_jax.family.alias import alias
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.numerics import after_first, bounded, exact, root, squared
from adam_jax.pytrees import frozen_pytree
from adam_jax.rates import DecayRate, DecayRateLike, Schedule, decay_rate
from adam_jax.rules.adam import Ema, MomentRule, Root
from adam_jax.rules.base import MemberRule, View
from adam_jax.slots import Slot
from adam_jax.validation import check_number, named_arguments


class ScaleByMarsState(NamedTuple):
    """State of `scale_by_mars`.

    Attributes:
      count: optimizer steps completed, int32.
      mu: the averages of c̃, a tree like the parameters.
      nu: the averages of |c̃|², a tree like the parameters.
      g: the last gradients, a tree like the parameters.
    """

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Updates
    nu: Updates
    g: Updates


register(ScaleByMarsState, slots={"mu": False, "nu": True, "g": False}, counts=["count"])


@frozen_pytree
class Mars(MemberRule):
    """A member on a gradient that is corrected by its change and clipped to norm 1.

    Attributes:
      inner: the rule of the member.
      b1: decay rate of its first moment.
      gamma: the weight of the change, relative to exact variance reduction.
    """

    inner: MomentRule
    b1: DecayRate
    gamma: Number
    later: Number = None
    weight: Number = None

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (*self.inner.slots, Slot("g", rate=1.0))

    def at(self, count: Count) -> "Mars":
        # The first gradient has no predecessor.
        later = after_first(count)
        weight = later * self.gamma * (1 - self.b1.complement) / self.b1.complement
        return dataclasses.replace(self, later=later, weight=weight)

    def update(self, leaf: View) -> Array:
        # Always g. The select lets XLA:CPU write it over the old gradient, not to a new buffer.
        corrected = self.corrected(leaf)
        leaf.renew("g", jnp.where(self.later >= 0, leaf.g, leaf.old["g"]))
        return self.inner.update(corrected)

    def corrected(self, leaf: View) -> View:
        """The leaf with the corrected and clipped gradient, c̃."""
        g = bounded(leaf.g)  # `leaf_step` forms means of unbounded gradients.
        c = g + self.weight * (g - exact(leaf.old["g"]))
        # Scaled so that no sum of squares overflows. Sums of numbers far below 1 may become zero.
        unit = 2.0 ** (jnp.finfo(c.dtype).maxexp * 3 // 10)
        norm = root(leaf.sum(squared(c * (1 / unit)))) * unit
        # If the norm is NaN, c stays unscaled, so that NaN stays in its own element.
        return leaf.with_gradient(exact(c * (1 / jnp.where(norm > 1, norm, 1))))

    def normalised(self, leaf: View, u: Array) -> Array:
        return self.inner.normalised(self.corrected(leaf), u)


def scale_by_mars(
    b1: DecayRateLike | Schedule = 0.95,
    b2: DecayRateLike | Schedule = 0.99,
    eps: ArrayLike = 1e-8,
    gamma: ArrayLike = 0.025,
    *,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
) -> Transformation:
    """Adam on a clipped gradient that is corrected by its change since the last batch.

    u and the arguments are those of `mars_adamw`, which explains all else. The state is
    `ScaleByMarsState(count, mu, nu, g)`.
    """
    rate = decay_rate("b1", b1)
    gamma = check_number("gamma", gamma, instead="the usual value is 0.025; 0.0 is no correction")
    second = Ema("nu", decay_rate("b2", b2), magnitude=True)
    inner = MomentRule(Ema("mu", rate), second, Root.of(eps))
    return scale_by_rule(
        Mars(inner, rate, gamma), ScaleByMarsState, mu_dtype, nu_dtype, "scale_by_mars"
    )


@named_arguments
def mars_adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike | Schedule = 0.95,
    b2: DecayRateLike | Schedule = 0.99,
    eps: ArrayLike = 1e-8,
    gamma: ArrayLike = 0.025,
    weight_decay: ArrayLike | Schedule = 0.0,
    mask: MaskLike = None,
    *,
    weight_decay_mask: MaskLike = None,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    scale_decay: bool = True,
) -> Transformation:
    """MARS-AdamW: AdamW on a variance-reduced gradient.

        c  = g + gamma·b1/(1-b1)·(g - g_old)      g_old = g in the first step
        c̃  = c / max(1, ‖c‖)                      the norm is that of the leaf
        mu ← b1·mu + (1-b1)·c̃                     mû = mu / (1 - b1ᵗ)
        nu ← b2·nu + (1-b2)·|c̃|²                  nû = nu / (1 - b2ᵗ)
        u  = mû / (√nû + eps)
        θ  ← θ - α_t·(u + λ_t·θ)

    The norm is taken over the whole leaf. So XLA runs it instead of a kernel, and a leaf sharded
    over devices needs an all-reduce. Inside `jax.shard_map` each part has its own norm.

    Args:
      eps: ε, added outside the root, in units of the clipped gradient, whose norm per leaf is at
        most 1; ≥ 0.
      gamma: γ ≥ 0, the weight of the gradient's change relative to exact variance reduction. 0 is
        Adam on clipped gradients.
      mu_dtype: storage format of mu and the last gradient, as in `adamw`.

    The other arguments, the arithmetic and the errors are those of `adamw`. The state is that of
    `adamw`, but with `ScaleByMarsState`.

    Example:
      The authors use AdamW for all leaves but matrices (`optimize_1d=False`):

      >>> import adam_jax
      >>> adamw = adam_jax.adamw(3e-3, b2=0.95, weight_decay=0.1)
      >>> tx = adam_jax.groups({r".*(bias|scale)": adamw, ".*": adam_jax.mars_adamw(3e-3)})
      >>> state = tx.init({"kernel": 1.0, "bias": 0.0})
      >>> print(state.inner_states[".*"].inner_state[0].g)
      {'bias': MaskedNode(), 'kernel': Array(0., dtype=float32)}

    Optax lacks it.
    Differs from the authors' PyTorch code in: that code compares the first gradient with zero, the
    paper with itself; it runs AdamW on all but matrices, see the example.
    Differs from `timm` in: it does not clip the first gradient.

    Reference: Yuan et al. 2024, MARS-AdamW with the previous batch's gradient instead of a second
    gradient on this batch (MARS-approx); nu averages |c̃|² as in the authors' code.
    """
    return alias("mars_adamw", scale_by_mars, **locals())
