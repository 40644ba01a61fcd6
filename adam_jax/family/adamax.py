"""Adamax, Adam with the infinity norm: Kingma & Ba 2015, section 7.1.

https://arxiv.org/abs/1412.6980
"""

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from adam_jax._types import Number
from adam_jax.core.masks import MaskLike
from adam_jax.core.transformation import Transformation, scale_by_rule
from adam_jax.family.alias import alias
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.numerics import divide
from adam_jax.pytrees import frozen_pytree
from adam_jax.rates import DecayRate, DecayRateLike, Schedule, decay_rate
from adam_jax.rules.adam import Direction, Ema, MomentRule
from adam_jax.rules.base import View
from adam_jax.rules.hyperparameters import Unit, in_units_of
from adam_jax.slots import Slot
from adam_jax.validation import check_number, named_arguments


@frozen_pytree
class DecayingMax:
    """A maximum of |g| + eps that decays at the rate b: nu ← max(b·nu, |g| + eps)."""

    rate: DecayRate
    eps: Number = in_units_of(Unit.GRADIENT)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("nu", magnitude=True, rate=self.rate.complement, maximum=True),)

    def __call__(self, leaf: View, term: Array) -> Array:
        decayed = leaf.old["nu"] - self.rate.complement * leaf.old["nu"]
        return leaf.renew("nu", jnp.maximum(decayed, jnp.abs(leaf.g) + self.eps))

    def read(self, leaf: View) -> Array:
        return leaf.new["nu"]


@frozen_pytree
class Ratio(Direction):
    """first / second, for a second moment that is a magnitude, not a square; 0 where both are 0."""

    squared = False
    ends_in_product = False

    def __call__(self, first: Array, second: Array) -> Array:
        return divide(first, second)


def scale_by_adamax(
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
) -> Transformation:
    """Divides the averaged gradient by a decaying maximum of gradient magnitudes.

    u and the arguments are those of `adamaxw`, which explains all else. The state is
    `optax.ScaleByAdamState(count, mu, nu)`.
    """
    nu = DecayingMax(decay_rate("b2", b2), check_number("eps", eps, instead="1e-8 is usual"))
    rule = MomentRule(Ema("mu", decay_rate("b1", b1)), nu, Ratio())
    return scale_by_rule(rule, optax.ScaleByAdamState, mu_dtype, nu_dtype, "scale_by_adamax")


@named_arguments
def adamax(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    l2: ArrayLike | Schedule | None = None,
) -> Transformation:
    """Adamax: Adam with the infinity norm instead of the averaged square.

        θ ← θ - α_t·u

    Args:
      l2: as in `adam`.

    u and the other arguments are those of `adamaxw`, which explains all else. The state is that of
    `adam`, as in Optax.
    """
    return alias("adamax", scale_by_adamax, **locals())


@named_arguments
def adamaxw(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike | Schedule = 1e-4,
    mask: MaskLike = None,
    *,
    weight_decay_mask: MaskLike = None,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    scale_decay: bool = True,
) -> Transformation:
    """Adamax with decoupled weight decay.

        mu ← b1·mu + (1-b1)·g            mû = mu / (1 - b1ᵗ)
        nu ← max(b2·nu, |g| + eps)       u  = mû / nu
        θ  ← θ - α_t·(u + λ_t·θ)

    Args:
      b2: decay rate of the largest gradient, per optimizer step, 0 ≤ b2 < 1.
      eps: added to |g|, in units of the gradient; ≥ 0.
      nu_dtype: storage format of nu, as in `adamw`, but not `jnp.int4`.

    The other arguments, the arithmetic, the errors and the differences from Optax are those of
    `adamw`. The state is that of `adamw`, as in Optax.

    Differs from Keras in: it adds ε to nu when reading it, not to |g|.

    Reference: Kingma & Ba 2015, section 7.1, algorithm 2, which has no ε; Loshchilov & Hutter 2019,
    algorithm 2.
    """
    return alias("adamaxw", scale_by_adamax, **locals())
