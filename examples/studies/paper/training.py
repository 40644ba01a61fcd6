"""Many runs of one optimizer at once: same digits, noise and initial weights, other settings."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adam_jax
from examples.mnist import data
from examples.mnist.preprocessing import normalise

Loss = Callable[[Any, Any, jax.Array], jax.Array]
"""Maps the parameters, a batch (arrays [batch, ...]) and a noise key to the cost, a scalar."""

Optimizer = Callable[..., optax.GradientTransformation]
"""Settings by name: numbers that may be traced."""


class Digits(NamedTuple):
    """Pixels float32 [count, 784], 0 (paper) to 1 (ink); labels int32 [count]."""

    pixels: jax.Array
    labels: jax.Array

    @classmethod
    def of(cls, digits: data.Digits, count: int) -> "Digits":
        """The first digits of the training set."""
        pixels = normalise(digits.train_images[:count])
        labels = jnp.asarray(digits.train_labels[:count], jnp.int32)
        return cls(pixels.reshape(len(pixels), -1), labels)


def train(
    loss: Loss,
    params: Any,
    optimizer: Optimizer,
    settings: Mapping[str, Any],
    digits: Digits,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
) -> np.ndarray:
    """Trains once for each entry of the settings, all at once.

    Args:
      loss: the objective.
      params: the initial parameters of all runs.
      optimizer: makes the transformation of one run from its settings.
      settings: arrays float32 [runs], by the name of the optimizer's argument.
      digits: the training set.
      epochs: passes through it.
      batch_size: of each step.
      seed: of the order of the digits and of the noise, the same in all runs.

    Returns:
      The training cost, averaged over the batches of an epoch: float32 [runs, epochs]. NaN or
      infinite once a run has diverged.
    """
    settings = {name: jnp.asarray(values, jnp.float32) for name, values in settings.items()}
    state = begin(params, settings, optimizer=optimizer)
    order_key, noise_key = jax.random.split(jax.random.key(seed))
    costs = []
    for epoch in range(epochs):
        order = data.batches(jax.random.fold_in(order_key, epoch), len(digits.labels), batch_size)
        key = jax.random.fold_in(noise_key, epoch)
        state, cost = train_epoch(
            state, settings, digits, order, key, loss=loss, optimizer=optimizer
        )
        # Fetching waits for the epoch, so a ctrl-C waits for one dispatch at most.
        costs.append(np.asarray(cost))
    return np.stack(costs, axis=1)


@functools.partial(jax.jit, static_argnames=("optimizer",))
def begin(params: Any, settings: dict[str, jax.Array], *, optimizer: Optimizer) -> Any:
    """The parameters and the optimizer state of all runs, each leaf [runs, ...]."""
    return jax.vmap(lambda own: (params, optimizer(**own).init(params)))(settings)


@functools.partial(jax.jit, static_argnames=("loss", "optimizer"), donate_argnames=("state",))
def train_epoch(
    state: Any,
    settings: dict[str, jax.Array],
    digits: Digits,
    order: jax.Array,
    key: jax.Array,
    *,
    loss: Loss,
    optimizer: Optimizer,
) -> tuple[Any, jax.Array]:
    """One epoch of all runs in one dispatch.

    Args:
      state: parameters and optimizer state, each leaf [runs, ...]; it is donated.
      settings: arrays [runs].
      digits: the training set.
      order: int32 [steps, batch], the digits of each batch.
      key: of the epoch's noise.
      loss: the objective.
      optimizer: makes the transformation of one run from its settings.

    Returns:
      The new state, and the cost of each run averaged over the epoch, float32 [runs].
    """

    def one_run(state: Any, settings: dict[str, jax.Array]) -> tuple[Any, jax.Array]:
        tx = optimizer(**settings)

        def one_step(state: Any, step: Any) -> tuple[Any, jax.Array]:
            params, opt_state = state
            rows, step_key = step
            batch = jax.tree.map(lambda x: x[rows], digits)
            cost, grads = jax.value_and_grad(loss)(params, batch, step_key)
            params, opt_state = adam_jax.step(tx, grads, opt_state, params)
            return (params, opt_state), cost

        # Keys and rows have no run axis, so vmap shares one dropout mask and one batch.
        state, costs = jax.lax.scan(one_step, state, (order, jax.random.split(key, len(order))))
        return state, costs.mean()

    return jax.vmap(one_run)(state, settings)
