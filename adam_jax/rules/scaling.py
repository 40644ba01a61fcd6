"""Rules without slots: decoupled weight decay, the learning rate, bias correction on its own."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adam_jax.rules.base import DecayRate, Rule, Slots, static

Schedule = Callable[[jax.Array], jax.typing.ArrayLike]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Constant:
    """A hyperparameter that is one number for the whole run."""

    value: Any

    def at(self, count: Any) -> Any:
        """The number."""
        del count
        return self.value


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scheduled:
    """A hyperparameter that is a function of the optimizer steps completed so far (0, 1, 2, …)."""

    schedule: Schedule = static()

    def at(self, count: Any) -> Any:
        """The schedule's value for this step."""
        return self.schedule(count)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Identity(Rule):
    """u: a link that Optax's chain has, and that does nothing."""

    def step(
        self, g: jax.Array, old: Slots, scalars: Any, param: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        del old, scalars, param
        return g, {}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AddDecayedWeights(Rule):
    """u + λ·θ: decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2, line 12)."""

    weight_decay: Constant | Scheduled

    @property
    def needs_params(self) -> bool:
        return True

    def scalars(self, count: Any) -> Any:
        return self.weight_decay.at(count)

    def step(
        self, g: jax.Array, old: Slots, scalars: Any, param: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        del old
        assert param is not None  # needs_params
        return g + scalars * param, {}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScaleByLearningRate(Rule):
    """-α·u, or α·u where the sign is not to be flipped."""

    learning_rate: Constant | Scheduled
    flip_sign: bool = static(default=True)

    def scalars(self, count: Any) -> Any:
        learning_rate = self.learning_rate.at(count)
        return -learning_rate if self.flip_sign else learning_rate

    def step(
        self, g: jax.Array, old: Slots, scalars: Any, param: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        del old, param
        return scalars * g, {}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CorrectBias(Rule):
    """u·√(1 - b2^t) / (1 - b1^t): both bias corrections as one number.

    Kingma & Ba 2015, section 2, last paragraph.
    """

    b1: DecayRate
    b2: DecayRate

    def scalars(self, count: Any) -> Any:
        return jnp.sqrt(self.b2.correction(count)) / self.b1.correction(count)

    def step(
        self, g: jax.Array, old: Slots, scalars: Any, param: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        del old, param
        return scalars * g, {}
