"""Logistic regression on real digits: is it a 3 or an 8?

The model has one weight per pixel and a bias, so its weights are an image. Adam divides each
pixel's gradient by its size, so a pixel that rarely has ink moves as fast as one in the middle; SGD
hardly moves it. Decoupled weight decay shrinks all weights alike.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adam_jax
from examples import style
from examples.basics import page
from examples.mnist.preprocessing import normalise
from examples.study import Result

COLOURS = {"SGD": style.BLACK, "Adam": style.BLUE, "AdamW": style.VERMILION}
RARE = 0.002  # mean ink of a pixel, of 1


def threes_and_eights(images: np.ndarray, labels: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Pixels float32 [count, 784], and 1 for an 8, 0 for a 3: float32 [count]."""
    chosen = (labels == 3) | (labels == 8)
    pixels = normalise(images[chosen]).reshape(int(chosen.sum()), -1)
    return pixels, jnp.asarray((labels[chosen] == 8).astype(np.float32))


def compute(setting: page.Setting) -> Result:
    """Trains on all the 3s and 8s at once, with three optimizers."""
    steps, digits = (60 if setting.fast else 1500), setting.digits
    x, y = threes_and_eights(digits.train_images, digits.train_labels)
    x_test, y_test = threes_and_eights(digits.test_images, digits.test_labels)
    # The curvature of the loss is at most that of mean(x²)/4: SGD always descends at rates to 1/L.
    curvature = jnp.linalg.eigvalsh(x.T @ x / len(x))[-1] / 4
    optimizers = {
        "SGD": optax.sgd(float(1 / curvature)),
        "Adam": adam_jax.adam(1e-2),
        "AdamW": adam_jax.adamw(1e-2, weight_decay=0.2),
    }

    def logits_of(params: dict[str, jax.Array], pixels: jax.Array) -> jax.Array:
        return pixels @ params["weights"] + params["bias"]

    def loss_of(params: dict[str, jax.Array], pixels: jax.Array, is_8: jax.Array) -> jax.Array:
        return optax.sigmoid_binary_cross_entropy(logits_of(params, pixels), is_8).mean()

    def train(
        tx: optax.GradientTransformation,
        x: jax.Array,
        y: jax.Array,
        x_test: jax.Array,
        y_test: jax.Array,
    ):
        def one_step(carry, _):
            params, state = carry
            loss, grads = jax.value_and_grad(loss_of)(params, x, y)
            return adam_jax.step(tx, grads, state, params), (loss, loss_of(params, x_test, y_test))

        params = {"weights": jnp.zeros(x.shape[1]), "bias": jnp.zeros(())}
        return jax.lax.scan(one_step, (params, tx.init(params)), None, length=steps)

    ink = np.array(x).mean(axis=0)
    rare = (ink > 0) & (ink < RARE)
    result: Result = {"ink": ink, "counts": [len(y), len(y_test)]}
    for name, tx in optimizers.items():
        (params, _), (train_loss, test_loss) = jax.jit(functools.partial(train, tx))(
            x, y, x_test, y_test
        )
        weights = np.array(params["weights"])
        right = (np.array(logits_of(params, x_test)) > 0) == (np.array(y_test) > 0.5)
        result[name] = {
            "train_loss": train_loss,
            "test_loss": test_loss,
            "test_accuracy": right.mean(),
            "weights": weights,
            "rare_to_common": weights[rare].std() / weights[ink >= RARE].std(),
        }
    return result


def findings(result: Result) -> list[str]:
    """Which optimizer is fast, which overfits, and the weights of the rare pixels."""
    sgd, adam, adamw = (result[name] for name in COLOURS)
    ink, weights = np.array(result["ink"]), np.array(adam["weights"])
    steps = len(sgd["train_loss"])
    sooner = int(np.argmax(np.array(adam["train_loss"]) <= sgd["train_loss"][-1]))
    best = int(np.argmin(adam["test_loss"]))
    accuracies = ", ".join(f"{name} {result[name]['test_accuracy']:.4f}" for name in COLOURS)
    return [
        f"{result['counts'][0]:,} digits to train on, {result['counts'][1]} to test;"
        f" test accuracy after {steps} steps: {accuracies}",
        page.claim(
            adam["train_loss"][-1] < sgd["train_loss"][-1],
            f"Adam needs {sooner} steps to reach the training loss of SGD after {steps}",
        ),
        page.claim(
            adam["test_loss"][-1] > 1.02 * adam["test_loss"][best],
            f"Adam overfits: its test loss is {adam['test_loss'][best]:.4f} after {best} steps"
            f" and {adam['test_loss'][-1]:.4f} at the end",
        ),
        page.claim(
            adamw["test_loss"][-1] < adam["test_loss"][-1],
            f"weight decay helps: AdamW's test loss ends at {adamw['test_loss'][-1]:.4f}",
        ),
        page.claim(
            adam["rare_to_common"] > 3 * sgd["rare_to_common"],
            "Adam's weights of pixels with hardly any ink are"
            f" {adam['rare_to_common']:.2f} times as large as the others,"
            f" SGD's {sgd['rare_to_common']:.3f} times, AdamW's {adamw['rare_to_common']:.2f}",
        ),
        page.claim(
            bool((weights[ink == 0] == 0).all()),
            f"the {int((ink == 0).sum())} pixels without ink in any digit keep the weight 0",
        ),
    ]


def picture(result: Result, path: Path) -> None:
    """The losses, and the weights of each as an image."""
    figure, (train, test, ink, *images) = page.panels(3, 2)
    for name, colour in COLOURS.items():
        run = result[name]
        steps = np.arange(len(run["train_loss"])) + 1
        train.loglog(steps, run["train_loss"], color=colour, label=name)
        label = f"{name}: accuracy {run['test_accuracy']:.3f}"
        test.loglog(steps, run["test_loss"], color=colour, label=label)
    for axis, part in ((train, "training"), (test, "test")):
        axis.set(xlabel="step", ylabel=f"cross-entropy (nats), {part} digits")
        style.legend(axis)
    shown = ink.imshow(np.array(result["ink"]).reshape(28, 28), cmap="gray_r")
    figure.colorbar(shown, ax=ink, fraction=0.046)
    ink.set(xticks=[], yticks=[])
    ink.spines[:].set_visible(False)
    ink.set_title("mean ink of the 3s and 8s", fontsize=10)
    for axis, name in zip(images, COLOURS, strict=True):
        page.image(axis, np.array(result[name]["weights"]).reshape(28, 28), f"weights by {name}")
    ratios = ", ".join(f"{name} {result[name]['rare_to_common']:.2g}" for name in COLOURS)
    title = (
        "Weights for 3 (blue) or 8 (red); size on pixels with hardly any ink relative to the"
        f" others: {ratios}"
    )
    page.save(figure, title, path)
