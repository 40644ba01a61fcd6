"""AdEMAMix: Pagliardini, Ablin & Grangier 2024, The AdEMAMix Optimizer: Better, Faster, Older.

https://arxiv.org/abs/2409.03137
"""

from typing import Any

import jax
from optax import contrib

from adam_jax.alias import alias
from adam_jax.engine.states import register
from adam_jax.engine.transformation import Transformation, scale_by_rule
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.rules.base import Average, DecayRate, DecayRateLike, Moment, MomentRule, Slot, Slots
from adam_jax.rules.directions import Root
from adam_jax.rules.moments import EmaOfSquares
from adam_jax.rules.pytrees import frozen_pytree
from adam_jax.rules.scaling import Constant, Hyperparameter, Schedule, Scheduled, hyperparameter


@frozen_pytree
class ScheduledRate(Hyperparameter):
    """A decay rate that is a function of the optimizer steps completed."""

    rate: Scheduled

    def at(self, count: Any) -> Any:
        return DecayRate.of("b3", self.rate.at(count), closed=True)


@frozen_pytree
class TwoEmas(Moment):
    """A fast average, bias-corrected, plus alpha times a slow one as it is."""

    fast: DecayRate
    slow: Hyperparameter
    alpha: Hyperparameter

    @property
    def slots(self) -> tuple[Slot, ...]:
        slow = self.slow.value if isinstance(self.slow, Constant) else None
        rates = self.fast.complement, getattr(slow, "complement", None)
        return (Slot("m1", rate=rates[0]), Slot("m2", rate=rates[1]))

    def scalars(self, count: Any) -> Any:
        slow = self.slow.at(count)
        # One product per sum, see NesterovEma: m̂1 + alpha·m2 = (m1 + weight·m2)·debiasing.
        weight = self.alpha.at(count) * self.fast.correction(count)
        return self.fast.debiasing(count), slow, weight

    def renewed(self, slot: str, g: jax.Array, old: Slots, new: Slots, scalars: Any) -> Average:
        _, slow, _ = scalars
        return Average(self.fast if slot == "m1" else slow, g)

    def read(self, g: jax.Array, new: Slots, scalars: Any) -> jax.Array:
        debiasing, _, weight = scalars
        return (new["m1"] + weight * new["m2"]) * debiasing


def scale_by_ademamix(
    b1: DecayRateLike = 0.9,
    b2: DecayRateLike = 0.999,
    b3: DecayRateLike | Schedule = 0.9999,
    alpha: jax.typing.ArrayLike | Schedule = 6.0,
    eps: jax.typing.ArrayLike = 1e-8,
    eps_root: jax.typing.ArrayLike = 0.0,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    *,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
) -> Transformation:
    """Adam with a second, slow average of the gradient beside the first.

        m1 ← b1·m1 + (1-b1)·g            m2 ← b3·m2 + (1-b3)·g
        u  = (m̂1 + alpha·m2) / (√(nû + eps_root) + eps)

    Args:
      b1: decay rate of the fast average, per optimizer step.
      b2: see `scale_by_adam`, as all that is not here.
      b3: decay rate of the slow average, 0 ≤ b3 ≤ 1, or a function of the optimizer steps
        completed so far.
      alpha: weight of the slow average, ≥ 0, or a function likewise; the paper warms both up.
      mu_dtype: how m1 and m2 are stored.

    Returns:
      A transformation whose state is Optax's `ScaleByAdemamixState(count, count_m2, m1, m2, nu)`.

    Reference: Pagliardini et al. 2024, algorithm 1.
    """
    slow: Hyperparameter
    if callable(b3):
        slow = ScheduledRate(Scheduled(b3))
    else:
        slow = Constant(DecayRate.of("b3", b3, closed=True))
    weight = hyperparameter("alpha", alpha, instead="the paper's range is 4 to 10")
    first = TwoEmas(DecayRate.of("b1", b1), slow, weight)
    rule = MomentRule(first, EmaOfSquares(DecayRate.of("b2", b2)), Root.of(eps, eps_root))
    return scale_by_rule(rule, ScaleByAdemamixState, mu_dtype, nu_dtype)


# Optax exports the function that keeps this state, not its type.
ScaleByAdemamixState = type(jax.eval_shape(contrib.scale_by_ademamix().init, ()))
register(
    ScaleByAdemamixState,
    slots={"m1": False, "m2": False, "nu": True},
    counts=["count", "count_m2"],
)

ademamix = alias("ademamix", scale_by_ademamix, weight_decay=0.0, alpha=5.0)
