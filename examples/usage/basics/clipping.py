"""Vanishing and exploding gradients in a recurrent network that reads digits row by row.

The state passes through the same recurrent weights 28 times, and each backward pass multiplies the
gradient by them. Weights that shrink the state make the first rows' gradient vanish; weights that
stretch it make the gradient explode. `optax.clip_by_global_norm` bounds the norm of the gradient;
it cannot restore a vanished gradient.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import adam_jax
from examples.mnist import data
from examples.mnist.preprocessing import normalise
from examples.shared import style
from examples.shared.study import Result
from examples.usage.basics import page

ROWS, UNITS, CLIP = 28, 48, 1.0
# Gain of the initial recurrent weights.
GAINS = {1.0: style.BLUE, 1.5: style.GREEN, 2.0: style.VERMILION}
TRAINED = 2.0
RATES = {"SGD": np.geomspace(1e-6, 1.0, 7), "Adam": np.geomspace(1e-4, 1e-1, 7)}
CONSTRUCTORS = {"SGD": optax.sgd, "Adam": adam_jax.adam}


class RowReader(nnx.Module):
    """state ← relu(W·state + U·row + b) for each row of the image; logits from the last state."""

    def __init__(self, gain: float | jax.Array, rngs: nnx.Rngs):
        recurrent = nnx.initializers.normal(gain / UNITS**0.5)
        # Without a bias, rows without ink keep the state at 0, where relu has no gradient.
        bias = nnx.initializers.normal(0.1)
        self.read = nnx.Linear(ROWS, UNITS, bias_init=bias, rngs=rngs)
        self.recur = nnx.Linear(UNITS, UNITS, use_bias=False, kernel_init=recurrent, rngs=rngs)
        self.out = nnx.Linear(UNITS, 10, rngs=rngs)

    def __call__(self, images: jax.Array, nudges: jax.Array) -> jax.Array:
        """Logits [batch, 10].

        Args:
          images: [batch, 28, 28].
          nudges: zeros added to the state after each row, [28, batch, units], to differentiate by.
        """
        rows = self.read(images).swapaxes(0, 1)  # [28, batch, units]

        def one_row(state, inputs):
            row, nudge = inputs
            return nnx.relu(self.recur(state) + row) + nudge, None

        start = jnp.zeros(rows.shape[1:])
        return self.out(jax.lax.scan(one_row, start, (rows, nudges))[0])


def loss_of(params, nudges: jax.Array, graph, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of a batch."""
    logits = nnx.merge(graph, params)(images, nudges)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(tx, graph, params, images: jax.Array, labels: jax.Array, order: jax.Array):
    """The loss and the gradient's norm before clipping, [steps] each."""

    def one_step(carry, batch):
        params, state = carry
        nudges = jnp.zeros((ROWS, len(batch), UNITS))
        loss, grads = jax.value_and_grad(loss_of)(
            params, nudges, graph, images[batch], labels[batch]
        )
        return adam_jax.step(tx, grads, state, params), (loss, optax.tree.norm(grads))

    return jax.lax.scan(one_step, (params, tx.init(params)), order)[1]


def compute(setting: page.Setting) -> Result:
    """The gradient by row at the start for each gain; training with and without clipping."""
    steps, batch = (20, 16) if setting.fast else (250, 32)
    images = normalise(setting.digits.train_images)[..., 0]
    labels = jnp.asarray(setting.digits.train_labels.astype(np.int32))
    order = data.batches(setting.key, len(images), batch)[:steps]
    graph = nnx.graphdef(nnx.eval_shape(lambda: RowReader(1.0, nnx.Rngs(0))))

    @jax.jit
    def start(gain: float, images: jax.Array, labels: jax.Array):
        """The initial parameters, and the gradient's norm at the state after each row, [28]."""
        params = nnx.state(RowReader(gain, nnx.Rngs(setting.key)))
        nudges = jnp.zeros((ROWS, len(images), UNITS))
        grads = jax.grad(loss_of, argnums=1)(params, nudges, graph, images, labels)
        return params, jnp.linalg.norm(grads, axis=(1, 2))

    @functools.partial(jax.jit, static_argnums=0)
    @functools.partial(jax.vmap, in_axes=(None, None, 0, None, None, None))  # all learning rates
    @functools.partial(
        jax.vmap, in_axes=(None, 0, None, None, None, None)
    )  # with clipping, and without: at infinity
    def runs(constructor, max_norm: jax.Array, rate: jax.Array, params, images, labels):
        tx = optax.chain(optax.clip_by_global_norm(max_norm), constructor(rate))
        return train(tx, graph, params, images, labels, order)

    some = images[:256], labels[:256]
    result: Result = {"by_row": {str(gain): start(gain, *some)[1] for gain in GAINS}}
    params, _ = start(TRAINED, *some)
    max_norms = jnp.array([np.inf, CLIP])
    for name, constructor in CONSTRUCTORS.items():
        rates = jnp.asarray(RATES[name].astype(np.float32))
        measured = runs(constructor, max_norms, rates, params, images, labels)
        losses, norms = (np.array(quantity) for quantity in measured)  # [rates, 2, steps]
        for i, clip in enumerate((False, True)):
            result[label(name, clip)] = {"losses": losses[:, i], "norms": norms[:, i]}
    return result


def label(name: str, clip: bool) -> str:
    """The name in the legend."""
    return f"{name}, clipped" if clip else name


def last_losses(run: Result) -> np.ndarray:
    """The mean loss of the last tenth of the steps, [rates]; NaN counts as infinite."""
    losses = np.array(run["losses"], float)
    losses = losses[:, -max(1, losses.shape[1] // 10) :].mean(axis=1)
    return np.where(np.isfinite(losses), losses, np.inf)


def findings(result: Result) -> list[tuple[Any, str]]:
    """How the gradient changes over the rows; the effect of clipping on SGD and on Adam."""
    change = {gain: norms[0] / norms[-1] for gain, norms in result["by_row"].items()}
    low, _, high = change.values()
    listed = ", ".join(f"{value:.1e} at gain {gain}" for gain, value in change.items())
    lines = [
        (
            low < 1e-3 and high > 1e2,
            f"the gradient at the first row, relative to the last, vanishes and explodes: {listed}",
        )
    ]
    norms = np.array(result["SGD, clipped"]["norms"], float)
    lines.append(
        (
            norms[0, 0] > CLIP,
            f"at gain {TRAINED} the gradient's norm is {norms[0, 0]:.2g} at the start;"
            f" clipping shortens it to {CLIP:g}",
        )
    )
    for name in CONSTRUCTORS:
        plain, clipped = (last_losses(result[label(name, clip)]) for clip in (False, True))
        lines.append(
            (
                clipped.min() < 0.95 * plain.min(),
                f"{name} reaches a lower loss with clipping, each at its best learning rate: loss"
                f" {clipped.min():.3f}, against {plain.min():.3f} without",
            )
        )
    return lines


def picture(result: Result, path: Path) -> None:
    """Gradients by row; norms and losses in training; losses by learning rate."""
    figure, (rows, norms, losses, by_rate) = style.panels(2, 2)
    for gain, colour in GAINS.items():
        values = result["by_row"][str(gain)]
        rows.semilogy(
            np.arange(1, ROWS + 1), values, "o-", markersize=3, color=colour, label=f"gain {gain:g}"
        )
    rows.set(xlabel="row of the image", ylabel="gradient norm at the state")
    rows.set_title("before training")
    for name, colour in (("SGD", style.ORANGE), ("Adam", style.BLUE)):
        for clip, dashes in ((False, "--"), (True, "-")):
            run, last = result[label(name, clip)], last_losses(result[label(name, clip)])
            best = int(last.argmin())
            text = f"{label(name, clip)}, {RATES[name][best]:.2g}"
            norms.semilogy(run["norms"][best], dashes, color=colour, linewidth=1, label=text)
            losses.semilogy(run["losses"][best], dashes, color=colour, linewidth=1, label=text)
            by_rate.loglog(
                RATES[name],
                np.where(np.isfinite(last), last, np.nan),
                f"o{dashes}",
                color=colour,
                label=label(name, clip),
            )
    norms.axhline(CLIP, color="black", linestyle=":")
    norms.set(xlabel="step", ylabel="gradient norm before clipping")
    losses.set(xlabel="step", ylabel="cross-entropy (nats)")
    by_rate.set(xlabel="learning rate", ylabel="final cross-entropy (nats)")
    norms.set_title(f"training from gain {TRAINED:g}, each at its best learning rate")
    losses.set_title("the same runs")
    by_rate.set_title("no point where the loss became infinite or NaN")
    for axis in (rows, losses, by_rate):
        axis.legend()
    title = "A recurrent network's gradients vanish or explode; clipping bounds them"
    style.save(figure, path, title)
