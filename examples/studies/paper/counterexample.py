"""A convex problem in one dimension on which Adam converges to the worst point (Reddi et al. 2018).

Costs f_t(x) = g_t·x on [-1, 1]: a rare large gradient, and many small ones of the opposite sign
with a slightly smaller sum, so x = -1 is optimal. Adam divides the large gradient by a root that
this gradient has just increased, and the small ones by a root that has forgotten it, so together
the small ones move x further. AMSGrad never forgets.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adam_jax
from examples.mnist import data
from examples.shared.study import Piece, Result
from examples.studies.paper.claims import Claim

OPTIMIZERS = {
    "Adam": adam_jax.adam,
    # Algorithm 2 has no bias correction. With it, nu_max would stay at the first gradient of 1010,
    # and AMSGrad would be ten times slower.
    "AMSGrad": functools.partial(
        adam_jax.amsgrad, bias_correction_mu=False, bias_correction_nu=False
    ),
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """Gradients of the costs, and the hyperparameters for them; step sizes are α/√t.

    Attributes:
      large: the rare gradient.
      small: the others.
      period: one gradient per period is large; None: each is large with probability 0.01.
      b1: decay rate of mu.
      b2: decay rate of nu.
      rate: α.
      source: section of the paper.
    """

    large: float
    small: float
    period: int | None
    b1: float
    b2: float
    rate: float
    source: str

    def gradients(self, first: jax.Array, steps: int, key: jax.Array) -> jax.Array:
        """The gradients of the given number of steps after the first ones: float32 [steps]."""
        if self.period is None:
            large = jax.random.bernoulli(key, 0.01, (steps,))
        else:
            large = (first + jnp.arange(steps)) % self.period == 0
        return jnp.where(large, self.large, self.small)

    def regret(self, g: jax.Array, x: jax.Array) -> jax.Array:
        """Cost of x relative to -1, the best fixed point; expected cost if g is random."""
        if self.period is None:
            g = jnp.full_like(g, 0.01 * self.large + 0.99 * self.small)
        return g * (x + 1)


SYNTHETIC = "Reddi et al. 2018, section 5, synthetic experiments"
PROBLEMS = {
    # With the b1 = 0 and b2 = 1/(1 + C²) of the theorem's proof.
    "C = 3": Problem(3.0, -1.0, 3, 0.0, 0.1, 0.5, "Reddi et al. 2018, section 3, theorem 1"),
    "online": Problem(1010.0, -10.0, 101, 0.9, 0.99, 0.5, SYNTHETIC),
    "stochastic": Problem(1010.0, -10.0, None, 0.9, 0.99, 0.5, SYNTHETIC),
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is computed: chunks of CHUNK steps."""

    chunks: int
    seeds: int = 8  # of the stochastic problem
    points: int = 200  # kept of each curve


CHUNK = 3030  # steps; whole periods of all problems, so that their means show the trend
FULL, FAST = Scale(chunks=3300), Scale(chunks=66)


def play(problem: Problem, optimizer: str, scale: Scale, seed: int) -> Result:
    """Plays the game once for each seed, from x = 0.

    Returns:
      At `steps`, equally spaced on a logarithmic axis: `x`, the mean over the last CHUNK steps,
      and `regret`, the average over all steps so far; both [seeds, points].
    """
    schedule = adam_jax.schedules.inverse_sqrt_schedule(problem.rate)
    tx = OPTIMIZERS[optimizer](schedule, b1=problem.b1, b2=problem.b2)
    seeds = scale.seeds if problem.period is None else 1
    keys = jax.random.split(jax.random.key(seed), seeds)
    x, regret = play_chunks(keys, tx=tx, problem=problem, chunks=scale.chunks)
    # In float64: the sums grow to a million times their last addend.
    average = np.cumsum(np.asarray(regret, float), axis=1) / np.arange(1, scale.chunks + 1)
    kept = np.unique(np.geomspace(1, scale.chunks, scale.points).round().astype(int)) - 1
    steps = (kept + 1) * CHUNK
    return {"steps": steps, "x": np.asarray(x)[:, kept], "regret": average[:, kept]}


@functools.partial(jax.jit, static_argnames=("tx", "problem", "chunks"))
def play_chunks(
    keys: jax.Array, *, tx: optax.GradientTransformation, problem: Problem, chunks: int
) -> tuple[jax.Array, jax.Array]:
    """The means of x and of the regret over each chunk, float32 [keys, chunks] each."""

    def one_step(carry: Any, g: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        x, state = carry
        new_x, state = adam_jax.step(tx, g, state, x)
        return (optax.projections.projection_box(new_x, -1.0, 1.0), state), (
            x,
            problem.regret(g, x),
        )

    def one_chunk(carry: Any, chunk: jax.Array, key: jax.Array) -> Any:
        gradients = problem.gradients(chunk * CHUNK, CHUNK, jax.random.fold_in(key, chunk))
        carry, (x, regret) = jax.lax.scan(one_step, carry, gradients)
        return carry, (x.mean(), regret.mean())

    def one_game(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = jnp.zeros([])
        body = functools.partial(one_chunk, key=key)
        return jax.lax.scan(body, (x, tx.init(x)), jnp.arange(chunks))[1]

    return jax.vmap(one_game)(keys)


def pieces(digits: data.Digits, scale: Scale, seed: int) -> list[Piece]:
    """A piece for each problem and optimizer; none uses the digits."""
    del digits
    return [
        Piece(
            f"counterexample {problem} {optimizer}",
            functools.partial(play, PROBLEMS[problem], optimizer, scale, seed),
            cost=2,
        )
        for problem in PROBLEMS
        for optimizer in OPTIMIZERS
    ]


def title(scale: Scale) -> str:
    """The title of the plot."""
    return (
        f"Adam and AMSGrad on the counterexamples of Reddi et al., {scale.chunks * CHUNK:,} steps"
    )


def claims(results: dict[str, Result]) -> list[Claim]:
    """The paper's claims, decided by the results by problem and optimizer."""
    found = []
    for name, problem in PROBLEMS.items():
        adam, amsgrad = (results[f"{name} {optimizer}"] for optimizer in OPTIMIZERS)
        steps, x, y = adam["steps"], np.array(adam["x"]), np.array(amsgrad["x"])
        found.append(
            Claim(
                f"{name}: Adam's x goes to +1, the worst point, and AMSGrad's to -1, the best"
                " (last x of all seeds beyond 0.9)",
                problem.source,
                bool(x[:, -1].min() > 0.9 and y[:, -1].max() < -0.9),
                f"after {steps[-1]:,} steps, mean over {CHUNK}: Adam {spread(x[:, -1])},"
                f" AMSGrad {spread(y[:, -1])}",
            )
        )
        decade = int(np.searchsorted(steps, steps[-1] / 10))
        before, after = zip(*[mean_regret(r, decade) for r in (adam, amsgrad)], strict=True)
        found.append(
            Claim(
                f"{name}: the average regret of AMSGrad goes to 0, and Adam's does not (over the"
                " last decade of steps, AMSGrad's halves at least and Adam's does not)",
                problem.source,
                bool(after[0] > before[0] / 2 and abs(after[1]) <= abs(before[1]) / 2),
                f"from {steps[decade]:,} to {steps[-1]:,} steps: Adam {before[0]:.3g} to"
                f" {after[0]:.3g}, AMSGrad {before[1]:.3g} to {after[1]:.3g}",
            )
        )
    return found


def mean_regret(result: Result, i: int) -> tuple[float, float]:
    """The average regret at point i and at the last point, mean over the seeds."""
    regret = np.mean(result["regret"], axis=0)
    return float(regret[i]), float(regret[-1])


def spread(values: np.ndarray) -> str:
    """One number, or the range of several."""
    low, high = f"{values.min():.3f}", f"{values.max():.3f}"
    return low if low == high else f"{low} to {high}"
