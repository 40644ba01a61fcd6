"""Figure 1, left: logistic regression, a convex problem, with step sizes α/√t.

Section 6.1: L2-regularized multi-class logistic regression on the pixels, batches of 128. The paper
does not give the regularization strength; it is 1e-4 here.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adam_jax
from examples.mnist import data
from examples.shared.study import Piece, Result
from examples.studies.paper import race
from examples.studies.paper.claims import Claim
from examples.studies.paper.race import Best, Entrant, Scale, best, epochs_to, standings
from examples.studies.paper.training import Digits, Loss

L2 = 1e-4
SOURCE = "Kingma & Ba 2015, section 6.1, figure 1 left"
FULL = Scale(digits=8000, epochs=45, rates=13)  # The paper: 45 epochs of 60,000 digits.
FAST = Scale(digits=512, epochs=8, rates=3)


def decayed(learning_rate: Any) -> Any:
    """The schedule α/√t of a learning rate α that may be traced."""
    schedule = adam_jax.schedules.inverse_sqrt_schedule(1.0)
    return lambda count: learning_rate * schedule(count)


def adam(learning_rate: Any) -> optax.GradientTransformation:
    """Adam with the paper's decay rates, and step sizes α/√t."""
    return adam_jax.adam(decayed(learning_rate), b1=0.9, b2=0.999)


def sgd_nesterov(learning_rate: Any, momentum: float) -> optax.GradientTransformation:
    """SGD with Nesterov momentum, and step sizes α/√t."""
    return optax.sgd(decayed(learning_rate), momentum, nesterov=True)


def adagrad(learning_rate: Any) -> optax.GradientTransformation:
    """AdaGrad from an empty accumulator, as in its paper; a learning rate may be a schedule."""
    return optax.adagrad(learning_rate, initial_accumulator_value=0.0)


def adagrad_decayed(learning_rate: Any) -> optax.GradientTransformation:
    """AdaGrad with its step sizes, which already decay like 1/√t, divided by √t again."""
    return adagrad(decayed(learning_rate))


def grid(low: int, high: int) -> tuple[float, ...]:
    """Four learning rates a decade, from 10^low to 10^high."""
    return tuple(float(10.0**e) for e in np.arange(low, high + 0.1, 0.25))


SGD = {f"SGD Nesterov {m:g}": functools.partial(sgd_nesterov, momentum=m) for m in (0.9, 0.99)}
ENTRANTS = {
    "Adam": Entrant(adam, grid(-3, 0)),
    **{name: Entrant(sgd, grid(-2, 1)) for name, sgd in SGD.items()},
    "AdaGrad": Entrant(adagrad, grid(-3, 0)),
    # Section 6.1 does not say whether AdaGrad's step size also decays.
    "AdaGrad α/√t": Entrant(adagrad_decayed, grid(-2, 1)),
}


def loss(params: dict[str, jax.Array], batch: Digits, key: jax.Array) -> jax.Array:
    """Cross-entropy in nats, and L2/2·|θ|²."""
    del key
    logits = batch.pixels @ params["w"] + params["b"]
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()
    return entropy + L2 / 2 * optax.tree.norm(params, squared=True)


def model() -> tuple[Loss, Any]:
    """The loss and the initial parameters: zeros, as the problem is convex."""
    return loss, {"w": jnp.zeros((784, 10)), "b": jnp.zeros(10)}


def pieces(digits: data.Digits, scale: Scale, seed: int) -> list[Piece]:
    """A piece for each optimizer."""
    return race.pieces("figure1", ENTRANTS, model, digits, scale, seed, cost=4)


def title(scale: Scale) -> str:
    """The title of the plot."""
    return (
        f"Figure 1: logistic regression on {scale.digits:,} digits, batches of {scale.batch_size}"
    )


def claims(results: dict[str, Result]) -> list[Claim]:
    """The claims of section 6.1, decided by the results by optimizer."""
    bests = {name: best(result) for name, result in results.items()}
    sgd = min(SGD, key=lambda name: bests[name].costs[-1])  # Momentum is tuned, too.
    apart = bests["Adam"].costs[-1] / bests[sgd].costs[-1] - 1
    return [
        Claim(
            "Adam converges like SGD with Nesterov momentum (last costs within 5 %)",
            SOURCE,
            bool(abs(apart) <= 0.05),
            f"Adam's last cost is {apart:+.1%} relative to {sgd}; {standings(bests)}",
        ),
        *(both_faster(bests, sgd, adagrad) for adagrad in ("AdaGrad", "AdaGrad α/√t")),
    ]


def both_faster(bests: dict[str, Best], sgd: str, adagrad: str) -> Claim:
    """Adam's and SGD's claim over one reading of AdaGrad."""
    slow = bests[adagrad].costs
    fast = {name: bests[name].costs for name in ("Adam", sgd)}
    reached = {name: epochs_to(costs, slow[-1]) for name, costs in fast.items()}
    return Claim(
        f"both converge faster than {adagrad} (lower cost in the last epoch and over all epochs)",
        SOURCE,
        all(costs[-1] < slow[-1] and costs.mean() < slow.mean() for costs in fast.values()),
        f"mean cost of all epochs: {adagrad} {slow.mean():.4g}, "
        + ", ".join(f"{name} {costs.mean():.4g}" for name, costs in fast.items())
        + f"; epochs to the last cost of {adagrad}: "
        + ", ".join(f"{name} {n or 'never'}" for name, n in reached.items()),
    )
