"""Directions: how the two moments of a `MomentRule` become an update."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from adam_jax._types import Count, Number, Result, Scalars
from adam_jax.rules.base import Direction
from adam_jax.rules.pytrees import frozen_pytree, static
from adam_jax.rules.rates import DecayRate
from adam_jax.rules.squares import abs_squared
from adam_jax.validation import check_number


class Quotient(Direction):
    """A direction that divides the gradient as it divides the first moment.

    Attributes:
      squared: the second moment is a square.
    """

    squared: bool = True

    def normalised(self, g: Array, second: Array, scalars: Scalars) -> Array:
        return self.combine(g, second, scalars)

    def replaced(self, make: Callable[[bool], Direction]) -> Direction:
        return make(self.squared)


@frozen_pytree
class Root(Quotient):
    """first / (√(second + eps_root) + eps + eps_hat / √(1 - b^t)).

    Kingma & Ba 2015, algorithm 1, for eps_root = eps_hat = 0.

    Attributes:
      eps: ε of the paper, beside √nû.
      eps_root: Optax's second ε, inside the root; None for none, which XLA need not find out for
        each leaf.
      eps_hat: ε̂ of the paper's section 2 (Keras, TensorFlow), beside the root of the *uncorrected*
        moment: √nu + ε̂ is √(1 - b^t) times √nû + ε̂ / √(1 - b^t).
      rate: b of the second moment; None where that is not corrected, or there is no eps_hat.
    """

    eps: Number
    eps_root: Number = None
    eps_hat: Number = 0.0
    rate: DecayRate | None = None

    @classmethod
    def of(
        cls,
        eps: Number,
        eps_root: Number = 0.0,
        eps_hat: Number = None,
        rate: DecayRate | None = None,
    ) -> "Root":
        """Checks that all are finite and not negative; an eps_hat of None is none."""
        eps = check_number("eps", eps, instead="the usual value is 1e-8")
        eps_root = check_number("eps_root", eps_root, instead="0.0 leaves it out")
        eps_hat = 0.0 if eps_hat is None else eps_hat
        eps_hat = check_number("eps_hat", eps_hat, instead="None leaves it out")
        without_root = isinstance(eps_root, float) and eps_root == 0.0
        without_hat = isinstance(eps_hat, float) and eps_hat == 0.0
        return cls(eps, None if without_root else eps_root, eps_hat, None if without_hat else rate)

    def scalars(self, count: Count) -> Scalars:
        if self.rate is None:
            return self.eps + self.eps_hat
        return self.eps + self.eps_hat / jnp.sqrt(self.rate.correction(count))

    def combine(self, first: Array, second: Array, scalars: Scalars) -> Array:
        return safe_divide(first, self.root(second) + scalars)

    def eps_dominates(self, second: Array, scalars: Scalars) -> Array:
        return self.root(second) <= scalars

    def root(self, second: Array) -> Array:
        """√(second + eps_root)."""
        return safe_sqrt(second if self.eps_root is None else second + self.eps_root)


@frozen_pytree
class Ratio(Quotient):
    """first / second, for a second moment that is a size and not its square; 0 where both are 0."""

    squared = False

    def scalars(self, count: Count) -> Scalars:
        return ()

    def combine(self, first: Array, second: Array, scalars: Scalars) -> Array:
        return safe_divide(first, second)

    def eps_dominates(self, second: Array, scalars: Scalars) -> None:
        return None


@frozen_pytree
class Atan2(Quotient):
    """a·atan2(first, b·√second): like first / √second where that is small, and never above a·π/2.

    Everett et al. 2024, section 4.3 (Adam-atan2): no ε, and the same update for any scale of the
    gradient, down to the smallest numbers.

    Attributes:
      a: the factor outside.
      b: the factor of the root.
      squared: second is a square; False where it is a size, of which no root is taken.
    """

    a: Number
    b: Number
    squared: bool = static(default=True)

    def scalars(self, count: Count) -> Scalars:
        return ()

    def eps_dominates(self, second: Array, scalars: Scalars) -> None:
        return None

    def combine(self, first: Array, second: Array, scalars: Scalars) -> Array:
        root = self.b * (safe_sqrt(second) if self.squared else second)
        if not jnp.iscomplexobj(first):
            return self.a * _safe_atan2(first, root)
        # A complex number has a size and a direction; the size is what is divided.
        size = safe_sqrt(abs_squared(first))
        return self.a * _safe_atan2(size, root) * (first / jnp.where(size > 0, size, 1))


def _safe_atan2(y: Array, x: Array) -> Array:
    """atan2 with the derivative 0 instead of NaN where both are 0."""
    both_zero = (y == 0) & (x == 0)
    return jnp.arctan2(y, jnp.where(both_zero, 1, x))


@jax.custom_jvp
def safe_divide(x: Array, y: Array) -> Array:
    """x / y for y ≥ 0; 0, and the derivative 0, where y is 0.

    So it is where every ε is zero and all gradients were, or so small that float32 has no square of
    them (under 1e-19).
    """
    # And not "not y > 0": NaN stays visible. The quotient there is NaN or infinite, and dropped: as
    # this has a derivative of its own, nothing flows back through it.
    return jnp.where(y == 0, 0, x / y)


@safe_divide.defjvp
def _safe_divide_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> Result:
    # Not by way of 1/y², which is infinite from y = 1e-20 down, and then NaN times an x of 0.
    (x, y), (dx, dy) = primals, tangents
    quotient, zero = safe_divide(x, y), y == 0
    return quotient, jnp.where(zero, 0, (dx - quotient * dy) / jnp.where(zero, 1, y))


@jax.custom_jvp
def safe_sqrt(x: Array) -> Array:
    """√x, with the derivative 0 instead of infinity at 0.

    A gradient of zero makes nu zero; differentiating through the step (to learn a learning rate,
    say) would then multiply that infinity by zero. As a derivative of its own and not as a select
    around the argument: that costs every step, and a quarter more compile time.
    """
    return jnp.sqrt(x)


@safe_sqrt.defjvp
def _safe_sqrt_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    root = safe_sqrt(x)
    zero = root == 0
    return root, jnp.where(zero, 0, dx / jnp.where(zero, 1, 2 * root))
