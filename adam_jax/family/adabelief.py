"""AdaBelief: Zhuang et al. 2020, Adapting Stepsizes by the Belief in Observed Gradients.

https://arxiv.org/abs/2010.07468
"""

import optax
from jax import Array
from jax.typing import ArrayLike

from adam_jax._types import Number
from adam_jax.core.masks import MaskLike
from adam_jax.core.transformation import Transformation, scale_by_rule
from adam_jax.family.alias import alias
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.numerics import bounded, squared
from adam_jax.pytrees import frozen_pytree
from adam_jax.rates import DecayRateLike, Schedule, decay_rate
from adam_jax.rules.adam import AroundEma, Ema, MomentRule, NesterovEma, Root
from adam_jax.rules.base import View
from adam_jax.rules.hyperparameters import Unit, in_units_of
from adam_jax.validation import check_number, named_arguments


@frozen_pytree
class EmaOfSurprise(AroundEma):
    """The average of |g - mu|² plus a constant, with mu already updated in this step.

    Attributes:
      eps: added to the average in every step; it accumulates.
    """

    ema: Ema
    eps: Number = in_units_of(Unit.GRADIENT_SQUARED)

    def __call__(self, leaf: View, term: Array) -> Array:
        # The average weights a new term by 1-b, so eps / (1-b) adds exactly eps.
        surprise = squared(bounded(leaf.g - leaf.new["mu"], times=4))
        return self.ema(leaf, surprise + self.eps / self.ema.rate.complement)


def scale_by_belief(
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
    eps: ArrayLike = 1e-16,
    eps_root: ArrayLike = 1e-16,
    *,
    nesterov: bool = False,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
) -> Transformation:
    """Divides the averaged gradient by the size of the gradients' deviation from it.

    u and the arguments are those of `adabelief`, which explains all else. The state is
    `optax.ScaleByBeliefState(count, mu, nu)`.
    """
    first = Ema("mu", decay_rate("b1", b1))
    each = check_number("eps_root", eps_root, instead="the usual value is 1e-16")
    second = EmaOfSurprise(Ema("nu", decay_rate("b2", b2), magnitude=True), each)
    rule = MomentRule(NesterovEma(first) if nesterov else first, second, Root.of(eps))
    return scale_by_rule(rule, optax.ScaleByBeliefState, mu_dtype, nu_dtype, "scale_by_belief")


@named_arguments
def adabelief(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
    eps: ArrayLike = 1e-16,
    eps_root: ArrayLike = 1e-16,
    *,
    nesterov: bool = False,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    l2: ArrayLike | Schedule | None = None,
    weight_decay: ArrayLike | Schedule | None = None,
    weight_decay_mask: MaskLike = None,
) -> Transformation:
    """AdaBelief: divides the averaged gradient by the size of the gradients' deviation from it.

        mu ← b1·mu + (1-b1)·g                           mû = mu / (1 - b1ᵗ)
        nu ← b2·nu + (1-b2)·|g - mu|² + eps_root        nû = nu / (1 - b2ᵗ)
        u  = mû / (√nû + eps)
        θ  ← θ - α_t·u, with weight_decay θ - α_t·(u + λ_t·θ)

    Args:
      eps_root: added to nu in every step, in units of the gradient squared; ≥ 0. It accumulates in
        nu, up to eps_root / (1-b2).
      l2: as in `adam`.
      weight_decay: λ, as in `adamw`. None omits it and its entry in the state.
      weight_decay_mask: the leaves that decay by `weight_decay`: what `mask` is in `adamw`.

    The other arguments, the arithmetic and the errors are those of `adamw`. The state is that of
    `adam`, but with `optax.ScaleByBeliefState`, as in Optax. `weight_decay` adds its entry before
    that of the learning rate; `update` then needs `params`.

    With a schedule of b1, g - mu is of the mu of the same step, as in the paper.

    Differs from Optax as `adamw` does, and in: Optax has `weight_decay` only on its main branch
    (0.2.9.dev), also as a positional argument.

    Reference: Zhuang et al. 2020, algorithm 2, where the two ε are one number.
    """
    return alias("adabelief", scale_by_belief, **locals())
