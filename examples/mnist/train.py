"""The training loop: a jitted function for several optimizer steps, and the loop over epochs.

All randomness is a function of the seed and the step: the order of an epoch, the augmentation of a
batch. So a run that is killed and resumed ends with the same bits as an uninterrupted run.
"""

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import adam_jax
from adam_jax.inspect import append_json_line, check_state
from examples.mnist import data, preprocessing
from examples.mnist.models import MODELS
from examples.mnist.optimizers import OPTIMIZERS, SCHEDULES
from examples.mnist.runs import Config, Run
from examples.shared.command_line import UserError, clock

# The most optimizer steps per dispatch. A step of the dense models takes less time than its
# dispatch: under one scan they are 3 times faster. The CNN needs 160 MB, which XLA:CPU allocates
# anew at each dispatch: page faults are 50 of its 144 ms at batch 64. Under one scan a step takes
# 94 ms, with convolutions as matrix products: XLA:CPU's own convolutions are slow in a scan.
STEPS_PER_DISPATCH = {"softmax": 50, "mlp": 50, "small-cnn": 50, "cnn": 10}
TEST_DIGITS = 500  # at once
SECONDS = 5  # between two lines about the loss
REWINDS = 3  # of one epoch; after them it goes on, with the spikes clipped
IN_FLIGHT = 8  # dispatches; fewer cost a fifth of the speed of the dense models on a busy machine


class TrainState(NamedTuple):
    """The variables of training, which are saved."""

    params: Any
    opt_state: Any
    step: jax.Array  # int32, optimizer steps completed


@functools.partial(jax.jit, static_argnames=("graph", "tx", "jitter"), donate_argnames=("state",))
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
) -> tuple[TrainState, tuple[jax.Array, jax.Array, Any]]:
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

    Returns:
      The new state, the loss and the accuracy of each batch, float32 [steps] each, and the small
      arrays of the optimizer's state, among them what `telemetry` measured.
    """

    def loss_of(params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = nnx.merge(graph, params)(x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return loss, (logits.argmax(axis=1) == y).astype(jnp.float32).mean()

    def one_step(state: TrainState, batch: jax.Array) -> tuple[TrainState, Any]:
        x, y = preprocessing.normalise(images[batch]), labels[batch]
        if jitter:
            x = preprocessing.augment(jax.random.fold_in(key, state.step), x)
        (loss, accuracy), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params, x, y)
        params, opt_state = adam_jax.step(tx, grads, state.opt_state, state.params)
        return TrainState(params, opt_state, state.step + 1), (loss, accuracy)

    state, (losses, accuracies) = jax.lax.scan(one_step, state, order)
    small = jax.tree.map(lambda x: x if jnp.size(x) <= 4 else None, state.opt_state)
    return state, (losses, accuracies, small)


def steps_per_dispatch(model: str, per_epoch: int) -> int:
    """A divisor of the epoch's steps near the most, if there is one: a remainder recompiles."""
    most = STEPS_PER_DISPATCH[model]
    return max((n for n in range(most // 2, most + 1) if per_epoch % n == 0), default=most)


def build(config: Config, steps: int) -> tuple[Any, TrainState, optax.GradientTransformation, Any]:
    """The model's graph, the state at step 0, the optimizer and its learning rate schedule."""
    graph, params = nnx.split(MODELS[config.model](nnx.Rngs(config.seed)))
    schedule = SCHEDULES[config.schedule](config.learning_rate, steps)
    tx = OPTIMIZERS[config.optimizer](schedule)
    tx = adam_jax.clip_by_history(tx) if config.rewind_after else tx
    tx = adam_jax.telemetry(tx, every=STEPS_PER_DISPATCH[config.model])
    return graph, TrainState(params, tx.init(params), jnp.zeros([], jnp.int32)), tx, schedule


def train(run: Run, digits: data.Digits) -> dict[str, Any]:
    """Trains to the end of the run's epochs, from its last checkpoint if it has one.

    Args:
      run: the output; metrics and a checkpoint are written after each epoch, pictures at the end.
      digits: the data.

    Returns:
      The summary that the command prints as its last line.
    """
    config, began = run.config, time.perf_counter()
    images = jax.device_put(digits.train_images)
    labels = jax.device_put(digits.train_labels.astype(np.int32))
    order_key, jitter_key = jax.random.split(jax.random.key(config.seed))
    per_epoch = len(data.batches(order_key, len(images), config.batch_size))
    steps = config.epochs * per_epoch
    graph, state, tx, schedule = build(config, steps)
    first, state = run.restore(state)
    _check(run, state, tx)
    metrics = run.metrics(first)
    stride = steps_per_dispatch(config.model, per_epoch)
    print(
        f"training: {f'from epoch {first + 1} on, ' if first else ''}{config.epochs - first}"
        f" x {per_epoch} steps of {config.batch_size} digits; the first step compiles for seconds"
    )
    said, epoch, rewound = time.perf_counter(), first, 0
    while epoch < config.epochs:
        start, spikes = time.perf_counter(), _spikes(config, state)
        key = jax.random.fold_in(order_key, epoch)
        key = jax.random.fold_in(key, rewound) if rewound else key
        order = data.batches(key, len(images), config.batch_size)
        dispatched, measured = [], []
        for i in range(0, per_epoch + stride * IN_FLIGHT, stride):
            if i < per_epoch:
                state, batches = train_steps(
                    state,
                    images,
                    labels,
                    order[i : i + stride],
                    jitter_key,
                    graph=graph,
                    tx=tx,
                    jitter=config.augment,
                )
                dispatched.append(batches)
            done = i - stride * (IN_FLIGHT - 1)
            if done <= 0:
                continue
            *batches, small = dispatched[len(measured)]
            measured.append([np.asarray(x) for x in batches])
            _log(run, small, measured[-1][0], schedule)
            if (now := time.perf_counter()) - said > SECONDS and done < per_epoch:
                said = now
                left = (now - start) / done * ((config.epochs - epoch) * per_epoch - done)
                print(
                    f"epoch {epoch + 1}/{config.epochs}  step {done}/{per_epoch}"
                    f"  loss {measured[-1][0][-1]:.4f}  about {clock(left)} left"
                )
        spikes = _spikes(config, state) - spikes
        if spikes and spikes >= config.rewind_after and rewound < REWINDS:
            rewound += 1
            print(
                f"epoch {epoch + 1}/{config.epochs}  {spikes} of {per_epoch} gradients were spikes:"
                f" again from the checkpoint before, in another order of the digits"
            )
            epoch, state = run.restore(build(config, steps)[1])
            metrics = run.metrics(epoch)
            continue
        loss, accuracy = (np.concatenate(parts) for parts in zip(*measured, strict=True))
        seconds = time.perf_counter() - start
        entry = {
            "epoch": epoch + 1,
            "step": (epoch + 1) * per_epoch,
            "train_loss": float(loss.mean()),
            "train_accuracy": float(accuracy.mean()),
            **evaluate(graph, state.params, digits.test_images, digits.test_labels),
            "learning_rate": float(schedule((epoch + 1) * per_epoch - 1)),
            "seconds": round(seconds, 3),
        }
        metrics.append(entry)
        run.write_metrics(metrics)
        run.save(epoch + 1, state)
        print(
            f"epoch {epoch + 1}/{config.epochs}"
            f"  train loss {entry['train_loss']:.4f} accuracy {entry['train_accuracy']:.4f}"
            f"  test loss {entry['test_loss']:.4f} accuracy {entry['test_accuracy']:.4f}"
            f"  {per_epoch * config.batch_size / seconds:,.0f} digits/s"
        )
        epoch, rewound = epoch + 1, 0
    _draw(run, metrics, schedule, graph, state.params, digits)
    return {
        "test_accuracy": metrics[-1]["test_accuracy"],
        "test_loss": metrics[-1]["test_loss"],
        "seconds": round(time.perf_counter() - began, 2),
        "run": str(run.folder),
    }


def _check(run: Run, state: TrainState, tx: optax.GradientTransformation) -> None:
    """Raises UserError if the optimizer's state is not that of these parameters and this step."""
    faults = check_state(state.opt_state, state.params, tx, int(state.step))
    faults = [f for f in faults if f.kind != "nonfinite"]  # A run may have diverged.
    if faults:
        raise UserError(
            f"{run.folder} does not continue, {faults[0].kind}: {faults[0].where}"
            f" {faults[0].text}; restore a copy, or train again with another --out"
        )


def _log(run: Run, opt_state: Any, losses: np.ndarray, schedule: Any) -> None:
    """Writes the last measurement of `telemetry`, for `python -m adam_jax watch RUN`."""
    record = adam_jax.measured(opt_state)
    if step := record["step"]:
        record |= {"loss": losses.mean(), "learning_rate": schedule(step - 1)}
        append_json_line(run.folder / "telemetry.jsonl", record)


def _spikes(config: Config, state: TrainState) -> int:
    return adam_jax.clipped(state.opt_state)["total"] if config.rewind_after else 0


def _draw(
    run: Run, metrics: Any, schedule: Any, graph: Any, params: Any, digits: data.Digits
) -> None:
    from examples.mnist import plots  # Matplotlib, which `predict` and `serve` need not import.

    config = run.config
    title = f"{config.model}, {config.optimizer}, learning rate {config.learning_rate:g}"
    title = f"{title} ({config.schedule}), batch {config.batch_size}"
    plots.curves(metrics, schedule, title, run.folder / "curves.png")
    p = np.exp(log_probabilities(graph, params, digits.test_images))
    plots.predictions(digits.test_images, digits.test_labels, p, run.folder / "predictions.png")


@jax.jit(static_argnums=0)
def _log_probabilities(graph: Any, params: Any, images: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(nnx.merge(graph, params)(preprocessing.normalise(images)))


def log_probabilities(graph: Any, params: Any, images: np.ndarray) -> np.ndarray:
    """Logarithms of the probabilities, float32 [count, 10], of images uint8 [count, 28, 28]."""
    parts = [images[i : i + TEST_DIGITS] for i in range(0, len(images), TEST_DIGITS)]
    return np.concatenate([_log_probabilities(graph, params, part) for part in parts])


def evaluate(graph: Any, params: Any, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mean cross-entropy in nats, and the share of correctly classified digits."""
    log_p = log_probabilities(graph, params, images)
    loss = -log_p[np.arange(len(labels)), labels].mean()
    right = log_p.argmax(axis=1) == labels
    return {"test_loss": float(loss), "test_accuracy": float(right.mean())}


def trained(run: Run) -> tuple[Any, Any]:
    """The graph and the parameters of a run's last checkpoint. Raises UserError without one."""
    graph, state, _, _ = build(run.config, steps=1)
    epochs, state = run.restore(state)
    if not epochs:
        raise UserError(f"{run.folder} has no checkpoint yet; finish an epoch with --resume")
    return graph, state.params
