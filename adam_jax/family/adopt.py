"""ADOPT: Taniguchi et al. 2024, Modified Adam Can Converge with Any β2 with the Optimal Rate.

https://arxiv.org/abs/2411.02853
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_jax.alias import alias
from adam_jax.engine.transformation import Transformation, scale_by_rule
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.rules.base import (
    DecayRate,
    DecayRateLike,
    Direction,
    MemberRule,
    Slot,
    Slots,
    after_first,
)
from adam_jax.rules.directions import Quotient, safe_divide, safe_sqrt
from adam_jax.rules.pytrees import frozen_pytree, static
from adam_jax.rules.scaling import Hyperparameter
from adam_jax.rules.squares import abs_squared
from adam_jax.validation import check_number, check_scalar


def fourth_root(count: jax.Array) -> jax.Array:
    """The paper's bound on a normalised gradient after `count` steps."""
    return count**0.25


@frozen_pytree
class FlooredRoot(Quotient):
    """first / max(√second, eps); where that is first / 0, a number that any bound cuts.

    Infinity would do, were it not that its derivative is NaN.
    """

    eps: Any

    def scalars(self, count: Any) -> Any:
        return ()

    def eps_dominates(self, second: jax.Array, scalars: Any) -> None:
        return None

    def combine(self, first: jax.Array, second: jax.Array, scalars: Any) -> jax.Array:
        divisor = jnp.maximum(safe_sqrt(second), self.eps)
        quotient = safe_divide(first, divisor)
        if not jnp.iscomplexobj(first):  # For the smallest ε, g / ε may be past the largest number.
            finite = jnp.isfinite(first)
            quotient = jnp.where(finite, jnp.clip(quotient, -HUGE, HUGE), quotient)
        return jnp.where(divisor == 0, HUGE * jnp.sign(first), quotient)


HUGE = 1e18
"""Its square is a float32."""


@frozen_pytree
class ClipBound(Hyperparameter):
    """The bound on a normalised gradient, a function of the number of steps completed."""

    function: Callable[[jax.Array], jax.Array] = static()

    def at(self, count: Any) -> Any:
        bound = self.function(jnp.asarray(count, jnp.result_type(float)))
        name = "the result of clip_value_fn"
        return check_scalar(name, bound, instead="return the bound on |x|")


@frozen_pytree
class Adopt(MemberRule):
    """The average of gradients, each divided by the root of the squares before it."""

    b1: DecayRate
    b2: DecayRate
    direction: Direction
    clip_bound: Hyperparameter | None
    nesterov: bool = static()

    @property
    def slots(self) -> tuple[Slot, ...]:
        mu = Slot("mu", rate=self.b1.complement)
        return (mu, Slot("nu", magnitude=True, rate=self.b2.complement))

    def scalars(self, count: Any) -> Any:
        bound = None if self.clip_bound is None else self.clip_bound.at(count)
        return after_first(count), bound, self.direction.scalars(count)

    def renewed(self, slot: str, g: jax.Array, old: Slots, new: Slots, scalars: Any) -> jax.Array:
        # The first gradient only starts nu: there is nothing before it to divide it by.
        later = scalars[0]
        if slot == "nu":
            square = abs_squared(g)
            return jnp.where(later > 0, self.b2.average(old["nu"], square), square)
        averaged = self.b1.average(old["mu"], self.divided(g, old, scalars))
        return jnp.where(later > 0, averaged, old["mu"])

    def update(
        self, g: jax.Array, old: Slots, new: Slots, scalars: Any, param: jax.Array | None
    ) -> jax.Array:
        if not self.nesterov:
            return new["mu"]
        return self.b1.average(new["mu"], self.divided(g, old, scalars))

    def divided(self, g: jax.Array, old: Slots, scalars: Any) -> jax.Array:
        """The gradient divided by the root of the squares before it, and bounded."""
        later, bound, direction = scalars
        x = jnp.where(later > 0, self.direction.combine(g, old["nu"], direction), 0)
        return x if bound is None else _clip(x, bound)

    def normalised(self, g: jax.Array, old: Slots, new: Slots, scalars: Any) -> jax.Array:
        return self.update(g, old, new, scalars, None)

    def eps_dominates(self, new: Slots, scalars: Any) -> None:
        return None

    def with_direction(self, make: Callable[[bool], Direction]) -> "Adopt":
        return dataclasses.replace(self, direction=self.direction.replaced(make))

    def looking_ahead(self) -> "Adopt":
        if self.nesterov:
            raise ValueError("tx must not look ahead already, as adopt(nesterov=True) does.")
        return dataclasses.replace(self, nesterov=True)


def _clip(x: jax.Array, bound: jax.Array) -> jax.Array:
    if not jnp.iscomplexobj(x):
        return jnp.clip(x, -bound, bound)
    size = safe_sqrt(abs_squared(x))
    return x * (jnp.minimum(size, bound) / jnp.where(size > 0, size, 1))


def scale_by_adopt(
    b1: DecayRateLike = 0.9,
    b2: DecayRateLike = 0.9999,
    eps: jax.typing.ArrayLike = 1e-6,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[jax.Array], jax.Array] = fourth_root,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
) -> Transformation:
    """Divides each gradient by the root of the squares before it, and then averages.

        x  = clip(g / max(√nu, eps), ±clip(t-1))        nu ← b2·nu + (1-b2)·|g|²
        mu ← b1·mu + (1-b1)·x                           u  = mu

    In the first step nu ← |g|² and u = 0. There is no bias correction.

    Args:
      b1: see `scale_by_adam`, as the dtypes; 1 is allowed, and takes no step.
      b2: decay rate of the second moment, 0 ≤ b2 ≤ 1.
      eps: the least divisor, in units of the gradient; ≥ 0.
      nesterov: u = b1·mu + (1-b1)·x.
      use_clipping: False leaves x as it is.
      clip_value_fn: from the number of steps completed to the bound on |x|.

    Returns:
      A transformation whose state is `optax.ScaleByAdamState(count, mu, nu)`.

    Reference: Taniguchi et al. 2024, algorithm 2, and its appendix on clipping.
    """
    direction = FlooredRoot(check_number("eps", eps, instead="the usual value is 1e-6"))
    bound = ClipBound(clip_value_fn) if use_clipping else None
    rates = DecayRate.of("b1", b1, closed=True), DecayRate.of("b2", b2, closed=True)
    rule = Adopt(*rates, direction, bound, nesterov)
    return scale_by_rule(rule, optax.ScaleByAdamState, mu_dtype, nu_dtype)


adopt = alias("adopt", scale_by_adopt)
