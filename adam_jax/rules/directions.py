"""Directions: how the two moments of a `MomentRule` become an update."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from adam_jax.validation import check_number


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Root:
    """first / (√(second + eps_root) + eps): Kingma & Ba 2015, algorithm 1, for eps_root = 0.

    Attributes:
      eps: ε of the paper, outside the root.
      eps_root: Optax's second ε, inside the root.
    """

    eps: jax.typing.ArrayLike
    eps_root: jax.typing.ArrayLike

    @classmethod
    def of(cls, eps: jax.typing.ArrayLike, eps_root: jax.typing.ArrayLike) -> "Root":
        """Checks that both are finite and not negative."""
        return cls(
            check_number("eps", eps, instead="the usual value is 1e-8"),
            check_number("eps_root", eps_root, instead="0.0 leaves it out"),
        )

    def scalars(self, count: Any) -> Any:
        del count
        return ()

    def combine(self, first: jax.Array, second: jax.Array, scalars: Any) -> jax.Array:
        del scalars
        return first / (safe_sqrt(second + self.eps_root) + self.eps)


@jax.custom_jvp
def safe_sqrt(x: jax.Array) -> jax.Array:
    """√x, with the derivative 0 instead of infinity at 0.

    A gradient of zero makes nu zero; differentiating through the step (to learn a learning rate,
    say) would then multiply that infinity by zero. As a derivative of its own and not as a select
    around the argument: that costs every step, and a quarter more compile time.
    """
    return jnp.sqrt(x)


@safe_sqrt.defjvp
def _safe_sqrt_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    root = safe_sqrt(x)
    zero = root == 0
    return root, jnp.where(zero, 0, dx / jnp.where(zero, 1, 2 * root))
