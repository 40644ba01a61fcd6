"""Yogi: Zaheer et al. 2018, Adaptive Methods for Nonconvex Optimization.

https://proceedings.neurips.cc/paper/2018/hash/90365351ccc7437a1309dc64e4db32a3-Abstract.html
"""

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from adam_jax.core.transformation import Transformation, scale_by_rule
from adam_jax.family.alias import alias
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.pytrees import frozen_pytree
from adam_jax.rates import DecayRateLike, Schedule, decay_rate
from adam_jax.rules.adam import AroundEma, Ema, MomentRule, Root
from adam_jax.rules.base import View
from adam_jax.validation import check_number, named_arguments


@frozen_pytree
class YogiSquares(AroundEma):
    """Moves toward |g|² by steps of (1-b)·|g|²: nu ← nu - (1-b)·sign(nu - |g|²)·|g|²."""

    ema: Ema

    def __call__(self, leaf: View, term: Array) -> Array:
        # The select is last: XLA fuses a product into a sum, but not through a sign in every loop.
        x, by = leaf.old["nu"], self.ema.rate.complement * term
        leaf.renew("nu", jnp.where(term > x, x + by, jnp.where(term < x, x - by, x)))
        return self.read(leaf)


def scale_by_yogi(
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
    eps: ArrayLike = 1e-3,
    eps_root: ArrayLike | None = 0.0,
    initial_accumulator_value: ArrayLike | None = 1e-6,
    *,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
) -> Transformation:
    """Adam whose denominator moves by at most (1-b2)·|g|² a step, in either direction.

    u and the arguments are those of `yogi`, which explains all else. The state is
    `optax.ScaleByAdamState(count, mu, nu)`.
    """
    eps_root = 0.0 if eps_root is None else eps_root
    start = 1e-6 if initial_accumulator_value is None else initial_accumulator_value
    instead = "the usual value is 1e-6"
    start = check_number("initial_accumulator_value", start, instead=instead)
    first = Ema("mu", decay_rate("b1", b1), initial_accumulator_value=start)
    second = YogiSquares(
        Ema("nu", decay_rate("b2", b2), magnitude=True, initial_accumulator_value=start)
    )
    rule = MomentRule(first, second, Root.of(eps, eps_root))
    return scale_by_rule(rule, optax.ScaleByAdamState, mu_dtype, nu_dtype, "scale_by_yogi")


@named_arguments
def yogi(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
    eps: ArrayLike = 1e-3,
    *,
    eps_root: ArrayLike | None = None,
    initial_accumulator_value: ArrayLike | None = None,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    l2: ArrayLike | Schedule | None = None,
) -> Transformation:
    """Yogi: Adam whose denominator moves by at most (1-b2)·|g|² a step.

        mu ← b1·mu + (1-b1)·g                         mû = mu / (1 - b1ᵗ)
        nu ← nu - (1-b2)·sign(nu - |g|²)·|g|²         nû = nu / (1 - b2ᵗ)
        u  = mû / (√(nû + eps_root) + eps)
        θ  ← θ - α_t·u

    Args:
      eps_root: as in `adamw`. None is 0.0; it is the default of `yogi`, because a number would
        appear in the state of `optax.inject_hyperparams`, where Optax's yogi has none.
      initial_accumulator_value: initial value of every element of mu and nu, ≥ 0; for nu in units
        of the gradient squared. The paper initializes nu with the squared gradient of a batch. None
        is 1e-6, the default of `yogi` for the same reason.
      l2: as in `adam`.

    The other arguments, the arithmetic, the errors and the differences from Optax are those of
    `adamw`. The state is that of `adam`, as in Optax.

    Reference: Zaheer et al. 2018, algorithm 2, which has no bias correction.
    """
    return alias("yogi", scale_by_yogi, **locals())
