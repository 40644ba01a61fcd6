"""ADOPT: Taniguchi et al. 2024, Modified Adam Can Converge with Any β2 with the Optimal Rate.

https://arxiv.org/abs/2411.02853
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from adam_jax._types import Count, Number
from adam_jax.core.transformation import Transformation, scale_by_rule
from adam_jax.family.alias import alias
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.numerics import after_first, divide, root, sign, squared
from adam_jax.pytrees import frozen_pytree, static
from adam_jax.rates import DecayRate, DecayRateLike, Schedule, decay_rate
from adam_jax.rules.adam import Direction
from adam_jax.rules.base import IrregularRule, View
from adam_jax.rules.hyperparameters import Scheduled, Unit, in_units_of
from adam_jax.slots import Slot
from adam_jax.validation import check_number, named_arguments


def fourth_root(count: Array) -> Array:
    """The paper's bound on a normalised gradient after `count` steps."""
    return jnp.asarray(count, jnp.result_type(float)) ** 0.25


@frozen_pytree
class FlooredRoot(Direction):
    """first / max(√second, eps); a huge number that any bound clips, where that is first / 0.

    Infinity would also be clipped, but its derivative is NaN.
    """

    eps: Number = in_units_of(Unit.GRADIENT)

    def __call__(self, first: Array, second: Array) -> Array:
        divisor = jnp.maximum(root(second), self.eps)
        quotient = divide(first, divisor)
        if not jnp.iscomplexobj(first):  # g / ε may overflow for the smallest ε.
            finite = jnp.isfinite(first)
            quotient = jnp.where(finite, jnp.clip(quotient, -HUGE, HUGE), quotient)
        return jnp.where(divisor == 0, HUGE * sign(first), quotient)


HUGE = 1e18
"""Its square is finite in float32."""


@frozen_pytree
class Adopt(IrregularRule):
    """The average of gradients, each divided by the root of the previous second moment."""

    elementwise = True

    b1: DecayRate
    b2: DecayRate
    direction: Direction
    clip_bound: Number
    nesterov: bool = static()
    later: Number = None

    @property
    def slots(self) -> tuple[Slot, ...]:
        mu = Slot("mu", rate=self.b1.complement)
        return (mu, Slot("nu", magnitude=True, rate=self.b2.complement))

    def at(self, count: Count) -> "Adopt":
        return dataclasses.replace(self, later=after_first(count))

    def update(self, leaf: View) -> Array:
        # The first gradient only initializes nu: no earlier nu exists to divide it by.
        later, square = self.later > 0, squared(leaf.g)
        x = jnp.where(later, self.direction(leaf.g, leaf.old["nu"]), 0)
        x = x if self.clip_bound is None else _clip(x, self.clip_bound)
        mu = self.b1.average(leaf.old["mu"], x)
        mu = leaf.renew("mu", jnp.where(later, mu, leaf.old["mu"]))
        leaf.renew("nu", jnp.where(later, self.b2.average(leaf.old["nu"], square), square))
        return self.b1.average(mu, x) if self.nesterov else mu


def _clip(x: Array, bound: Array) -> Array:
    if not jnp.iscomplexobj(x):
        return jnp.clip(x, -bound, bound)
    size = root(squared(x))
    return x * (jnp.minimum(size, bound) / jnp.where(size > 0, size, 1))


def scale_by_adopt(
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.9999,
    eps: ArrayLike = 1e-6,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[Array], Array] = fourth_root,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
) -> Transformation:
    """Divides each gradient by the root of the previous second moment, then averages.

    u and the arguments are those of `adopt`, which explains all else. The state is
    `optax.ScaleByAdamState(count, mu, nu)`.
    """
    direction = FlooredRoot(check_number("eps", eps, instead="the usual value is 1e-6"))
    bound = Scheduled(clip_value_fn) if use_clipping else None
    rates = decay_rate("b1", b1, closed=True), decay_rate("b2", b2, closed=True)
    rule = Adopt(*rates, direction, bound, nesterov)
    return scale_by_rule(rule, optax.ScaleByAdamState, mu_dtype, nu_dtype, "scale_by_adopt")


@named_arguments
def adopt(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.9999,
    eps: ArrayLike = 1e-6,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[Array], Array] = fourth_root,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    l2: ArrayLike | Schedule | None = None,
) -> Transformation:
    """ADOPT: divides each gradient by the root of the previous second moment, then averages.

        x  = clip(g / max(√nu, eps), ±clip_value_fn(t-1))      nu ← b2·nu + (1-b2)·|g|²
        mu ← b1·mu + (1-b1)·x                                  u  = mu
        θ  ← θ - α_t·u

    In the first step nu ← |g|² and u = 0. There is no bias correction.

    Args:
      b1: decay rate of the average of x, per optimizer step, 0 ≤ b1 ≤ 1; 1 takes no step.
      b2: decay rate of the second moment, per optimizer step, 0 ≤ b2 ≤ 1.
      eps: lower bound of the divisor, in units of the gradient; ≥ 0.
      nesterov: True reads mu one step ahead: u = b1·mu + (1-b1)·x.
      use_clipping: False leaves x unclipped.
      clip_value_fn: a function from the number of completed optimizer steps to the bound on |x|; by
        default its fourth root.
      l2: as in `adam`.

    The other arguments, the arithmetic, the errors and the differences from Optax are those of
    `adamw`. The state is that of `adam`, as in Optax.

    Reference: Taniguchi et al. 2024, algorithm 2, and its appendix on clipping.
    """
    return alias("adopt", scale_by_adopt, **locals())
