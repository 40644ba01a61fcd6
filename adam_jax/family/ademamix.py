"""AdEMAMix: Pagliardini, Ablin & Grangier 2024, The AdEMAMix Optimizer: Better, Faster, Older.

https://arxiv.org/abs/2409.03137
"""

import dataclasses

import jax
import optax
from jax import Array
from jax.typing import ArrayLike
from optax import contrib

from adam_jax._types import Count, Number
from adam_jax.core.masks import MaskLike
from adam_jax.core.states import register
from adam_jax.core.transformation import Transformation, scale_by_rule
from adam_jax.family.alias import alias
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.pytrees import frozen_pytree
from adam_jax.rates import DecayRate, DecayRateLike, Schedule, decay_rate
from adam_jax.rules.adam import Ema, MomentRule, Root
from adam_jax.rules.base import View
from adam_jax.rules.hyperparameters import hyperparameter
from adam_jax.slots import Slot
from adam_jax.validation import named_arguments


@frozen_pytree
class TwoEmas:
    """A fast bias-corrected average plus alpha times a slow uncorrected one."""

    fast: DecayRate
    slow: DecayRate
    alpha: Number
    of_both: Number = None
    of_m2: Number = None

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("m1", rate=self.fast.complement), Slot("m2", rate=self.slow.complement))

    def at(self, count: Count) -> "TwoEmas":
        # One product per sum, see AheadEma: m̂1 + alpha·m2 = (m1 + of_m2·m2)·of_both.
        of_m2 = self.alpha * self.fast.correction(count)
        return dataclasses.replace(self, of_both=self.fast.debiasing(count), of_m2=of_m2)

    def __call__(self, leaf: View, term: Array) -> Array:
        m1 = leaf.average("m1", self.fast, term)
        m2 = leaf.average("m2", self.slow, term)
        return (m1 + self.of_m2 * m2) * self.of_both


def scale_by_ademamix(
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
    b3: DecayRateLike | Schedule = 0.9999,
    alpha: ArrayLike | Schedule = 6.0,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    *,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
) -> Transformation:
    """Adam with a second, slow average of the gradient.

    u and the arguments are those of `ademamix`, which explains all else. The state is Optax's
    `ScaleByAdemamixState(count, count_m2, m1, m2, nu)`.
    """
    weight = hyperparameter("alpha", alpha, instead="the paper's range is 4 to 10")
    second = Ema("nu", decay_rate("b2", b2), magnitude=True)
    first = TwoEmas(decay_rate("b1", b1), decay_rate("b3", b3, closed=True), weight)
    rule = MomentRule(first, second, Root.of(eps, eps_root))
    return scale_by_rule(rule, ScaleByAdemamixState, mu_dtype, nu_dtype, "scale_by_ademamix")


# Optax exports the function that makes this state, but not its type.
ScaleByAdemamixState = type(jax.eval_shape(contrib.scale_by_ademamix().init, ()))
SLOTS = {"m1": False, "m2": False, "nu": True}
register(ScaleByAdemamixState, slots=SLOTS, counts=["count", "count_m2"])


@named_arguments
def ademamix(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike | Schedule = 0.9,
    b2: DecayRateLike | Schedule = 0.999,
    b3: DecayRateLike | Schedule = 0.9999,
    alpha: ArrayLike | Schedule = 5.0,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    weight_decay: ArrayLike | Schedule = 0.0,
    mask: MaskLike = None,
    *,
    weight_decay_mask: MaskLike = None,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    scale_decay: bool = True,
) -> Transformation:
    """AdEMAMix: Adam with a second, slow average of the gradient.

        m1 ← b1·m1 + (1-b1)·g            m̂1 = m1 / (1 - b1ᵗ)
        m2 ← b3·m2 + (1-b3)·g            nu ← b2·nu + (1-b2)·|g|²         nû = nu / (1 - b2ᵗ)
        u  = (m̂1 + alpha·m2) / (√(nû + eps_root) + eps)
        θ  ← θ - α_t·(u + λ_t·θ)

    Args:
      b1: decay rate of the fast average m1, as in `adamw`.
      b3: decay rate of the slow average m2, per optimizer step, 0 ≤ b3 ≤ 1: a number, or a
        schedule. m2 is not corrected, also with a schedule, as in the paper.
      alpha: weight of the slow average, ≥ 0: a number, or a function of the number of completed
        optimizer steps. The paper warms up alpha and b3.
      mu_dtype: storage format of m1 and m2, as in `adamw`.

    The other arguments, the arithmetic, the errors and the differences from Optax are those of
    `adamw`. The state is that of `adamw`, but with `ScaleByAdemamixState`, as in Optax.

    Reference: Pagliardini et al. 2024, algorithm 1.
    """
    return alias("ademamix", scale_by_ademamix, **locals())
