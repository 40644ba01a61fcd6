"""A convolutional network on handwritten digits, with Flax NNX and Adam.

python examples/flax_mnist.py             # 8,000 digits, half a minute on two cores
python examples/flax_mnist.py --data DIR  # the four gzipped files of MNIST
"""

import argparse
import gzip
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

import adam_jax

BATCH = 64


def digits(folder: Path, part: str) -> tuple[Array, Array]:
    """Images [count, 28, 28, 1] from 0 to 1, and labels [count] from 0 to 9."""
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28, 1)
    numbers = np.frombuffer(labels, np.uint8, offset=8)
    return jnp.asarray(pixels) / 255, jnp.asarray(numbers)


class CNN(nnx.Module):
    """Images to logits [count, 10]; 421,642 parameters."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), rngs=rngs)
        self.hidden = nnx.Linear(7 * 7 * 64, 128, rngs=rngs)
        self.out = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """The logits of images."""
        x = nnx.max_pool(nnx.relu(self.conv1(x)), (2, 2), (2, 2))
        x = nnx.max_pool(nnx.relu(self.conv2(x)), (2, 2), (2, 2))
        return self.out(nnx.relu(self.hidden(x.reshape(len(x), -1))))


@nnx.jit
def train_step(model: CNN, optimizer: nnx.Optimizer, x: Array, y: Array) -> Array:
    """The loss of a batch; the model and the optimizer are updated in place."""

    def loss_of(model: CNN) -> Array:
        logits = model(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    loss, grads = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, grads)
    return loss


@nnx.jit
def accuracy(model: CNN, x: Array, y: Array) -> Array:
    """The share of digits that the model reads rightly."""
    return jnp.mean(model(x).argmax(axis=1) == y)


def main() -> None:
    """Trains, and prints the loss every 50 steps and the accuracy at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    here = Path(__file__).parent
    parser.add_argument("--data", type=Path, default=here / "mnist" / "digits")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    x, y = digits(options.data, "train")
    per_epoch = len(x) // BATCH
    steps = options.epochs * per_epoch

    model = CNN(nnx.Rngs(options.seed))
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, steps // 10, steps)
    tx = adam_jax.chain(
        adam_jax.clip_by_global_norm(1.0),
        adam_jax.adamw(schedule, weight_decay=0.01, mask=adam_jax.decay_mask),
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    step, random = 0, np.random.default_rng(options.seed)
    for _ in range(options.epochs):
        order = random.permutation(len(x))[: per_epoch * BATCH]
        for batch in order.reshape(per_epoch, BATCH):
            loss = train_step(model, optimizer, x[batch], y[batch])
            step += 1
            if step % 50 == 0:
                print(f"step {step} of {steps}: loss {loss:.4f}", flush=True)
    x, y = digits(options.data, "t10k")
    print(f"test accuracy {accuracy(model, x, y):.4f}")


if __name__ == "__main__":
    main()
