"""Times a training step of the MNIST example's models and of the same models in PyTorch.

    python -m benchmarks.mnist [--fast]

Both train as their users would: the example's own train_steps (several steps per dispatch, batches
gathered on the device), and PyTorch's eager loop with fused Adam, which also gathers its batches.
"""

import argparse
from collections.abc import Callable

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from benchmarks.machine import describe, interleaved, medians
from examples.mnist import data
from examples.mnist.runs import Config
from examples.mnist.train import STEPS_PER_DISPATCH, build, train_steps


def in_jax(digits: data.Digits, model: str, batch: int) -> tuple[Callable[[], None], int]:
    """A function that takes several steps, and their number."""
    images = jax.device_put(digits.train_images)
    labels = jax.device_put(digits.train_labels.astype(np.int32))
    key = jax.random.key(0)
    steps = STEPS_PER_DISPATCH[model]
    order = data.batches(key, len(images), batch)[:steps]
    graph, state, tx, _ = build(Config(model=model, batch_size=batch), steps)
    held = [state]

    def run() -> None:
        held[0], metrics = train_steps(
            held[0], images, labels, order, key, graph=graph, tx=tx, jitter=False
        )
        jax.block_until_ready((held[0], metrics))

    return run, steps


def torch_model(model: str) -> nn.Module:
    """The same layers, in PyTorch's layout."""
    if model == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    layers: list[nn.Module] = []
    for inputs, outputs, pool in ((1, 32, False), (32, 32, True), (32, 64, False), (64, 64, True)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(7 * 7 * 64, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def in_torch(digits: data.Digits, model: str, batch: int, steps: int) -> Callable[[], None]:
    """A function that takes the same number of steps."""
    images = torch.from_numpy(digits.train_images.copy())
    labels = torch.from_numpy(digits.train_labels.astype(np.int64))
    order = torch.randperm(len(images))[: batch * steps].reshape(steps, batch)
    net = torch_model(model)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)

    def run() -> None:
        for rows in order:
            logits = net(images[rows].float().div(255).unsqueeze(1))
            loss = nn.functional.cross_entropy(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--fast", action="store_true", help="few rounds, to try it out")
    fast = arguments.parse_args().fast
    print(describe("jax", "flax", "torch"))
    digits = data.load()
    print("\n| model, batch | torch, ms a step | adam_jax example, ms a step | ratio |")
    print("|---|---|---|---|")
    for model, batch in (("mlp", 32), ("cnn", 64), ("cnn", 128)):
        ours, steps = in_jax(digits, model, batch)
        peers = {"torch": in_torch(digits, model, batch, steps), "ours": ours}
        rounds = 1 if fast else {"mlp": 40, "cnn": 8}[model]
        ms = {name: 1e3 * s / steps for name, s in medians(interleaved(peers, rounds)).items()}
        ratio = ms["ours"] / ms["torch"]
        print(f"| {model}, {batch} | {ms['torch']:.2f} | {ms['ours']:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
