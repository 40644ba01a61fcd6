"""Many classifiers of digits trained as one program: `jax.vmap` over seeds and hyperparameters.

Member i has its own initial parameters, order of batches and hyperparameters, all functions of its
key. One program is compiled per optimizer, model and size of the population.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import adam_jax
from examples.mnist import data
from examples.mnist.models import MODELS
from examples.mnist.preprocessing import normalise

Numbers = dict[str, jax.Array]
"""Hyperparameters by name, float32 [members] each."""

Make = Callable[..., optax.GradientTransformation]
"""Maps one member's hyperparameters, as keywords, to its optimizer."""


class Members(NamedTuple):
    """The variables of training; the first axis of every array is the member."""

    params: Any
    opt_state: Any


class Split(NamedTuple):
    """Digits on the device: images uint8 [count, 28, 28], labels int32 [count]."""

    images: jax.Array
    labels: jax.Array


Prepare = Callable[[jax.Array, jax.Array], jax.Array]


def as_they_are(key: jax.Array, images: jax.Array) -> jax.Array:
    """Pixels from 0 to 1."""
    del key
    return normalise(images)


def split(digits: data.Digits, held_out: int) -> tuple[Split, Split, Split]:
    """Training, validation and test digits; the validation digits are the last of training's."""
    images, labels = digits.train_images, digits.train_labels.astype(np.int32)
    parts = (
        (images[:-held_out], labels[:-held_out]),
        (images[-held_out:], labels[-held_out:]),
        (digits.test_images, digits.test_labels.astype(np.int32)),
    )
    train, validation, test = (Split(*jax.device_put(part)) for part in parts)
    return train, validation, test


def orders(keys: jax.Array, count: int, batch_size: int, steps: int) -> jax.Array:
    """The digits of each batch of each member, int32 [members, steps, batch]: whole epochs."""
    per_epoch = count // batch_size
    epochs = -(-steps // per_epoch)

    def of_member(key: jax.Array) -> jax.Array:
        each = [data.batches(jax.random.fold_in(key, e), count, batch_size) for e in range(epochs)]
        return jnp.concatenate(each)[:steps]

    return jax.vmap(of_member)(keys)


@functools.partial(jax.jit, static_argnames=("model",))
def initial(keys: jax.Array, *, model: str) -> Any:
    """The initial parameters of each member."""
    return jax.vmap(lambda key: nnx.state(MODELS[model](nnx.Rngs(key)), nnx.Param))(keys)


def start(params: Any, numbers: Numbers, make: Make) -> Members:
    """The initial members; the parameters are copied, because `advance` donates them."""
    opt_state = jax.vmap(lambda own, p: make(**own).init(p))(numbers, params)
    return Members(jax.tree.map(jnp.copy, params), opt_state)


@functools.partial(
    jax.jit, static_argnames=("model", "make", "prepare"), donate_argnames=("members",)
)
def advance(
    members: Members,
    numbers: Numbers,
    order: jax.Array,
    train: Split,
    key: jax.Array,
    *,
    model: str,
    make: Make,
    prepare: Prepare = as_they_are,
) -> tuple[Members, jax.Array]:
    """Takes one optimizer step for each batch of `order`.

    Args:
      members: donated.
      numbers: as in `start`.
      order: int32 [members, steps, batch].
      train: the digits.
      key: for the randomness of `prepare`; pass another key for other steps.
      model: of `MODELS`.
      make: makes the optimizer.
      prepare: maps a key and a batch of digits, uint8 [batch, 28, 28], to the model's input.

    Returns:
      The members, and the loss of each batch, float32 [members, steps].
    """
    graph = nnx.graphdef(nnx.eval_shape(lambda: MODELS[model](nnx.Rngs(0))))

    def of_member(member: Members, own: Numbers, rows: jax.Array, key: jax.Array) -> Any:
        tx = make(**own)

        def loss_of(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
            logits = nnx.merge(graph, params)(x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        def one_step(carry: Any, batch: jax.Array) -> Any:
            (params, opt_state), key = carry
            key, own_key = jax.random.split(key)
            x, y = prepare(own_key, train.images[batch]), train.labels[batch]
            loss, grads = jax.value_and_grad(loss_of)(params, x, y)
            params, opt_state = adam_jax.step(tx, grads, opt_state, params)
            return (Members(params, opt_state), key), loss

        (member, _), losses = jax.lax.scan(one_step, (member, key), rows)
        return member, losses

    keys = jax.random.split(key, len(order))
    return jax.vmap(of_member)(members, numbers, order, keys)


@functools.partial(jax.jit, static_argnames=("model", "prepare"))
def evaluate(
    params: Any, digits: Split, *, model: str, prepare: Prepare = as_they_are
) -> tuple[jax.Array, jax.Array]:
    """Mean loss and accuracy of each member, float32 [members] each."""
    graph = nnx.graphdef(nnx.eval_shape(lambda: MODELS[model](nnx.Rngs(0))))
    x = prepare(jax.random.key(0), digits.images)

    def of_member(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = nnx.merge(graph, params)(x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, digits.labels).mean()
        return loss, (logits.argmax(axis=1) == digits.labels).astype(jnp.float32).mean()

    # One member after the other: all together would need the memory of all.
    return jax.lax.map(of_member, params)
