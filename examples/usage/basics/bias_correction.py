"""The effect of bias correction on the first 100 steps.

Both averages start at 0: after t steps mu is E[g]·(1 - b1ᵗ) and nu is E[g²]·(1 - b2ᵗ). Divided by
these factors they are unbiased from the first step on. Without the correction the step is too long
by (1 - b1ᵗ) / √(1 - b2ᵗ), because nu has the longer memory and is further below its true value.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import adam_jax
from examples.mnist import data
from examples.mnist.models import MLP
from examples.mnist.preprocessing import normalise
from examples.shared import style
from examples.shared.study import Result
from examples.usage.basics import page

STEPS, B1, B2 = 100, 0.9, 0.999
MEAN, DEVIATION = 0.3, 1.0  # of the gradients, in the first experiment
RATES = np.geomspace(1e-4, 1e-1, 10).astype(np.float32)
KINDS = {"with": style.BLUE, "without": style.VERMILION}


def averages(gradients: jax.Array) -> Result:
    """The averages and the update by step, averaged over many copies.

    Args:
      gradients: of known mean and deviation, [steps, copies].
    """
    t = jnp.arange(1, STEPS + 1, dtype=jnp.float32)[:, None]

    def states(tx: Any) -> Any:
        def one_step(state, gradient):
            update, state = tx.update(gradient, state)
            return state, (update, state.mu, state.nu)

        return jax.lax.scan(one_step, tx.init(gradients[0]), gradients)[1]

    corrected, mu, nu = states(adam_jax.scale_by_adam(B1, B2))
    uncorrected, _, _ = states(adam_jax.scale_by_adam(B1, B2, bias_correction=False))
    quantities = {"mu": mu, "mu_hat": mu / (1 - B1**t), "nu": nu, "nu_hat": nu / (1 - B2**t)}
    ratios = {"ratio": uncorrected / corrected}
    return {
        **{name: values.mean(axis=1) for name, values in quantities.items()},
        **{name: jnp.median(values, axis=1) for name, values in ratios.items()},
    }


def digit_losses(
    setting: page.Setting, rates: np.ndarray, start: Any, bias_correction: bool
) -> jax.Array:
    """The loss of an MLP on real digits, [rates, steps], for all learning rates at once."""
    batch = 16 if setting.fast else 64
    images = normalise(setting.digits.train_images)
    labels = jnp.asarray(setting.digits.train_labels.astype(np.int32))
    order = data.batches(setting.key, len(images), batch)[:STEPS]
    graph = nnx.graphdef(nnx.eval_shape(lambda: MLP(nnx.Rngs(0))))

    def loss_of(params, x, y):
        logits = nnx.merge(graph, params)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def train(rates, start, images, labels, order) -> jax.Array:
        def at(rate: jax.Array) -> jax.Array:
            tx = adam_jax.adam(rate, B1, B2, bias_correction=bias_correction)

            def one_step(carry, batch):
                params, state = carry
                loss, grads = jax.value_and_grad(loss_of)(params, images[batch], labels[batch])
                return adam_jax.step(tx, grads, state, params), loss

            return jax.lax.scan(one_step, (start, tx.init(start)), order)[1]

        return jax.lax.map(at, rates)

    return train(rates, start, images, labels, order)


def compute(setting: page.Setting) -> Result:
    """Both experiments."""
    gradients = MEAN + DEVIATION * setting.normal(STEPS, 4096)
    start = jax.jit(lambda: nnx.state(MLP(nnx.Rngs(setting.key))))()
    rates = RATES[::3] if setting.fast else RATES
    return (
        jax.jit(averages)(gradients)
        | {"rates": rates}
        | {f"losses_{kind}": digit_losses(setting, rates, start, kind == "with") for kind in KINDS}
    )


def too_long() -> np.ndarray:
    """The factor by which the uncorrected step is too long, from the formula: [steps]."""
    t = np.arange(1, STEPS + 1)
    return (1 - B1**t) / np.sqrt(1 - B2**t)


def last_losses(result: Result, kind: str) -> np.ndarray:
    """The mean loss of the last ten of the 100 steps, [rates]; NaN counts as infinite."""
    losses = np.array(result[f"losses_{kind}"])[:, -10:].mean(axis=1)
    return np.where(np.isnan(losses), np.inf, losses)


def findings(result: Result) -> list[tuple[Any, str]]:
    """The error of the averages, the length of the steps, and the loss on digits."""
    second = MEAN**2 + DEVIATION**2
    nu_hat_error = np.abs(np.array(result["nu_hat"]) / second - 1).max()
    ratio = np.array(result["ratio"])
    longest = int(ratio.argmax())
    corrected, uncorrected = last_losses(result, "with"), last_losses(result, "without")
    rates = result["rates"]
    best, best_without = rates[corrected.argmin()], rates[uncorrected.argmin()]
    return [
        (
            nu_hat_error < 0.1,
            f"nu-hat is right from the first step on, within {nu_hat_error:.1%};"
            f" nu is {result['nu'][0] / second:.1%} of the truth after 1 step,"
            f" {result['nu'][-1] / second:.1%} after {STEPS}",
        ),
        (
            bool(np.allclose(ratio, too_long(), rtol=1e-3)),
            f"without, the step is longer by the formula's factor: {ratio[0]:.2f} at step 1,"
            f" {ratio[longest]:.2f} at step {longest + 1}, {ratio[-1]:.2f} at step {STEPS}",
        ),
        (
            corrected.min() <= uncorrected.min(),
            f"on digits, the best loss after {STEPS} steps is lower with it:"
            f" {corrected.min():.3f} with, {uncorrected.min():.3f} without",
        ),
        (
            best > best_without,
            "without it, the best learning rate is smaller, to make up for the factor:"
            f" {best:.2g} with, {best_without:.2g} without",
        ),
    ]


def picture(result: Result, path: Path) -> None:
    """The averages against the exact values; the length of the step; the loss on digits by rate."""
    figure, (mu, nu, length, digits) = style.panels(2, 2, height=2.7)
    t = np.arange(1, STEPS + 1)
    for axis, name, truth in ((mu, "mu", MEAN), (nu, "nu", MEAN**2 + DEVIATION**2)):
        axis.axhline(truth, color="black", linestyle=":", label="true moment")
        axis.plot(t, result[f"{name}_hat"], color=style.BLUE, label=f"{name}-hat, corrected")
        axis.plot(t, result[name], color=style.VERMILION, label=f"{name}, uncorrected")
        axis.set(xlabel="step", ylim=(0, 1.2 * truth))
        axis.legend()
    mu.set(ylabel="average of g (mean of 4,096)")
    nu.set(ylabel="average of g² (mean of 4,096)")
    ratio = np.array(result["ratio"])
    length.plot(t, ratio, color=style.VERMILION, label="measured")
    length.plot(t, too_long(), "k:", label=r"$(1-b_1^t)/\sqrt{1-b_2^t}$")
    length.set(xlabel="step", ylabel="uncorrected / corrected step", ylim=(0, None))
    for kind, colour in KINDS.items():
        losses = last_losses(result, kind)
        digits.loglog(result["rates"], losses, "o-", color=colour, label=f"{kind} bias correction")
    digits.set(xlabel="learning rate", ylabel=f"loss after {STEPS} steps (nats)")
    digits.set_title("MLP on handwritten digits")
    for axis in (length, digits):
        axis.legend()
    title = (
        f"Without bias correction the first steps are {min(ratio):.1f} to {max(ratio):.1f} times"
    )
    style.save(figure, path, f"{title} as long")
