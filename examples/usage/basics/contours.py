"""Paths of Adam, RMSprop, SGD and momentum on Rosenbrock's and Beale's functions.

Each optimizer gets its best learning rate. 33 rates are tried at once under `jax.vmap`; the best
one needs the fewest steps until it stays near the minimum. Many of Adam's rates arrive and leave
again; the page least-squares explains why.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adam_jax
from examples.shared import style
from examples.shared.study import Result
from examples.usage.basics import page

NEAR = 1e-2
RATES = np.geomspace(1e-5, 1.0, 33).astype(np.float32)
OPTIMIZERS: dict[str, Callable[[jax.Array], optax.GradientTransformation]] = {
    "SGD": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "RMSprop": optax.rmsprop,
    "Adam": adam_jax.adam,
}
COLOURS = dict(
    zip(OPTIMIZERS, (style.BLACK, style.GREEN, style.BLUE, style.VERMILION), strict=True)
)


def rosenbrock(p: jax.Array) -> jax.Array:
    """A curved valley, steep across and nearly flat along its floor: (1 - x)² + 100·(y - x²)²."""
    x, y = p
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def beale(p: jax.Array) -> jax.Array:
    """A plain between four steep walls, with a flat valley."""
    x, y = p
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


class Function(NamedTuple):
    """A function of two numbers, its start, its minimum, and the plotted range."""

    of: Callable[[jax.Array], jax.Array]
    start: tuple[float, float]
    minimum: tuple[float, float]
    window: tuple[tuple[float, float], tuple[float, float]]


FUNCTIONS = {
    "Rosenbrock": Function(rosenbrock, (-1.5, 2.0), (1.0, 1.0), ((-2.2, 1.8), (-1.2, 3.2))),
    "Beale": Function(beale, (1.0, 1.6), (3.0, 0.5), ((-1.4, 4.6), (-3.0, 3.0))),
}


def path_of(function: Function, tx: optax.GradientTransformation, steps: int) -> jax.Array:
    """The start and the point after each step, [steps + 1, 2]."""

    def one_step(carry, _):
        p, state = carry
        return adam_jax.step(tx, jax.grad(function.of)(p), state, p), p

    p = jnp.array(function.start)
    return jax.lax.scan(one_step, (p, tx.init(p)), None, length=steps + 1)[1]


def arrivals(paths: np.ndarray, minimum: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Steps until each path is first within NEAR, and until it stays there; NaN if never.

    Args:
      paths: [rates, steps + 1, 2].
      minimum: the target of the paths.

    Returns:
      The two numbers of steps, [rates] each.
    """
    near = np.linalg.norm(paths - np.array(minimum), axis=-1) < NEAR
    first = np.where(near.any(axis=1), near.argmax(axis=1), np.nan)
    since = np.where(near.all(axis=1), 0, near.shape[1] - (~near[:, ::-1]).argmax(axis=1))
    return first, np.where(near[:, -1], since, np.nan)


def compute(setting: page.Setting) -> Result:
    """The path at the best rate of each optimizer on each function; the arrivals of all rates."""
    steps = 2_000 if setting.fast else 20_000
    result: Result = {"most": steps}
    for name, function in FUNCTIONS.items():
        result[name] = {}
        for optimizer, constructor in OPTIMIZERS.items():

            def at(rate: jax.Array, function=function, constructor=constructor) -> jax.Array:
                return path_of(function, constructor(rate), steps)

            paths = np.array(jax.jit(jax.vmap(at))(jnp.asarray(RATES)))
            first, settled = arrivals(paths, function.minimum)
            distances = np.linalg.norm(paths[:, -1] - np.array(function.minimum), axis=1)
            # If no rate arrives, plot the path that ends nearest.
            best = np.nanargmin(distances if np.isnan(settled).all() else settled)
            shown = steps if np.isnan(settled[best]) else int(settled[best])
            result[name][optimizer] = {
                "rate": RATES[best],
                "steps": settled[best],
                "first": first,
                "settled": settled,
                "path": paths[best, : shown + 1][:: max(1, shown // 1000)],
            }
    return result


def findings(result: Result) -> list[tuple[Any, str]]:
    """Which optimizer arrives first, which with the most rates, which ones leave again."""
    lines = []
    for name in FUNCTIONS:
        runs = result[name]
        steps = {optimizer: run["steps"] for optimizer, run in runs.items()}
        listed = ", ".join(f"{k} {number(n)} ({runs[k]['rate']:.2g})" for k, n in steps.items())
        fewest = min(steps, key=lambda k: float("inf") if np.isnan(steps[k]) else steps[k])
        first = (
            f"{name}: Adam stays within {NEAR} of the minimum first; steps (best rate): {listed}"
        )
        lines.append((fewest == "Adam", first))
        arrived, stayed = (
            {k: int(np.isfinite(np.array(run[which])).sum()) for k, run in runs.items()}
            for which in ("first", "settled")
        )
        counts = ", ".join(f"{k} {arrived[k]} ({stayed[k]})" for k in runs)
        lines.append(
            (
                arrived["Adam"] == max(arrived.values()),
                f"{name}: Adam comes within {NEAR} with the most of the {len(RATES)} rates"
                f" (in brackets: and is there at the end): {counts}",
            )
        )
    return lines


def number(steps: float) -> str:
    """The number of steps, or that there is none."""
    return "not reached" if np.isnan(steps) else f"{steps:,.0f}"


def in_steps(steps: float) -> str:
    """The legend's text."""
    return "not reached" if np.isnan(steps) else f"{number(steps)} steps"


def picture(result: Result, path: Path) -> None:
    """Above, the paths on the contours; below, steps to arrival by learning rate."""
    figure, axes = style.panels(2, 2, height=3.2)
    for i, (name, function) in enumerate(FUNCTIONS.items()):
        contours, by_rate = axes[i], axes[2 + i]
        u, v = (np.linspace(*ends, 200) for ends in function.window)
        values = np.array(function.of(jnp.stack(np.meshgrid(u, v))))
        page.contours(contours, u, v, values, 1e-2)
        for optimizer, colour in COLOURS.items():
            run = result[name][optimizer]
            label = f"{optimizer}, rate {run['rate']:.2g}: {in_steps(run['steps'])}"
            contours.plot(*np.array(run["path"]).T, color=colour, linewidth=1.6, label=label)
            by_rate.loglog(RATES, run["first"], ":", color=colour)
            by_rate.loglog(RATES, run["settled"], "o-", markersize=3, color=colour, label=optimizer)
        contours.plot(*function.start, "o", color="black")
        contours.plot(*function.minimum, "*", color="black", markersize=13)
        contours.set(xlabel="x", ylabel="y", xlim=function.window[0], ylim=function.window[1])
        contours.set_title(f"{name}; dot: start, star: minimum")
        corner = "lower left" if name == "Rosenbrock" else "upper right"
        contours.legend(loc=corner, fontsize=8, labelspacing=0.25)
        by_rate.set(xlabel="learning rate", ylabel=f"steps to within {NEAR} of the minimum")
        by_rate.set_xlim(RATES[0] / 1.5, RATES[-1] * 1.5)
        by_rate.set_title("dotted: first arrival; solid: stays from this step on")
        by_rate.legend()
    style.save(figure, path, "Above: each optimizer at the best of 33 constant learning rates")
