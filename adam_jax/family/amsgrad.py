"""AMSGrad: Reddi, Kale & Kumar 2018, On the Convergence of Adam and Beyond.

https://openreview.net/forum?id=ryQu7f-RZ
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
from adam_jax.rules.adam import Ema, MomentRule, Root
from adam_jax.rules.base import View
from adam_jax.slots import Slot
from adam_jax.validation import named_arguments


@frozen_pytree
class RunningMax:
    """The running maximum of the average as read: nu_max ← max(nu_max, read).

    Attributes:
      ema: the average; its `bias_correction` decides whether it is corrected before the maximum.
      correct_max: the rate b whose 1 - bᵗ divides the maximum on reading; None for no correction.
      of_max: 1 / (1 - bᵗ).
    """

    ema: Ema
    correct_max: DecayRate | None = None
    of_max: Number = None

    @property
    def slots(self) -> tuple[Slot, ...]:
        (nu,) = self.ema.slots
        nu_max = Slot("nu_max", magnitude=True, rate=1.0, maximum=True)
        return dataclasses.replace(nu, maximum=True), nu_max

    def at(self, count: Count) -> "RunningMax":
        if self.correct_max is None:
            return self
        return dataclasses.replace(self, of_max=self.correct_max.debiasing(count))

    def __call__(self, leaf: View, term: Array) -> Array:
        leaf.renew("nu_max", jnp.maximum(leaf.old["nu_max"], self.ema(leaf, term)))
        return self.read(leaf)

    def read(self, leaf: View) -> Array:
        nu_max = leaf.new["nu_max"]
        return nu_max if self.of_max is None else nu_max * self.of_max


def scale_by_amsgrad(
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    max_before_correction: bool = False,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    eps_hat: ArrayLike | None = None,
) -> Transformation:
    """Adam whose denominator never shrinks: it divides by the largest nû so far.

    u and the arguments are those of `amsgrad`, which explains all else. The state is
    `optax.ScaleByAmsgradState(count, mu, nu, nu_max)`.
    """
    rate = decay_rate("b2", b2)
    corrected_after = max_before_correction and bias_correction_nu
    corrected_before = bias_correction_nu and not max_before_correction
    nu = Ema("nu", rate, magnitude=True, bias_correction=corrected_before)
    rule = MomentRule(
        Ema("mu", decay_rate("b1", b1), bias_correction=bias_correction_mu),
        RunningMax(nu, rate if corrected_after else None),
        Root.of(eps, eps_root, eps_hat, rate if bias_correction_nu else None),
    )
    return scale_by_rule(rule, optax.ScaleByAmsgradState, mu_dtype, nu_dtype, "scale_by_amsgrad")


@named_arguments
def amsgrad(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    max_before_correction: bool = False,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    eps_hat: ArrayLike | None = None,
    l2: ArrayLike | Schedule | None = None,
    weight_decay: ArrayLike | Schedule | None = None,
    mask: MaskLike = None,
    weight_decay_mask: MaskLike = None,
    scale_decay: bool = True,
) -> Transformation:
    """AMSGrad: Adam whose denominator never shrinks.

        mu ← b1·mu + (1-b1)·g            mû = mu / (1 - b1ᵗ)
        nu ← b2·nu + (1-b2)·|g|²         nû = nu / (1 - b2ᵗ)
        nu_max ← max(nu_max, nû)
        u  = mû / (√(nu_max + eps_root) + eps + eps_hat / √(1 - b2ᵗ))
        θ  ← θ - α_t·u, with weight_decay θ - α_t·(u + λ_t·θ)

    Args:
      b2: as in `adamw`. With a schedule, nu_max is the largest nû as its step read it; the paper's
        condition, that the denominator never shrinks, then still holds.
      eps: ε, added outside the root, in units of the gradient; ≥ 0. The paper has none.
      bias_correction_mu: False reads mu uncorrected, mû = mu, as the paper does.
      bias_correction_nu: False takes the maximum of nu uncorrected, as the paper does.
      max_before_correction: True: nu_max ← max(nu_max, nu), divided by 1 - b2ᵗ when it is read, as
        in PyTorch and Keras. The weight of a large first gradient then fades, instead of lasting
        forever.
      nu_dtype: storage format of nu and nu_max, as in `adamw`, but not `jnp.int4`.
      l2: as in `adam`.
      weight_decay: λ, as in `adamw`. None omits it and its entry in the state.

    The other arguments, the arithmetic and the errors are those of `adamw`. The state is that of
    `adam`, but with `optax.ScaleByAmsgradState`, as in Optax. `weight_decay` adds its entry before
    that of the learning rate; `update` then needs `params`.

    Differs from Optax as `adamw` does.
    Differs from PyTorch in: here the maximum is taken of the corrected nu, unless
    max_before_correction is True; the two parts of a complex gradient share one |g|²; it is
    `Adam(amsgrad=True)`, and with `weight_decay` `AdamW(amsgrad=True)`, whose default is 1e-2.

    Reference: Reddi, Kale & Kumar 2018, algorithm 2, which has no bias correction; Loshchilov &
    Hutter 2019, algorithm 2.
    """
    return alias("amsgrad", scale_by_amsgrad, **locals())
