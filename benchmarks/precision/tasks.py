"""The tasks of the low-precision benchmarks: the examples' models and data, by seed and step.

A task has everything except the optimizer. All randomness is a function of the seed and the step.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from adam_jax.core.trees import leaf_paths
from examples.mnist import data, evaluate, preprocessing
from examples.mnist.models import MODELS
from examples.text import corpus
from examples.text.train import Config, build, cross_entropy, validate

Weights = dict[str, jax.Array]
"""By path."""


class Task(NamedTuple):
    """A training task, without the optimizer."""

    name: str
    steps: int
    learning_rate: float
    b2: float
    weights: Callable[[int], Weights]  # From a seed; float32.
    batch: Callable[[jax.Array, jax.Array], Any]  # From a key and a step.
    loss: Callable[[Weights, Any], jax.Array]
    held_out: Callable[[Weights], dict[str, float]]  # From float32 weights: loss and accuracy.


def flat(params: Any) -> Weights:
    """The arrays of a model by their paths."""
    return dict(zip(leaf_paths(params), jax.tree.leaves(params), strict=True))


def unflat(params: Any) -> Callable[[Weights], Any]:
    """The inverse, for models like this one."""
    paths, treedef = leaf_paths(params), jax.tree.structure(params)
    return lambda weights: treedef.unflatten([weights[path] for path in paths])


def text_task(fast: bool) -> Task:
    """The character transformer, with the example's own b2."""
    config = Config(steps=200, batch_size=16, context=64, layers=2)
    if fast:
        config = Config(steps=20, batch_size=2, context=32, layers=1)
    text = corpus.load()
    graph, state = build(config, text.vocabulary)
    model = unflat(state.params)
    train, held_out = jnp.asarray(text.train), jnp.asarray(text.validation)
    if fast:
        held_out = held_out[:1000]

    def batch(key: jax.Array, step: jax.Array) -> jax.Array:
        places = (config.batch_size, 1)
        key = jax.random.fold_in(key, step)
        first = jax.random.randint(key, places, 0, len(train) - config.context)
        return train[first + jnp.arange(config.context + 1)]

    def weights(seed: int) -> Weights:
        return flat(build(dataclasses.replace(config, seed=seed), text.vocabulary)[1].params)

    def validation(weights: Weights) -> dict[str, float]:
        stride = config.context
        losses = validate(model(weights), held_out, stride=stride, graph=graph, config=config)
        return {"loss": float(losses.mean())}

    return Task(
        *("transformer", config.steps, config.learning_rate, 0.99),
        weights=weights,
        batch=batch,
        loss=lambda weights, windows: cross_entropy(graph, model(weights), windows).mean(),
        held_out=validation,
    )


def digits_task(fast: bool, directory: Path | None) -> Task:
    """The CNN (with --fast an MLP), with the usual b2."""
    digits = data.load(directory)
    name, steps, size = ("mlp", 20, 16) if fast else ("cnn", 300, 32)
    graph, params = nnx.split(MODELS[name](nnx.Rngs(0)))
    model = unflat(params)
    images, labels = jnp.asarray(digits.train_images), jnp.asarray(digits.train_labels, jnp.int32)

    def batch(key: jax.Array, step: jax.Array) -> Any:
        key = jax.random.fold_in(key, step)
        chosen = jax.random.randint(key, (size,), 0, len(labels))
        return preprocessing.normalise(images[chosen]), labels[chosen]

    def loss(weights: Weights, examples: Any) -> jax.Array:
        logits = nnx.merge(graph, model(weights))(examples[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, examples[1]).mean()

    def test(weights: Weights) -> dict[str, float]:
        found = evaluate.evaluate(graph, model(weights), digits.test_images, digits.test_labels)
        return {"loss": found["test_loss"], "accuracy": found["test_accuracy"]}

    return Task(
        *(f"digits, {name}", steps, 1e-3, 0.999),
        weights=lambda seed: flat(nnx.split(MODELS[name](nnx.Rngs(seed)))[1]),
        batch=batch,
        loss=loss,
        held_out=test,
    )


@functools.partial(jax.jit, static_argnames="dtype")
def cast(weights: Weights, dtype: Any) -> Weights:
    return jax.tree.map(lambda w: w.astype(dtype), weights)


def first_weights(task: Task, seed: int) -> Weights:
    """Float32 numbers that bfloat16 represents."""
    return cast(cast(task.weights(seed), jnp.bfloat16), jnp.float32)
