"""NAdam: Dozat 2016, Incorporating Nesterov Momentum into Adam.

https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from adam_jax._types import Count, Number
from adam_jax.core.masks import MaskLike
from adam_jax.core.transformation import Transformation, scale_by_rule
from adam_jax.family.adam import scale_by_adam
from adam_jax.family.alias import alias
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.pytrees import frozen_pytree
from adam_jax.rates import DecayRateLike, Schedule, decay_rate
from adam_jax.rules.adam import AheadEma, Ema, MomentRule, Root
from adam_jax.validation import check_number, named_arguments

TERMS = 56
"""Terms of the series below: 2⁻⁵⁶ is below the resolution of float64."""


@frozen_pytree
class ScheduledNesterovEma(AheadEma):
    """mu read one step ahead, with the momentum b_t = b·(1 - 0.96^(tψ) / 2) (Dozat, section 3.1).

    mu_{t+1}·b_{t+1} / (1 - Π_{t+1}) + g·(1 - b_t) / (1 - Π_t), with Π_t = b_1·b_2 ··· b_t. PyTorch
    keeps Π_t in its state. Here it is computed from t alone, so the state is Adam's: log Π_t =
    t·log b - Σ_j 2⁻ʲ/j·(r^j + r^2j + ··· + r^tj), with r = 0.96^ψ; a schedule of b has its product.
    """

    momentum_decay: Number = 0.0

    def at(self, count: Count) -> "ScheduledNesterovEma":
        log_r = jnp.asarray(self.momentum_decay * math.log(0.96), jnp.result_type(float))
        t_now = jnp.asarray(count, log_r.dtype) + 1
        j = jnp.arange(1, TERMS + 1, dtype=log_r.dtype)

        def factor(t: Number) -> Number:  # b_t / b
            return 1 - 0.5 * jnp.exp(t * log_r)

        def one_minus_product(ahead: int) -> Any:
            t = t_now + ahead
            step = jnp.where(log_r == 0, -1, j * log_r)  # ψ = 0: the sum has t equal terms
            # In one array: XLA would constant-fold the second alone, with different bits.
            of_t, of_1 = jnp.expm1(jnp.stack([t * step, step]))
            terms = (1 + of_1) * of_t / of_1
            # The limit t of the terms, with their derivative in ψ.
            at_0 = t + j * log_r * (t * (t + 1) / 2)
            sums = jnp.where(log_r == 0, at_0, terms)
            return self.ema.rate.correction(count, ahead, -jnp.sum(sums * 0.5**j / j))

        rate = self.ema.rate
        b, following = (1 - x.complement for x in (rate, rate.following or rate))
        of_g = (1 - b * factor(t_now)) / one_minus_product(0)
        of_mu = following * factor(t_now + 1) / one_minus_product(1) / of_g
        return dataclasses.replace(self, of_mu=of_mu, of_both=of_g)


def scale_by_nadam(
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    *,
    nesterov: bool = True,
    momentum_decay: Array | float | None = None,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    eps_hat: ArrayLike | None = None,
) -> Transformation:
    """Adam with Nesterov momentum: it reads the average one step ahead.

    u and the arguments are those of `nadamw`, which explains all else. The state is
    `optax.ScaleByAdamState(count, mu, nu)`.
    """
    if momentum_decay is None:
        numbers = (b1, b2, eps, eps_root, mu_dtype)
        return scale_by_adam(*numbers, nesterov=nesterov, nu_dtype=nu_dtype, eps_hat=eps_hat)
    if not nesterov:
        raise ValueError("momentum_decay must be None for nesterov=False: leave one of them out.")
    decay = check_number("momentum_decay", momentum_decay, instead="PyTorch's is 0.004")
    rate = decay_rate("b2", b2)
    first = ScheduledNesterovEma(Ema("mu", decay_rate("b1", b1)), momentum_decay=decay)
    second = Ema("nu", rate, magnitude=True)
    rule = MomentRule(first, second, Root.of(eps, eps_root, eps_hat, rate))
    return scale_by_rule(rule, optax.ScaleByAdamState, mu_dtype, nu_dtype, "scale_by_nadam")


@named_arguments
def nadam(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    *,
    nesterov: bool = True,
    momentum_decay: Array | float | None = None,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    eps_hat: ArrayLike | None = None,
    l2: ArrayLike | Schedule | None = None,
) -> Transformation:
    """NAdam: Adam with Nesterov momentum, which reads the average one step ahead.

        θ ← θ - α_t·u

    Args:
      l2: as in `adam`.

    u and the other arguments are those of `nadamw`, which explains all else. The state is that of
    `adam`, as in Optax.
    """
    return alias("nadam", scale_by_nadam, **locals())


@named_arguments
def nadamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    weight_decay: ArrayLike | Schedule = 1e-4,
    mask: MaskLike = None,
    *,
    weight_decay_mask: MaskLike = None,
    nesterov: bool = True,
    momentum_decay: Array | float | None = None,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    eps_hat: ArrayLike | None = None,
    scale_decay: bool = True,
) -> Transformation:
    """NAdam with decoupled weight decay.

        mu ← b1·mu + (1-b1)·g            nu ← b2·nu + (1-b2)·|g|²         nû = nu / (1 - b2ᵗ)
        n  = b1·mu / (1 - b1ᵗ⁺¹) + (1-b1)·g / (1 - b1ᵗ)
        u  = n / (√(nû + eps_root) + eps + eps_hat / √(1 - b2ᵗ))
        θ  ← θ - α_t·(u + λ_t·θ)

    Args:
      b1: as in `adamw`. With a schedule, the factor of mu in n is the rate of the next step.
      nesterov: False is Adam: n = mû = mu / (1 - b1ᵗ).
      momentum_decay: ψ ≥ 0, per optimizer step: the momentum of step t is b1·(1 - 0.96^(tψ) / 2),
        which grows from b1/2 to b1. PyTorch has 0.004, Keras 1.0. None keeps b1 throughout, as
        Optax does.

    The other arguments, the arithmetic, the errors and the differences from Optax are those of
    `adamw`. The state is that of `adamw`, as in Optax.

    Raises:
      ValueError: also on construction, for momentum_decay with nesterov=False.

    Differs from PyTorch in: the two parts of a complex gradient share one |g|²; it has
    momentum_decay=0.004, and stores the product of the momenta, computed here from the count; its
    `NAdam(decoupled_weight_decay=True)` decays θ before the step, which is the same up to rounding.

    Reference: Dozat 2016, algorithm 2; section 3.1 for `momentum_decay`; Loshchilov & Hutter 2019,
    algorithm 2.
    """
    return alias("nadamw", scale_by_nadam, **locals())
