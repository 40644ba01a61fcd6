"""The training loop: a jitted function for several optimizer steps, and the loop over epochs.

All randomness is a function of the seed and the step: the order of an epoch, the augmentation of a
batch. So a run that is killed and resumed ends with the same bits as an uninterrupted run.
"""

import collections
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import adam_jax
from adam_jax import schedules
from examples.mnist import data, distributed, evaluate, preprocessing
from examples.mnist.config import Config
from examples.mnist.models import MODELS
from examples.mnist.progress import Progress
from examples.mnist.runs import Run

MEMBERS = ("adabelief", "adam", "adamax", "adamaxw", "adamw", "adan", "ademamix", "adopt")
MEMBERS += ("amsgrad", "amsgradw", "lamb", "lion", "nadam", "nadamw", "radam", "radamw", "yogi")
OPTIMIZERS = {name: getattr(adam_jax, name) for name in MEMBERS}
# Baselines, under the names of `examples.compare`.
OPTIMIZERS |= {"sgd": optax.sgd, "momentum": functools.partial(optax.sgd, momentum=0.9)}

# By name: functions of the peak learning rate (after the warmup) and the number of steps.
SCHEDULES: dict[str, Callable[[float, int], Any]] = {
    "constant": lambda rate, steps: optax.constant_schedule(rate),
    "cosine": lambda rate, steps: optax.cosine_decay_schedule(rate, steps),
    "inverse-sqrt": lambda rate, steps: schedules.inverse_sqrt_schedule(rate),
    "warmup-stable-decay": lambda rate, steps: schedules.warmup_stable_decay_schedule(
        rate, steps // 20, steps - steps // 20 - steps // 5, steps // 5
    ),
}
ENDING = ("cosine", "warmup-stable-decay")  # Schedules that depend on the number of steps.

# The most optimizer steps per dispatch. A step of the dense models takes less time than its
# dispatch: under one scan they are 3 times faster. The CNN needs 160 MB, which XLA:CPU allocates
# anew at each dispatch: page faults are 50 of its 144 ms at batch 64. Under one scan a step takes
# 94 ms, with convolutions as matrix products: XLA:CPU's own convolutions are slow in a scan.
STEPS_PER_DISPATCH = {"softmax": 50, "mlp": 50, "small-cnn": 50, "cnn": 10}


class TrainState(NamedTuple):
    """The variables of training, which are saved."""

    params: Any
    opt_state: Any
    step: jax.Array  # int32, optimizer steps completed


@functools.partial(
    jax.jit, static_argnames=("graph", "tx", "jitter", "placement"), donate_argnames=("state",)
)
def train_steps(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    order: jax.Array,
    key: jax.Array,
    *,
    graph: Any,
    tx: optax.GradientTransformation,
    jitter: bool,
    placement: jax.sharding.Sharding | None = None,
) -> tuple[TrainState, tuple[jax.Array, jax.Array]]:
    """Takes one optimizer step for each row of `order`.

    Args:
      state: is donated.
      images: all images, uint8 [count, 28, 28].
      labels: all labels, int32 [count].
      order: int32 [steps, batch], the digits of each batch.
      key: for the augmentation of the whole run; each step derives its own.
      graph: the model without its parameters.
      tx: the optimizer.
      jitter: augment the batches.
      placement: the sharding of each batch, on several devices.

    Returns:
      The new state, and the loss and the accuracy of each batch, float32 [steps] each.
    """

    def loss_of(params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = nnx.merge(graph, params)(x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return loss, (logits.argmax(axis=1) == y).astype(jnp.float32).mean()

    def one_step(state: TrainState, batch: jax.Array) -> tuple[TrainState, Any]:
        if placement is not None:
            batch = jax.lax.with_sharding_constraint(batch, placement)
        x, y = preprocessing.normalise(images[batch]), labels[batch]
        if jitter:
            x = preprocessing.augment(jax.random.fold_in(key, state.step), x)
        (loss, accuracy), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params, x, y)
        params, opt_state = adam_jax.step(tx, grads, state.opt_state, state.params)
        return TrainState(params, opt_state, state.step + 1), (loss, accuracy)

    return jax.lax.scan(one_step, state, order)


def steps_per_dispatch(model: str, per_epoch: int) -> int:
    """A divisor of the epoch's steps near the most, if there is one: a remainder recompiles."""
    most = STEPS_PER_DISPATCH[model]
    return max((n for n in range(most // 2, most + 1) if per_epoch % n == 0), default=most)


def build(
    config: Config, steps: int, devices: distributed.Devices = distributed.ONE
) -> tuple[Any, TrainState, optax.GradientTransformation, Any]:
    """The model's graph, the state at step 0, the optimizer and its learning rate schedule."""
    graph, params = nnx.split(MODELS[config.model](nnx.Rngs(config.seed)))
    params, step = devices.copied((params, jnp.zeros([], jnp.int32)))
    schedule = SCHEDULES[config.schedule](config.learning_rate, steps)
    tx = devices.optimizer(OPTIMIZERS[config.optimizer](schedule))
    return graph, TrainState(params, tx.init(params), step), tx, schedule


def train(
    run: Run, digits: data.Digits, devices: distributed.Devices = distributed.ONE
) -> dict[str, Any]:
    """Trains to the end of the run's epochs, from its last checkpoint if it has one.

    Args:
      run: the output; metrics and a checkpoint are written after each epoch, pictures at the end.
      digits: the data.
      devices: one, or those of several processes; each process calls this.

    Returns:
      The summary that the command prints as its last line.
    """
    config, began = run.config, time.perf_counter()
    images = devices.copied(digits.train_images)
    labels = devices.copied(digits.train_labels.astype(np.int32))
    order_key, jitter_key = jax.random.split(jax.random.key(config.seed))
    per_epoch = len(data.batches(order_key, len(images), config.batch_size))
    jitter_key = devices.copied(jitter_key)
    first = run.epochs_saved
    train_seconds, speaks = 0.0, distributed.speaks()
    with Progress(config, first, per_epoch, quiet=not speaks) as progress:
        graph, state, tx, schedule = build(config, config.epochs * per_epoch, devices)
        if first:
            state = run.restore(state)
        metrics = run.metrics()
        stride = steps_per_dispatch(config.model, per_epoch)
        for epoch in range(first, config.epochs):
            start = time.perf_counter()
            order = data.batches(
                jax.random.fold_in(order_key, epoch), len(images), config.batch_size
            )
            dispatched: collections.deque[Any] = collections.deque()
            measured: list[Any] = []
            for i in range(0, per_epoch, stride):
                rows = devices.copied(order[i : i + stride])
                state, batch_metrics = train_steps(
                    state,
                    images,
                    labels,
                    rows,
                    jitter_key,
                    graph=graph,
                    tx=tx,
                    jitter=config.augment,
                    placement=devices.batch,
                )
                dispatched.append(batch_metrics)
                measured += _finished(dispatched, progress, wait=False)
            measured += _finished(dispatched, progress, wait=True)
            loss, accuracy = (np.concatenate(parts) for parts in zip(*measured, strict=True))
            seconds = time.perf_counter() - start
            train_seconds += seconds
            progress.doing("testing")
            entry = {
                "epoch": epoch + 1,
                "step": (epoch + 1) * per_epoch,
                "train_loss": float(loss.mean()),
                "train_accuracy": float(accuracy.mean()),
                **evaluate.evaluate(
                    graph, devices.own(state.params), digits.test_images, digits.test_labels
                ),
                "learning_rate": float(schedule((epoch + 1) * per_epoch - 1)),
                "seconds": round(seconds, 3),
            }
            metrics.append(entry)
            if speaks:
                run.write_metrics(metrics)
            run.save(epoch + 1, state)
            progress.epoch(entry, per_epoch * config.batch_size / seconds)
        progress.doing("writing the last checkpoint and the pictures")
        run.close()
        if speaks:
            _draw(run, metrics, graph, devices.own(state.params), digits)

    steps = (config.epochs - first) * per_epoch
    return {
        "test_accuracy": metrics[-1]["test_accuracy"],
        "test_loss": metrics[-1]["test_loss"],
        "seconds": round(time.perf_counter() - began, 2),
        "steps_per_second": round(steps / train_seconds, 2) if steps else 0.0,
        "run": str(run.folder),
    }


def _finished(dispatched: Any, progress: Progress, wait: bool) -> Iterator[Any]:
    """Yields the measurements of each finished dispatch; of all dispatches, if it has to wait.

    The whole epoch is dispatched in advance. Limiting the dispatches in flight costs a fifth of the
    speed of the dense models when other programs compete for the processors.
    """
    while dispatched and (wait or dispatched[0][0].is_ready()):
        loss, accuracy = map(np.asarray, dispatched.popleft())
        progress.finished(len(loss), float(loss[-1]), float(accuracy[-1]))
        yield loss, accuracy


def _draw(run: Run, metrics: Any, graph: Any, params: Any, digits: data.Digits) -> None:
    from examples.mnist import plots  # Matplotlib, which `predict` and `serve` need not import.

    config = run.config
    title = f"{config.model}, {config.optimizer}, learning rate {config.learning_rate:g}"
    plots.curves(
        metrics,
        f"{title} ({config.schedule}), batch {config.batch_size}",
        run.folder / "curves.png",
    )
    p = np.exp(evaluate.log_probabilities(graph, params, digits.test_images))
    plots.predictions(digits.test_images, digits.test_labels, p, run.folder / "predictions.png")


def trained(run: Run) -> tuple[Any, Any]:
    """The graph and the parameters of a run's last checkpoint."""
    graph, state, _, _ = build(run.config, steps=1)
    return graph, run.restore(state).params
