"""Figure 4: the effect of bias correction in a variational autoencoder (section 6.4).

500 softplus units in the encoder and in the decoder, a Gaussian latent variable of 50 dimensions;
for each step size of a grid, b1 and b2, with and without the correction. nu starts at zero, so for
the first 1 / (1 - b2) steps the uncorrected √nu is √(1 - b2ᵗ) of the value it estimates. The first
uncorrected step is (1 - b1) / √(1 - b2) times the corrected one: at most 100 times here.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import adam_jax
from examples.mnist import data
from examples.shared.study import Piece, Result
from examples.studies.paper.claims import Claim
from examples.studies.paper.training import Digits, Loss, train

B1 = (0.0, 0.9)
B2 = (0.99, 0.999, 0.9999)
SOURCE = "Kingma & Ba 2015, section 6.4, figure 4"


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is computed; log10_rates are log10 of the step sizes."""

    digits: int
    epochs: int
    hidden: int
    latent: int
    log10_rates: tuple[float, ...]
    batch_size: int = 100


# The paper: 10 and 100 epochs, of 60,000 digits.
FULL = Scale(8000, 10, hidden=500, latent=50, log10_rates=(-5, -4, -3.5, -3, -2.5, -2, -1))
FAST = Scale(1000, 4, hidden=32, latent=8, log10_rates=(-4, -3, -2))


class VAE(nnx.Module):
    """Maps pixels to a Gaussian over latent variables, and a sample of it back to pixels."""

    def __init__(self, hidden: int, latent: int, rngs: nnx.Rngs):
        self.encoder = nnx.Linear(784, hidden, rngs=rngs)
        self.mean = nnx.Linear(hidden, latent, rngs=rngs)
        self.log_variance = nnx.Linear(hidden, latent, rngs=rngs)
        self.decoder = nnx.Linear(latent, hidden, rngs=rngs)
        self.logits = nnx.Linear(hidden, 784, rngs=rngs)

    def __call__(self, pixels: jax.Array, key: jax.Array) -> jax.Array:
        """The negative evidence lower bound of each digit in nats, float32 [batch].

        The pixels, 0 to 1, are the probabilities of ink; the key is for the sample.
        """
        h = jax.nn.softplus(self.encoder(pixels))
        mean, log_variance = self.mean(h), self.log_variance(h)
        z = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
        logits = self.logits(jax.nn.softplus(self.decoder(z)))
        reconstruction = optax.sigmoid_binary_cross_entropy(logits, pixels).sum(axis=1)
        divergence = (jnp.exp(log_variance) + mean**2 - 1 - log_variance).sum(axis=1) / 2
        return reconstruction + divergence


def model(hidden: int, latent: int, seed: int) -> tuple[Loss, Any]:
    """The loss, the mean of the bound over a batch in nats, and the initial parameters."""
    graph, params = nnx.split(VAE(hidden, latent, nnx.Rngs(seed)))

    def loss(params: Any, batch: Digits, key: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(batch.pixels, key).mean()

    return loss, params


corrected = adam_jax.adam
uncorrected = functools.partial(adam_jax.adam, bias_correction=False)
OPTIMIZERS = {"corrected": corrected, "uncorrected": uncorrected}


def panel(b1: float, b2: float) -> str:
    """The name of one panel of the figure."""
    return f"b1={b1:g} b2={b2:g}"


PANELS = [panel(b1, b2) for b1, b2 in itertools.product(B1, B2)]


def pieces(digits: data.Digits, scale: Scale, seed: int) -> list[Piece]:
    """A piece per panel and optimizer: the whole grid of step sizes at once."""
    # One loss function, so that all panels share two compiled programs.
    loss, params = model(scale.hidden, scale.latent, seed)

    def sweep(optimizer: str, b1: float, b2: float) -> Result:
        runs = len(scale.log10_rates)
        settings = {
            "learning_rate": 10.0 ** np.array(scale.log10_rates),
            "b1": np.full(runs, b1),
            "b2": np.full(runs, b2),
        }
        costs = train(
            loss,
            params,
            OPTIMIZERS[optimizer],
            settings,
            Digits.of(digits, scale.digits),
            epochs=scale.epochs,
            batch_size=scale.batch_size,
            seed=seed,
        )
        return {"log10_rates": scale.log10_rates, "costs": costs}

    return [
        Piece(f"figure4 {name} {panel(b1, b2)}", functools.partial(sweep, name, b1, b2), cost=25)
        for name, b1, b2 in itertools.product(OPTIMIZERS, B1, B2)
    ]


def title(scale: Scale) -> str:
    """The title of the plot."""
    return (
        f"Figure 4: bias correction in a variational autoencoder, {scale.hidden} units,"
        f" {scale.latent} latent variables, {scale.digits:,} digits; crosses: off the scale"
    )


def last_costs(result: Result) -> np.ndarray:
    """By step size: mean cost in the last epoch in nats, infinite if the run diverged."""
    return np.nan_to_num(np.array(result["costs"], float)[:, -1], nan=np.inf)


def claims(results: dict[str, Result]) -> list[Claim]:
    """The claims of section 6.4, decided by the results by optimizer and panel."""
    ends = {name: last_costs(result) for name, result in results.items()}
    rates = results[f"corrected {PANELS[0]}"]["log10_rates"]
    with_, without = (np.stack([ends[f"{o} {p}"] for p in PANELS]) for o in OPTIMIZERS)
    best_with, best_without = with_.min(axis=1), without.min(axis=1)

    # b2 = 0.9999, from the best corrected step size upwards.
    near_1 = [i for i, name in enumerate(PANELS) if name.endswith(f"b2={max(B2):g}")]
    larger = [(i, j) for i in near_1 for j in range(int(with_[i].argmin()), len(rates))]
    finite = [(i, j) for i, j in larger if np.isfinite(with_[i, j])]
    higher = [(i, j) for i, j in finite if without[i, j] > with_[i, j]]
    diverged = [(i, j) for i, j in higher if not np.isfinite(without[i, j])]

    # 1 % of the cost: a margin for the noise of one seed.
    best_no_worse = best_with <= 1.01 * best_without
    told = np.isfinite(with_) | np.isfinite(without)  # Except where both diverged.
    lost = told & (with_ > 1.01 * without)
    lost_at = [f"{lost[:, j].sum()} of {told[:, j].sum()} at 1e{r:g}" for j, r in enumerate(rates)]
    winner = min(ends, key=lambda name: ends[name].min())
    return [
        Claim(
            "b2 near 1 leads to instabilities without the correction (b2 = 0.9999: a higher cost"
            " without it, or divergence, at the step size that is the best with it and above)",
            SOURCE,
            len(higher) == len(finite) > 0,
            f"higher in {len(higher)} of {len(finite)} runs, {len(diverged)} of these diverged;"
            f" {len(larger) - len(finite)} more diverge with the correction too",
        ),
        Claim(
            "the best results come from a small 1 - b2 and the correction"
            " (the lowest cost of all runs: corrected, b2 ≥ 0.999)",
            SOURCE,
            winner.startswith("corrected") and not winner.endswith(f"b2={min(B2):g}"),
            f"lowest: {winner} with {ends[winner].min():.4g} nats",
        ),
        Claim(
            "with the correction Adam is equal or better (for each b1 and b2, at the best step size"
            " of each, within 1 %)",
            SOURCE,
            bool(best_no_worse.all()),
            f"in {best_no_worse.sum()} of {len(PANELS)} panels: "
            + "; ".join(
                f"{name} {a:.4g}, without {b:.4g}"
                for name, a, b in zip(PANELS, best_with, best_without, strict=True)
            ),
        ),
        Claim(
            "Adam is equal to or better than RMSProp with momentum, which lacks the correction,"
            " regardless of the setting (for each b1, b2 and step size, within 1 %)",
            SOURCE,
            not lost.any(),
            f"worse in {lost.sum()} of the {told.sum()} settings where not both diverged:"
            f" {', '.join(lost_at)}",
        ),
    ]
