"""RAdam: Liu et al. 2020, On the Variance of the Adaptive Learning Rate and Beyond.

https://arxiv.org/abs/1908.03265
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
from adam_jax.rules.base import DecayRate, DecayRateLike, Direction, MomentRule
from adam_jax.rules.directions import Root
from adam_jax.rules.moments import Ema, EmaOfSquares, NesterovEma
from adam_jax.rules.pytrees import frozen_pytree
from adam_jax.validation import check_number


@frozen_pytree
class Rectified(Direction):
    """r·direction once the average of squares is long enough to be trusted, until then `first`.

    Attributes:
      direction: Adam's.
      rate: b of the second moment.
      threshold: the length of its average, in steps, from which on it is used.
    """

    direction: Direction
    rate: DecayRate
    threshold: Any

    def scalars(self, count: Any) -> Any:
        t = jnp.asarray(count, jnp.result_type(float)) + 1
        x = jnp.asarray(-self.rate.log, t.dtype)
        # The paper's ρ - 2t·bᵗ / (1 - bᵗ) loses 4 of float32's 7 digits while it is small.
        # Both at once: on its own XLA would compute the second while it compiles, with other bits.
        of_t, of_1 = _residue(jnp.stack([t * x, x]))
        length = 1 + 2 * (t * of_t - of_1)
        limit = 2 / self.rate.complement - 1
        trusted = length >= self.threshold
        above = (length - 4) * (length - 2) * limit
        below = (limit - 4) * (limit - 2) * length
        r = jnp.sqrt(jnp.where(trusted, above, 1) / jnp.where(trusted, below, 1))
        return jnp.where(trusted, r, 0), self.direction.scalars(count)

    def combine(self, first: jax.Array, second: jax.Array, scalars: Any) -> jax.Array:
        r, inner = scalars
        # A NaN in the second moment shows, also where that is not used yet.
        alone = jnp.where(jnp.isnan(second), second, first)
        return jnp.where(r > 0, r * self.direction.combine(first, second, inner), alone)

    def normalised(self, g: jax.Array, second: jax.Array, scalars: Any) -> jax.Array:
        return self.direction.normalised(g, second, scalars[1])

    def eps_dominates(self, second: jax.Array, scalars: Any) -> None:
        return None

    def replaced(self, make: Callable[[bool], Direction]) -> "Rectified":
        return dataclasses.replace(self, direction=self.direction.replaced(make))


# B₂ₖ/(2k)! of the Bernoulli numbers, from k = 10 down to 1, the signs turned.
_SERIES = (
    *(2.174868698558062e-16, -8.586062056277845e-15, 3.3896802963225827e-13),
    *(-1.3382536530684679e-11, 5.284190138687493e-10, -2.08767569878681e-08),
    *(8.267195767195768e-07, -3.306878306878307e-05, 1 / 720, -1 / 12),
)


def _residue(z: jax.Array) -> jax.Array:
    """1/z - 1/(eᶻ - 1) for z > 0, where the two cancel as z → 0: its series for z < 1."""
    small = jnp.minimum(z, 1)
    series = 0.5 + small * jnp.polyval(jnp.asarray(_SERIES, z.dtype), small * small)
    large = jnp.maximum(z, 1)
    # From 40 on the second term is under half a place of the first, and its derivative ∞/∞.
    return jnp.where(z < 1, series, 1 / large - 1 / jnp.expm1(jnp.minimum(large, 40)))


def scale_by_radam(
    b1: DecayRateLike = 0.9,
    b2: DecayRateLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    eps_root: jax.typing.ArrayLike = 0.0,
    threshold: jax.typing.ArrayLike = 5.0,
    *,
    nesterov: bool = False,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    eps_hat: jax.typing.ArrayLike | None = None,
) -> Transformation:
    """Adam with its own warm-up: momentum alone until nu has seen enough gradients.

        ρ_t = ρ - 2t·b2ᵗ / (1 - b2ᵗ),  ρ = 2 / (1-b2) - 1
        u   = r_t·mû / (√(nû + eps_root) + eps)  for ρ_t ≥ threshold,  else mû
        r_t = √((ρ_t-4)·(ρ_t-2)·ρ / ((ρ-4)·(ρ-2)·ρ_t))

    Args:
      b1: see `scale_by_adam`, as all that is not here.
      threshold: of ρ_t, the number of gradients that nu averages, in steps; > 4.

    Returns:
      A transformation whose state is `optax.ScaleByAdamState(count, mu, nu)`.

    Differs from PyTorch in: nothing with eps=0.0, eps_hat=1e-8.

    Reference: Liu et al. 2020, algorithm 2.
    """
    rate = DecayRate.of("b2", b2)
    threshold = check_number("threshold", threshold, 4.0, instead="the usual value is 5.0")
    first = Ema(DecayRate.of("b1", b1))
    direction = Rectified(Root.of(eps, eps_root, eps_hat, rate), rate, threshold)
    rule = MomentRule(NesterovEma(first) if nesterov else first, EmaOfSquares(rate), direction)
    return scale_by_rule(rule, optax.ScaleByAdamState, mu_dtype, nu_dtype)


radam = alias("radam", scale_by_radam)
radamw = alias("radamw", scale_by_radam, weight_decay=1e-4)
