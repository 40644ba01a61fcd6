"""RAdam: Liu et al. 2020, On the Variance of the Adaptive Learning Rate and Beyond.

https://arxiv.org/abs/1908.03265
"""

import dataclasses

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from adam_jax._types import Count, Number
from adam_jax.core.masks import MaskLike
from adam_jax.core.transformation import Transformation, scale_by_rule
from adam_jax.family.alias import alias
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.pytrees import frozen_pytree
from adam_jax.rates import DecayRate, DecayRateLike, Schedule, decay_rate
from adam_jax.rules.adam import Ema, MomentRule, NesterovEma, Root
from adam_jax.rules.base import Modifier, View
from adam_jax.validation import check_number, named_arguments


@frozen_pytree
class Rectified(Modifier):
    """Adam's update times r once the average of squares is long enough; mû until then.

    Attributes:
      inner: Adam.
      rate: b of the second moment.
      threshold: the length of that average, in steps, from which it is used.
      r: the factor of this step; 0 while the average is not used.
    """

    inner: MomentRule
    rate: DecayRate
    threshold: Number
    r: Number = None

    def at(self, count: Count) -> "Rectified":
        t = jnp.asarray(count, jnp.result_type(float)) + 1
        x = jnp.asarray(-self.rate.log, t.dtype)
        z = t * x if self.rate.past is None else -self.rate.log_product(count)
        # The paper's ρ - 2t·bᵗ / (1 - bᵗ) loses 4 of float32's 7 digits while it is small. Both in
        # one array: XLA would constant-fold the second alone, with different bits.
        of_t, of_1 = _residue(jnp.stack([z, x]))
        length = 1 + 2 * (t * of_t - of_1)
        if self.rate.past is not None:  # Otherwise the two poles cancel.
            length = length + 2 * (1 / x - t / z)
        limit = 2 / self.rate.complement - 1
        trusted = length >= self.threshold
        above = (length - 4) * (length - 2) * limit
        below = (limit - 4) * (limit - 2) * length
        r = jnp.sqrt(jnp.where(trusted, above, 1) / jnp.where(trusted, below, 1))
        return dataclasses.replace(self, r=jnp.where(trusted, r, 0))

    def update(self, leaf: View) -> Array:
        mu, nu = self.inner.moments(leaf)
        # A NaN in the second moment propagates even while the moment is unused.
        alone = jnp.where(jnp.isnan(nu), nu, mu)
        return jnp.where(self.r > 0, self.r * self.inner.direction(mu, nu), alone)


# -B₂ₖ/(2k)! with the Bernoulli numbers, from k = 10 down to 1.
_SERIES = (
    *(2.174868698558062e-16, -8.586062056277845e-15, 3.3896802963225827e-13),
    *(-1.3382536530684679e-11, 5.284190138687493e-10, -2.08767569878681e-08),
    *(8.267195767195768e-07, -3.306878306878307e-05, 1 / 720, -1 / 12),
)


def _residue(z: Array) -> Array:
    """1/z - 1/(eᶻ - 1) for z > 0; for z < 1, where the two cancel, by its series."""
    small = jnp.minimum(z, 1)
    series = 0.5 + small * jnp.polyval(jnp.asarray(_SERIES, z.dtype), small * small)
    large = jnp.maximum(z, 1)
    # From 40 on, the second term is below half an ulp of the first, and its derivative is ∞/∞.
    return jnp.where(z < 1, series, 1 / large - 1 / jnp.expm1(jnp.minimum(large, 40)))


def scale_by_radam(
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    threshold: ArrayLike = 5.0,
    *,
    nesterov: bool = False,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    eps_hat: ArrayLike | None = None,
) -> Transformation:
    """Adam with its own warm-up: momentum alone until nu has seen enough gradients.

    u and the arguments are those of `radam`, which explains all else. The state is
    `optax.ScaleByAdamState(count, mu, nu)`.
    """
    rate = decay_rate("b2", b2)
    threshold = check_number("threshold", threshold, 4.0, instead="the usual value is 5.0")
    first, second = Ema("mu", decay_rate("b1", b1)), Ema("nu", rate, magnitude=True)
    direction = Root.of(eps, eps_root, eps_hat, rate)
    adam = MomentRule(NesterovEma(first) if nesterov else first, second, direction)
    rule = Rectified(adam, rate, threshold)
    return scale_by_rule(rule, optax.ScaleByAdamState, mu_dtype, nu_dtype, "scale_by_radam")


@named_arguments
def radam(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    threshold: ArrayLike = 5.0,
    *,
    nesterov: bool = False,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    eps_hat: ArrayLike | None = None,
    l2: ArrayLike | Schedule | None = None,
    weight_decay: ArrayLike | Schedule | None = None,
    mask: MaskLike = None,
    weight_decay_mask: MaskLike = None,
    scale_decay: bool = True,
) -> Transformation:
    """RAdam: Adam with its own warm-up, momentum alone until nu has seen enough gradients.

        ρ_t = ρ - 2t·b2ᵗ / (1 - b2ᵗ),  ρ = 2 / (1-b2) - 1
        r_t = √((ρ_t-4)·(ρ_t-2)·ρ / ((ρ-4)·(ρ-2)·ρ_t))
        u   = r_t·mû / (√(nû + eps_root) + eps + eps_hat / √(1 - b2ᵗ))  for ρ_t ≥ threshold, else mû
        θ   ← θ - α_t·u, with weight_decay θ - α_t·(u + λ_t·θ)

    mu and nu are Adam's averages of g and |g|²; mû and nû are these with bias correction.

    Args:
      b2: as in `adamw`. With a schedule, ρ is of the rate of the step, and b2ᵗ the product.
      threshold: nu is used once ρ_t, the number of gradients that it averages, reaches this many
        optimizer steps; ≥ 4, usually 5.
      l2: as in `adam`.
      weight_decay: λ, as in `adamw`. None omits it and its entry in the state.

    The other arguments, the arithmetic and the errors are those of `adamw`. The state is that of
    `adam`, as in Optax. `weight_decay` adds its entry before that of the learning rate; `update`
    then needs `params`.

    Differs from Optax as `adamw` does.
    Differs from PyTorch in: it adds ε to the uncorrected root (write eps=0.0, eps_hat=1e-8); the
    two parts of a complex gradient share one |g|²; with `weight_decay` it is
    `RAdam(decoupled_weight_decay=True)`.

    Reference: Liu et al. 2020, algorithm 2; Loshchilov & Hutter 2019, algorithm 2.
    """
    return alias("radam", scale_by_radam, **locals())
