"""A 2-3-1 network on 100 random points: the path of every parameter.

Is a point inside a disc? Three hidden tanh units are three lines in the plane, enough for a rounded
triangle around the disc. The network has 2·3 + 3 + 3·1 + 1 = 13 parameters, few enough to plot all.
"""

import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree
from matplotlib.patches import Circle

import adam_jax
from examples import style
from examples.basics import page
from examples.study import Result

LEARNING_RATE = 0.03
RADIUS = (2 / np.pi) ** 0.5  # Half of the square [-1, 1]² is inside.
LAYERS = {"hidden biases": 3, "hidden weights": 6, "output bias": 1, "output weights": 3}


class Network(nnx.Module):
    """Two inputs, three tanh units, one logit."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(2, 3, rngs=rngs)
        self.out = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, points: jax.Array) -> jax.Array:
        """Points [count, 2] to logits [count]."""
        return self.out(nnx.tanh(self.hidden(points)))[:, 0]


def compute(setting: page.Setting) -> Result:
    """Trains from many starts at once; keeps the path of the first."""
    steps, starts = (300, 8) if setting.fast else (3000, 64)
    rng = np.random.default_rng(setting.seed)
    points = rng.uniform(-1, 1, (100, 2)).astype(np.float32)
    inside = (np.linalg.norm(points, axis=1) < RADIUS).astype(np.float32)
    first = rng.standard_normal((starts, sum(LAYERS.values())), np.float32)
    graph, shapes = nnx.split(nnx.eval_shape(lambda: Network(nnx.Rngs(0))))
    unravel = ravel_pytree(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))[1]

    def logits_of(theta: jax.Array, where: Any) -> jax.Array:
        return nnx.merge(graph, unravel(theta))(where)

    def loss_of(theta: jax.Array) -> jax.Array:
        return optax.sigmoid_binary_cross_entropy(logits_of(theta, points), inside).mean()

    def train(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The parameters [steps + 1, 13] and the loss [steps + 1] from one start."""
        tx = adam_jax.adam(LEARNING_RATE)

        def one_step(carry, _):
            theta, state = carry
            loss, grads = jax.value_and_grad(loss_of)(theta)
            return adam_jax.step(tx, grads, state, theta), (theta, loss)

        return jax.lax.scan(one_step, (theta, tx.init(theta)), None, length=steps + 1)[1]

    thetas, losses = jax.jit(jax.vmap(train))(first)
    way, stride = np.array(thetas[0]), max(1, steps // 300)
    end = way[-1]

    # The plane through the end point that is closest to the path.
    _, spread, axes = np.linalg.svd(way - end, full_matrices=False)
    on_plane = (way - end) @ axes[:2].T
    low, high = on_plane.min(axis=0), on_plane.max(axis=0)
    u, v = np.linspace(low - 0.25 * (high - low), high + 0.25 * (high - low), 80).T
    plane = end + u[None, :, None] * axes[0] + v[:, None, None] * axes[1]
    side = np.linspace(-1, 1, 81, dtype=np.float32)
    square = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    logits = jax.jit(logits_of)
    return {
        "points": points,
        "inside": inside,
        "accuracy": ((logits(end, points) > 0) == (inside > 0.5)).mean(),
        "first_move": np.abs(way[1] - way[0]),
        "largest_move": np.abs(np.diff(way, axis=0)).max(),
        "theta": way[::stride],
        "stride": stride,
        "loss": losses[0],
        "final_losses": np.array(losses)[:, -1],
        "in_plane": (spread[:2] ** 2).sum() / (spread**2).sum(),
        "on_plane": on_plane[::stride],
        "u": u,
        "v": v,
        "plane_loss": jax.jit(jax.vmap(jax.vmap(loss_of)))(plane.astype(np.float32)),
        "side": side,
        "logits": logits(end, square).reshape(len(side), len(side)),
    }


def findings(result: Result) -> list[str]:
    """The loss, the size of a step, and the starts that got stuck."""
    loss, final = result["loss"], np.array(result["final_losses"])
    first = np.array(result["first_move"])
    best, bound = final.min(), (1 - 0.9) / (1 - 0.999) ** 0.5
    stuck = int((final > best + 0.1).sum())
    return [
        page.claim(
            loss[-1] < loss[0] / 4,
            f"the loss falls to less than a quarter: {loss[0]:.3f} to {loss[-1]:.3f} nats,"
            f" {result['accuracy']:.0%} of the points classified correctly",
        ),
        page.claim(
            bool(np.allclose(first, LEARNING_RATE, rtol=1e-3)),
            f"the first step moves each parameter by the learning rate, {LEARNING_RATE}:"
            f" {first.min():.5f} to {first.max():.5f}",
        ),
        page.claim(
            result["largest_move"] < bound * LEARNING_RATE,
            "no later step moves a parameter by more than the paper's bound (section 2.1),"
            f" (1 - b1) / √(1 - b2) = {bound:.2f} times the learning rate:"
            f" {result['largest_move'] / LEARNING_RATE:.2f} times at most",
        ),
        page.claim(
            result["in_plane"] > 0.9,
            f"the path is nearly flat: a plane holds {result['in_plane']:.1%} of its variation",
        ),
        page.claim(
            stuck > 0,
            f"the start matters: {stuck} of {len(final)} starts end more than 0.1 above the best"
            f" loss, {best:.3f} (median {np.median(final):.3f}, worst {final.max():.3f})",
        ),
    ]


def picture(result: Result, path: Path) -> None:
    """The learned function; the loss; each parameter; the path in its principal plane."""
    figure, (where, losses, parameters, plane) = page.panels(2, 2)
    steps = np.arange(len(result["loss"]))
    points, inside = np.array(result["points"]), np.array(result["inside"]) > 0.5
    side = result["side"]
    p = 1 / (1 + np.exp(-np.array(result["logits"])))
    shown = where.contourf(side, side, p, np.linspace(0, 1, 11), cmap="RdBu_r", alpha=0.6)
    figure.colorbar(shown, ax=where, label="probability of inside")
    where.add_patch(Circle((0, 0), RADIUS, fill=False, linestyle="--"))
    where.plot(
        *points[inside].T, "o", color=style.VERMILION, markeredgecolor="white", label="inside"
    )
    where.plot(*points[~inside].T, "s", color=style.BLUE, markeredgecolor="white", label="outside")
    theta = np.array(result["theta"])
    biases, weights = theta[-1, :3], theta[-1, 3:9].reshape(2, 3)
    x, y = np.meshgrid(side, side)
    for j in range(3):
        unit = biases[j] + x * weights[0, j] + y * weights[1, j]
        where.contour(x, y, unit, [0.0], colors="black", linewidths=1)
    where.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
    where.set_title("solid: zeros of the hidden units; dashed: true boundary", fontsize=10)

    losses.loglog(steps + 1, result["loss"], color=style.BLUE)
    losses.set(xlabel="step", ylabel="cross-entropy (nats)")
    losses.set_title("training loss", fontsize=10)

    ends = list(itertools.accumulate(LAYERS.values(), initial=0))
    colours = (style.SKY, style.BLUE, style.GREEN, style.VERMILION)
    for (name, count), begin, colour in zip(LAYERS.items(), ends[:-1], colours, strict=True):
        lines = theta[:, begin : begin + count]
        drawn = parameters.plot(np.arange(len(theta)) * result["stride"], lines, color=colour)
        drawn[0].set_label(name)
    parameters.set(xlabel="step", ylabel="parameter")
    parameters.set_title("the 13 parameters", fontsize=10)
    style.legend(parameters)

    losses_there = np.array(result["plane_loss"])
    page.contours(plane, result["u"], result["v"], losses_there, losses_there.min())
    way = np.array(result["on_plane"])
    plane.plot(*way.T, color=style.VERMILION)
    plane.plot(*way[0], "o", color="black", label="start")
    plane.plot(*way[-1], "*", color="black", markersize=12, label="end")
    plane.set(xlabel="first principal axis", ylabel="second principal axis")
    plane.set_title(
        f"trajectory, principal plane ({result['in_plane']:.1%} of its variance)", fontsize=10
    )
    style.legend(plane)
    title = f"A 2-3-1 network learns a disc: 13 parameters, {len(steps) - 1:,} steps of Adam"
    page.save(figure, title, path)
