"""Linear least squares: the distance of Adam's iterates to the exact solution.

Adam's step is about as long as the learning rate, however small the gradient is. On mini-batches a
constant rate therefore ends in a random walk around the solution, at a distance that the rate
determines; only a rate that decays to 0 converges. On all rows at once there is no noise, and Adam
reaches the solution but does not stay. The gradient is near 0 there, nu forgets the earlier larger
gradients, and dividing by so small a root makes the next steps too long.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adam_jax
from examples.shared import style
from examples.shared.study import Result
from examples.usage.basics import page

ROWS, COLUMNS, BATCH = 512, 20, 16
RATES = np.geomspace(1e-3, 1e-1, 9).astype(np.float32)
SHOWN = {4: style.BLUE, 8: style.VERMILION}  # of the rates: 0.01 and 0.1


def compute(setting: page.Setting) -> Result:
    """The distance to the solution by step, [rates, steps], of each schedule and kind of batch."""
    steps = 500 if setting.fast else 10_000
    rng = np.random.default_rng(setting.seed)
    # Columns of sizes 1 to 1/5, so some directions are steeper than others.
    table = rng.standard_normal((ROWS, COLUMNS)) * np.geomspace(1, 0.2, COLUMNS)
    targets = table @ rng.standard_normal(COLUMNS) + 0.5 * rng.standard_normal(ROWS)
    x, y = jnp.float32(table), jnp.float32(targets)
    solution = jnp.linalg.lstsq(x, y)[0]
    batches = rng.integers(0, ROWS, (steps, BATCH), np.int32)

    def loss_of(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(optax.squared_error(x @ w, y))

    def distances(tx: optax.GradientTransformation, stochastic: bool) -> jax.Array:
        """‖w - solution‖ / ‖solution‖ before each step, [steps]."""

        def one_step(carry, batch):
            w, state = carry
            rows = (x[batch], y[batch]) if stochastic else (x, y)
            grads = jax.grad(loss_of)(w, *rows)
            distance = jnp.linalg.norm(w - solution) / jnp.linalg.norm(solution)
            return adam_jax.step(tx, grads, state, w), distance

        w = jnp.zeros(COLUMNS)
        return jax.lax.scan(one_step, (w, tx.init(w)), batches)[1]

    schedules = {
        "constant": lambda rate: rate,
        "cosine": lambda rate: optax.cosine_decay_schedule(rate, steps),
    }
    return {
        f"{schedule}, {kind}": jax.jit(
            jax.vmap(lambda rate, s=of, k=kind: distances(adam_jax.adam(s(rate)), k == "batches"))
        )(jnp.asarray(RATES))[:, :: max(1, steps // 2000)]
        for schedule, of in schedules.items()
        for kind in ("batches", "all rows")
    } | {"stride": max(1, steps // 2000)}


def ends(result: Result, name: str) -> np.ndarray:
    """The final distance, [rates]: the root mean square of the last 2 % of the steps."""
    distances = np.array(result[name])
    return np.sqrt((distances[:, -max(1, distances.shape[1] // 50) :] ** 2).mean(axis=1))


def findings(result: Result) -> list[tuple[Any, str]]:
    """The final distances of constant rates, how they scale with the rate, the effect of decay."""
    constant, cosine = ends(result, "constant, batches"), ends(result, "cosine, batches")
    exact, exact_decayed = ends(result, "constant, all rows"), ends(result, "cosine, all rows")
    best = int(constant.argmin())
    high = RATES >= 0.009  # Smaller rates may not have arrived yet.
    order = np.polyfit(np.log(RATES[high]), np.log(constant[high]), 1)[0]
    return [
        (
            0.4 < order < 0.7,
            "on batches, a constant rate keeps a distance like that of a random walk, the root of"
            f" the rate: {constant[high][0]:.2g} at 0.01, {constant[-1]:.2g} at 0.1,"
            f" the power {order:.2f}",
        ),
        (
            cosine.min() < constant.min(),
            f"a decaying rate ends nearer than any constant rate: {cosine.min():.2g}, from"
            f" {RATES[cosine.argmin()]:.2g} down to 0; the best constant rate, {RATES[best]:.2g},"
            f" ends at {constant.min():.2g}",
        ),
        (
            exact[-1] > 3 * exact_decayed[-1],
            "the same holds without the noise of batches: the constant rate 0.1 ends at"
            f" {exact[-1]:.1g}, the decaying one at {exact_decayed[-1]:.1g}",
        ),
    ]


def picture(result: Result, path: Path) -> None:
    """Distances by step on batches and on all rows; final distances by rate."""
    figure, (batches, everything, by_rate) = style.panels(1, 3, height=2.9)
    for axis, kind in ((batches, "batches"), (everything, "all rows")):
        for i, colour in SHOWN.items():
            for schedule, dashes in (("constant", "-"), ("cosine", "--")):
                distances = result[f"{schedule}, {kind}"][i]
                steps = np.arange(len(distances)) * result["stride"]
                label = f"{RATES[i]:.2g}, {schedule}"
                axis.semilogy(steps, distances, dashes, color=colour, linewidth=1, label=label)
        axis.set(xlabel="step", ylabel="relative distance to the solution")
    batches.set_title(f"batches of {BATCH} rows")
    everything.set_title(f"all {ROWS} rows at each step")
    everything.legend(title="learning rate", loc="upper right")
    for kind, colour in (("batches", style.BLUE), ("all rows", style.VERMILION)):
        for schedule, dashes in (("constant", "o-"), ("cosine", "o--")):
            name = f"{schedule}, {kind}"
            by_rate.loglog(RATES, ends(result, name), dashes, color=colour, label=name)
    by_rate.set(xlabel="learning rate", ylabel="final relative distance")
    by_rate.set_ylim(top=3)
    by_rate.legend(loc="upper left", ncols=2)
    by_rate.set_title("final distance by learning rate")
    constant, cosine = (ends(result, f"{name}, batches").min() for name in ("constant", "cosine"))
    title = f"On batches the best constant rate ends {constant / cosine:.1f} times as far"
    style.save(figure, path, f"{title} from the least-squares solution as the best decaying one")
