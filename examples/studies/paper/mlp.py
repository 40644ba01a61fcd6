"""Figure 2: a network with two hidden layers, ReLU and dropout: non-convex and noisy.

1000 units in each hidden layer, as in section 6.2; fewer digits, for two CPU cores. Dropout of the
hidden units is 0.5, which the paper does not state.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

import adam_jax
from examples.mnist import data
from examples.shared.study import Piece, Result
from examples.studies.paper import race
from examples.studies.paper.claims import Claim
from examples.studies.paper.race import Entrant, best, epochs_to, standings
from examples.studies.paper.training import Digits, Loss

SOURCE = "Kingma & Ba 2015, section 6.2, figure 2a"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale(race.Scale):
    """How much is computed: `width` units in each hidden layer."""

    width: int


# The paper: 200 epochs of 60,000 digits.
FULL = Scale(digits=8000, epochs=12, rates=5, width=1000)
FAST = Scale(digits=512, epochs=8, rates=3, width=64)


def sgd_nesterov(learning_rate: Any) -> optax.GradientTransformation:
    """SGD with Nesterov momentum."""
    return optax.sgd(learning_rate, momentum=0.9, nesterov=True)


def adagrad(learning_rate: Any) -> optax.GradientTransformation:
    """AdaGrad from an empty accumulator, as in its paper."""
    return optax.adagrad(learning_rate, initial_accumulator_value=0.0)


def adadelta(learning_rate: Any) -> optax.GradientTransformation:
    """AdaDelta with the decay of its paper, which has no learning rate: it is 1."""
    return optax.adadelta(learning_rate, rho=0.95)


ENTRANTS = {
    "Adam": Entrant(adam_jax.adam, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
    "RMSProp": Entrant(optax.rmsprop, (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)),
    "SGD Nesterov": Entrant(sgd_nesterov, (1e-2, 3e-2, 1e-1, 3e-1, 1.0)),
    "AdaGrad": Entrant(adagrad, (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)),
    "AdaDelta": Entrant(adadelta, (0.3, 1.0, 3.0, 10.0, 30.0)),
}


class MLP(nnx.Module):
    """784-width-width-10, half of the hidden units dropped at each step."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        he_normal = nnx.initializers.he_normal()
        self.hidden1 = nnx.Linear(784, width, kernel_init=he_normal, rngs=rngs)
        self.hidden2 = nnx.Linear(width, width, kernel_init=he_normal, rngs=rngs)
        self.out = nnx.Linear(width, 10, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, pixels: jax.Array, key: jax.Array) -> jax.Array:
        """Logits float32 [batch, 10]; the key decides which units are dropped."""
        key1, key2 = jax.random.split(key)
        h = self.dropout(nnx.relu(self.hidden1(pixels)), rngs=key1)
        h = self.dropout(nnx.relu(self.hidden2(h)), rngs=key2)
        return self.out(h)


def model(width: int, seed: int) -> tuple[Loss, Any]:
    """The loss, cross-entropy in nats with dropout, and the initial parameters."""
    graph, params = nnx.split(MLP(width, nnx.Rngs(seed)))

    def loss(params: Any, batch: Digits, key: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, params)(batch.pixels, key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    return loss, params


def pieces(digits: data.Digits, scale: Scale, seed: int) -> list[Piece]:
    """A piece for each optimizer."""
    build = functools.partial(model, scale.width, seed)
    return race.pieces("figure2", ENTRANTS, build, digits, scale, seed, cost=30)


def title(scale: Scale) -> str:
    """The title of the plot."""
    return (
        f"Figure 2: 784-{scale.width}-{scale.width}-10 with dropout on {scale.digits:,} digits"
        f" (the paper: 1000 units, 60,000 digits)"
    )


def claims(results: dict[str, Result]) -> list[Claim]:
    """The claims of section 6.2, decided by the results by optimizer."""
    bests = {name: best(result) for name, result in results.items()}
    others = {name: run for name, run in bests.items() if name != "Adam"}
    second = min(others, key=lambda name: others[name].costs[-1])
    adam, target = bests["Adam"].costs, others[second].costs[-1]
    return [
        Claim(
            "Adam makes faster progress than all others (the lowest cost in the last epoch)",
            SOURCE,
            bool(adam[-1] < target),
            f"{standings(bests)}; Adam reaches the last cost of the best other, {second},"
            f" {'after epoch ' + str(n) if (n := epochs_to(adam, target)) else 'never'}"
            f" of {len(adam)}",
        ),
        Claim(
            "Adam is the fastest from the start (the lowest cost over the first third of epochs)",
            f"{SOURCE}, read from its curves",
            min(bests, key=lambda name: early(bests[name].costs)) == "Adam",
            ", ".join(f"{name} {early(run.costs):.4g}" for name, run in bests.items()),
        ),
    ]


def early(costs: np.ndarray) -> float:
    """The mean cost over the first third of the epochs."""
    return float(costs[: -(-len(costs) // 3)].mean())
