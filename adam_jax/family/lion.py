"""Lion: Chen et al. 2023, Symbolic Discovery of Optimization Algorithms.

https://arxiv.org/abs/2302.06675
"""

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from adam_jax._types import Count, Leaf, Number, Scalars
from adam_jax.engine.compose import Decay, optimizer
from adam_jax.engine.masks import MaskLike
from adam_jax.engine.transformation import Transformation, scale_by_rule
from adam_jax.formats.policy import AT_LEAST_FLOAT32, SlotDType
from adam_jax.rules.arithmetic import DecayRate, DecayRateLike
from adam_jax.rules.base import Average, IrregularRule, Slots
from adam_jax.rules.hyperparameters import Schedule
from adam_jax.rules.pytrees import frozen_pytree, static
from adam_jax.slots import Slot
from adam_jax.validation import check_number
from adam_jax.xla.sign import sign


@frozen_pytree
class Lion(IrregularRule):
    """The sign of the average of mu and g, or what `mode` puts in the sign's place."""

    elementwise = True

    b1: DecayRate
    b2: DecayRate
    smooth_beta: Number
    mode: str = static()

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("mu", rate=self.b2.complement),)

    def scalars(self, count: Count) -> Scalars:
        return ()

    def renewed(self, slot: str, g: Array, old: Slots, new: Slots, scalars: Scalars) -> Average:
        return Average(self.b2, g)

    def update(self, g: Array, old: Slots, new: Slots, scalars: Scalars, param: Leaf) -> Array:
        x = self.b1.average(old["mu"], g)
        if self.mode == "hard":
            return sign(x)
        if self.mode == "smooth":
            return jnp.tanh(self.smooth_beta * x)
        if self.mode == "refined":
            return jnp.where(jnp.abs(x) < 1, x, sign(x))
        # Here and not at construction, where Optax's own test of it does not look.
        modes = "'hard', 'smooth' or 'refined'"
        raise ValueError(f"mode must be {modes}, got {self.mode!r}: the paper's is 'hard'.")


def scale_by_lion(
    b1: DecayRateLike = 0.9,
    b2: DecayRateLike = 0.99,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    *,
    mode: str = "hard",
    smooth_beta: ArrayLike | None = 1.0,
) -> Transformation:
    """Moves every parameter by the learning rate, in the direction of an average.

        u = sign(b1·mu + (1-b1)·g)       mu ← b2·mu + (1-b2)·g

    It takes a third to a tenth of Adam's learning rate, and more weight decay.

    Arithmetic is in float32 (float64 for float64 leaves), whatever the dtypes of gradient,
    parameter and state; only the update is rounded.

    Args:
      b1: weight of mu in the direction, 0 ≤ b1 ≤ 1.
      b2: decay rate of mu, per optimizer step, 0 ≤ b2 ≤ 1.
      mu_dtype: storage of mu: a floating-point dtype of at least 16 bits, `jnp.int8`, `jnp.int4`, a
        `Quantized`, `stochastic(dtype)` or `by_path({...})`. None is the parameter's dtype; the
        default is the parameter's dtype, at least float32.
      mode: what becomes of x = b1·mu + (1-b1)·g: "hard", its sign; "smooth", tanh(smooth_beta·x);
        "refined", x where |x| < 1, else its sign.
      smooth_beta: the factor in "smooth", ≥ 0, per unit of the gradient. None is 1.0.

    Returns:
      A transformation whose state is `optax.ScaleByLionState(count, mu)`.

    Raises:
      ValueError: here, for a number outside its range or a dtype that cannot store a moment; in
        `init` and `update`, for a leaf whose dtype has no arithmetic (8-bit floats), a gradient
        unlike the state, or an unknown mode.

    Differs from Optax in: rounding, within a few ulp of the exact algorithm; mu of 16-bit
    parameters is float32.

    Reference: Chen et al. 2023, algorithm 2.
    """
    beta = 1.0 if smooth_beta is None else smooth_beta
    beta = check_number("smooth_beta", beta, instead="the usual value is 1.0")
    # Nothing is corrected by 1 - b: it may be 0.
    rates = DecayRate.of("b1", b1, closed=True), DecayRate.of("b2", b2, closed=True)
    rule = Lion(*rates, beta, mode)
    return scale_by_rule(rule, optax.ScaleByLionState, mu_dtype, None)


def lion(
    learning_rate: optax.ScalarOrSchedule,
    b1: DecayRateLike = 0.9,
    b2: DecayRateLike = 0.99,
    mu_dtype: SlotDType = AT_LEAST_FLOAT32,
    weight_decay: ArrayLike | Schedule = 1e-3,
    mask: MaskLike = None,
    *,
    weight_decay_mask: MaskLike = None,
    mode: str = "hard",
    smooth_beta: ArrayLike | None = None,
    scale_decay: bool = True,
) -> Transformation:
    """Lion: moves every parameter by the learning rate, in the direction of an average.

        u = sign(b1·mu + (1-b1)·g)       mu ← b2·mu + (1-b2)·g
        θ ← θ - α_t·(u + λ_t·θ)

    It takes a third to a tenth of Adam's learning rate, and more weight decay.

    Arithmetic is in float32 (float64 for float64 leaves), whatever the dtypes of gradient,
    parameter and state; only the update is rounded.

    Args:
      learning_rate: α, per optimizer step: a number (below 0 for ascent), or a function of the
        number of optimizer steps completed so far (0 at the first).
      b1: weight of mu in the direction, 0 ≤ b1 ≤ 1.
      b2: decay rate of mu, per optimizer step, 0 ≤ b2 ≤ 1.
      mu_dtype: storage of mu: a floating-point dtype of at least 16 bits, `jnp.int8`, `jnp.int4`, a
        `Quantized`, `stochastic(dtype)` or `by_path({...})`. None is the parameter's dtype; the
        default is the parameter's dtype, at least float32.
      weight_decay: λ, decoupled weight decay, per optimizer step: a number (below 0 weights grow;
        0.0 turns it off), or a function of the optimizer steps completed so far.
      mask: the leaves that decay: a tree of booleans like the parameters, a prefix of it, or a
        function from the parameters to one, such as `decay_mask`. None decays all leaves.
      weight_decay_mask: `mask` by its newer name in Optax; give one of the two.
      mode: what becomes of x = b1·mu + (1-b1)·g: "hard", its sign; "smooth", tanh(smooth_beta·x);
        "refined", x where |x| < 1, else its sign.
      smooth_beta: the factor in "smooth", ≥ 0, per unit of the gradient. None is 1.0, and the
        default: a number would be in the state of `optax.inject_hyperparams`, where Optax's lion
        has none.
      scale_decay: False subtracts λ_t·θ itself, not α_t·λ_t·θ (fully decoupled). Its entry in the
        state is then the last.

    Returns:
      A transformation whose state is a tuple: `optax.ScaleByLionState(count, mu)`, then one entry
      for weight decay and one for the learning rate, each empty or the count of a schedule. It is
      the state of Optax's `lion`. `update` needs `params`.

    Raises:
      ValueError: here, for a number outside its range or a dtype that cannot store a moment; in
        `init` and `update`, for a leaf whose dtype has no arithmetic (8-bit floats), a gradient
        unlike the state, missing `params`, or an unknown mode.

    Differs from Optax in: rounding, within a few ulp of the exact algorithm; mu of 16-bit
    parameters is float32; a callable `mask` gets the parameters in `update` too.

    Reference: Chen et al. 2023, algorithm 2.
    """
    scaled = scale_by_lion(b1, b2, mu_dtype, mode=mode, smooth_beta=smooth_beta)
    decay = Decay.of(weight_decay, mask, weight_decay_mask, scale_decay)
    return optimizer(scaled, learning_rate, decay=decay)
