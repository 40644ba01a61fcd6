"""Lion: Chen et al. 2023, Symbolic Discovery of Optimization Algorithms.

https://arxiv.org/abs/2302.06675
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_jax.alias import alias
from adam_jax.engine.transformation import Transformation, scale_by_rule
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.rules.base import Average, DecayRate, DecayRateLike, MemberRule, Slot, Slots
from adam_jax.rules.pytrees import frozen_pytree, static
from adam_jax.validation import check_number


@frozen_pytree
class Lion(MemberRule):
    """The sign of the average of mu and g, or what `mode` puts in the sign's place."""

    b1: DecayRate
    b2: DecayRate
    smooth_beta: Any
    mode: str = static()

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("mu", rate=self.b2.complement),)

    def scalars(self, count: Any) -> Any:
        return ()

    def renewed(self, slot: str, g: jax.Array, old: Slots, new: Slots, scalars: Any) -> Average:
        return Average(self.b2, g)

    def update(
        self, g: jax.Array, old: Slots, new: Slots, scalars: Any, param: jax.Array | None
    ) -> jax.Array:
        x = self.b1.average(old["mu"], g)
        if self.mode == "hard":
            return jnp.sign(x)
        if self.mode == "smooth":
            return jnp.tanh(self.smooth_beta * x)
        if self.mode == "refined":
            return jnp.where(jnp.abs(x) < 1, x, jnp.sign(x))
        # Here and not at construction, where Optax's own test of it does not look.
        modes = "'hard', 'smooth' or 'refined'"
        raise ValueError(f"mode must be {modes}, got {self.mode!r}: the paper's is 'hard'.")

    def normalised(self, g: jax.Array, old: Slots, new: Slots, scalars: Any) -> jax.Array:
        return self.update(g, old, new, scalars, None)

    def eps_dominates(self, new: Slots, scalars: Any) -> None:
        return None


def scale_by_lion(
    b1: DecayRateLike = 0.9,
    b2: DecayRateLike = 0.99,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    *,
    mode: str = "hard",
    smooth_beta: jax.typing.ArrayLike | None = 1.0,
) -> Transformation:
    """Moves every parameter by the learning rate, in the direction of an average.

        u = sign(b1·mu + (1-b1)·g)       mu ← b2·mu + (1-b2)·g

    Args:
      b1: weight of mu in the direction, 0 ≤ b1 ≤ 1.
      b2: decay rate of mu, per optimizer step, 0 ≤ b2 ≤ 1.
      mu_dtype: see `scale_by_adam`.
      mode: "hard", the sign; "smooth", tanh(smooth_beta·x); "refined", x where |x| < 1, else the
        sign.
      smooth_beta: the factor in "smooth"; None is 1.0, and the default of `lion`: the numbers of
        `optax.inject_hyperparams(lion)` are those of Optax's, which has no such argument.

    Returns:
      A transformation whose state is `optax.ScaleByLionState(count, mu)`.

    Reference: Chen et al. 2023, algorithm 2. It takes a third to a tenth of Adam's
    learning rate, and more weight decay.
    """
    beta = 1.0 if smooth_beta is None else smooth_beta
    beta = check_number("smooth_beta", beta, instead="the usual value is 1.0")
    # Nothing is corrected by 1 - b: it may be 0.
    rates = DecayRate.of("b1", b1, closed=True), DecayRate.of("b2", b2, closed=True)
    rule = Lion(*rates, beta, mode)
    return scale_by_rule(rule, optax.ScaleByLionState, mu_dtype, None)


lion = alias("lion", scale_by_lion, weight_decay=1e-3, smooth_beta=None)
