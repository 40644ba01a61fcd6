"""AdaBelief: Zhuang et al. 2020, Adapting Stepsizes by the Belief in Observed Gradients.

https://arxiv.org/abs/2010.07468
"""

import jax
import optax

from adam_jax.alias import alias
from adam_jax.engine.transformation import Transformation, scale_by_rule
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.rules.base import DecayRate, DecayRateLike, MomentRule
from adam_jax.rules.directions import Root
from adam_jax.rules.moments import Ema, EmaOfSurprise, NesterovEma
from adam_jax.validation import check_number


def scale_by_belief(
    b1: DecayRateLike = 0.9,
    b2: DecayRateLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-16,
    eps_root: jax.typing.ArrayLike = 1e-16,
    *,
    nesterov: bool = False,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
) -> Transformation:
    """Divides the averaged gradient by how far gradients stray from it.

        nu ← b2·nu + (1-b2)·|g - mu|² + eps_root        u = mû / (√nû + eps)

    Args:
      b1: see `scale_by_adam`, as all that is not here.
      eps_root: added to nu in every step, and kept there: a steady eps_root / (1-b2) in the end.

    Returns:
      A transformation whose state is `optax.ScaleByBeliefState(count, mu, nu)`.

    Reference: Zhuang et al. 2020, algorithm 2, where the two ε are one number.
    """
    first = Ema(DecayRate.of("b1", b1))
    each = check_number("eps_root", eps_root, instead="the usual value is 1e-16")
    second = EmaOfSurprise(DecayRate.of("b2", b2), eps=each)
    rule = MomentRule(NesterovEma(first) if nesterov else first, second, Root.of(eps))
    return scale_by_rule(rule, optax.ScaleByBeliefState, mu_dtype, nu_dtype)


adabelief = alias("adabelief", scale_by_belief)
