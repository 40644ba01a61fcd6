"""Sixteen digit classifiers trained as one program, and the same sixteen one after the other.

python -m benchmarks.step.population [--fast]

Each is an MLP of 784-128-10 with a learning rate of its own, on batches of 32 of the included
digits, the same for all. "together" is `jax.vmap` over the learning rates, which are in the state
(`with_hyperparams`). "one by one" is the same training in sequence, compiled once for all rates;
and, as it is usually written, with the rate as a constant in sixteen programs.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import adam_jax
from benchmarks.machine import describe, interleaved, medians
from examples.mnist.data import batches, load
from examples.mnist.preprocessing import normalise

BATCH = 32
Params = dict[str, jax.Array]


def initial() -> Params:
    """The initial parameters: He-normal weights."""
    first, second = jax.random.split(jax.random.key(0))
    return {
        "w1": jax.random.normal(first, (784, 128)) * (2 / 784) ** 0.5,
        "b1": jnp.zeros(128),
        "w2": jax.random.normal(second, (128, 10)) * (2 / 128) ** 0.5,
        "b2": jnp.zeros(10),
    }


def logits(params: Params, images: jax.Array) -> jax.Array:
    """From float32 images [batch, 784] to [batch, 10]."""
    hidden = jax.nn.relu(images @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def train(tx: Any, images: jax.Array, labels: jax.Array) -> Params:
    """One pass over the batches, images [steps, batch, 784], as one loop."""

    def loss(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()

    def step(carry: Any, batch: Any) -> tuple[Any, None]:
        params, state = carry
        return adam_jax.step(tx, jax.grad(loss)(params, *batch), state, params), None

    params = initial()
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), (images, labels))
    return params


def cold_start(run: Callable[[], object]) -> float:
    """Seconds of one call including compilation."""
    jax.clear_caches()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--fast", action="store_true", help="fewer and shorter runs, to try it out"
    )
    fast = arguments.parse_args().fast
    digits = load()
    chosen = batches(jax.random.key(1), len(digits.train_labels), BATCH)[: 10 if fast else None]
    images = normalise(digits.train_images).reshape(-1, 784)[chosen]
    labels = jnp.asarray(digits.train_labels, jnp.int32)[chosen]
    members = 2 if fast else 16
    rates = jnp.logspace(-4.5, -1.5, members)

    def with_rate(rate: jax.Array) -> Params:
        return train(adam_jax.with_hyperparams(adam_jax.adamw)(rate), images, labels)

    one = jax.jit(with_rate)
    population = jax.jit(jax.vmap(with_rate))
    peers = {
        "together": lambda: jax.block_until_ready(population(rates)),
        "one by one": lambda: jax.block_until_ready([one(rate) for rate in rates]),
    }
    seconds = medians(interleaved(peers, 1 if fast else 5))
    cold = {name: cold_start(run) for name, run in peers.items()}
    constants = [float(rate) for rate in rates]
    cold["each compiled"] = cold_start(
        lambda: jax.block_until_ready(
            [jax.jit(train, static_argnums=0)(optax.adamw(r), images, labels) for r in constants]
        )
    )

    print(describe("jax", "optax"))
    print(f"\n{members} MLPs, {len(chosen)} steps of batch {BATCH} each\n")
    print("| | seconds | times the one program |")
    print("|---|---|---|")
    for kind, table in (("compiled before", seconds), ("with compilation", cold)):
        for name, value in table.items():
            print(f"| {name}, {kind} | {value:.2f} | {value / table['together']:.2f} |")


if __name__ == "__main__":
    main()
