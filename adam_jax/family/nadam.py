"""NAdam: Dozat 2016, Incorporating Nesterov Momentum into Adam.

https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_jax.alias import alias
from adam_jax.engine.transformation import Transformation, scale_by_rule
from adam_jax.family.adam import scale_by_adam
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.rules.base import Average, DecayRate, DecayRateLike, Moment, MomentRule, Slots
from adam_jax.rules.directions import Root
from adam_jax.rules.moments import Ema, EmaOfSquares
from adam_jax.rules.pytrees import frozen_pytree
from adam_jax.validation import check_number

TERMS = 56
"""Of the series below: 2⁻⁵⁶ is under float64's last place."""


@frozen_pytree
class ScheduledNesterovEma(Moment):
    """mu read one step ahead, with the momentum b_t = b·(1 - 0.96^(tψ) / 2) (Dozat, section 3.1).

    mu_{t+1}·b_{t+1} / (1 - Π_{t+1}) + g·(1 - b_t) / (1 - Π_t), with Π_t = b_1·b_2 ··· b_t. PyTorch
    keeps Π_t in its state. Here it is summed from t alone, so the state is Adam's:
    log Π_t = t·log b - Σ_j 2⁻ʲ/j·(r^j + r^2j + ··· + r^tj), with r = 0.96^ψ.
    """

    ema: Ema
    momentum_decay: Any

    @property
    def slots(self) -> tuple[Any, ...]:
        return self.ema.slots

    def scalars(self, count: Any) -> Any:
        log_r = jnp.asarray(self.momentum_decay * math.log(0.96), jnp.result_type(float))
        t_now = jnp.asarray(count, log_r.dtype) + 1
        j = jnp.arange(1, TERMS + 1, dtype=log_r.dtype)

        def factor(t: Any) -> Any:  # b_t / b
            return 1 - 0.5 * jnp.exp(t * log_r)

        def one_minus_product(ahead: int) -> Any:
            t = t_now + ahead
            step = jnp.where(log_r == 0, -1, j * log_r)  # ψ = 0: the sum has t equal terms
            # Both at once: on its own XLA would compute one while it compiles, with other bits.
            of_t, of_1 = jnp.expm1(jnp.stack([t * step, step]))
            terms = (1 + of_1) * of_t / of_1
            # t, with the derivative in ψ that the terms have there.
            at_0 = t + j * log_r * (t * (t + 1) / 2)
            sums = jnp.where(log_r == 0, at_0, terms)
            return self.ema.rate.correction(count, ahead, -jnp.sum(sums * 0.5**j / j))

        b = 1 - self.ema.rate.complement
        of_g = (1 - b * factor(t_now)) / one_minus_product(0)
        return b * factor(t_now + 1) / one_minus_product(1) / of_g, of_g

    def renewed(self, slot: str, g: jax.Array, old: Slots, new: Slots, scalars: Any) -> Average:
        return Average(self.ema.rate, g)

    def read(self, g: jax.Array, new: Slots, scalars: Any) -> jax.Array:
        ratio, of_g = scalars  # As in NesterovEma.
        return (g + ratio * new["mu"]) * of_g


def scale_by_nadam(
    b1: DecayRateLike = 0.9,
    b2: DecayRateLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    eps_root: jax.typing.ArrayLike = 0.0,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    *,
    nesterov: bool = True,
    momentum_decay: jax.typing.ArrayLike | None = None,
    nu_dtype: SlotDType = AT_LEAST_FLOAT32,
    eps_hat: jax.typing.ArrayLike | None = None,
) -> Transformation:
    """Adam that reads its average one step ahead.

        u = (b1·mu / (1 - b1ᵗ⁺¹) + (1-b1)·g / (1 - b1ᵗ)) / (√(nû + eps_root) + eps)

    Args:
      b1: see `scale_by_adam`, as all that is not here.
      nesterov: False is Adam.
      momentum_decay: ψ ≥ 0: lets the momentum of step t be b1·(1 - 0.96^(tψ) / 2), which grows from
        b1/2 to b1. PyTorch has 0.004, Keras 1.0. None keeps b1 throughout, as Optax does.

    Returns:
      A transformation whose state is `optax.ScaleByAdamState(count, mu, nu)`.

    Reference: Dozat 2016, algorithm 2.
    """
    if momentum_decay is None:
        numbers = (b1, b2, eps, eps_root, mu_dtype)
        return scale_by_adam(*numbers, nesterov=nesterov, nu_dtype=nu_dtype, eps_hat=eps_hat)
    if not nesterov:
        raise ValueError("momentum_decay must be None for nesterov=False: leave one of them out.")
    decay = check_number("momentum_decay", momentum_decay, instead="PyTorch's is 0.004")
    rate = DecayRate.of("b2", b2)
    first = ScheduledNesterovEma(Ema(DecayRate.of("b1", b1)), decay)
    rule = MomentRule(first, EmaOfSquares(rate), Root.of(eps, eps_root, eps_hat, rate))
    return scale_by_rule(rule, optax.ScaleByAdamState, mu_dtype, nu_dtype)


nadam = alias("nadam", scale_by_nadam)
nadamw = alias("nadamw", scale_by_nadam, weight_decay=1e-4)
