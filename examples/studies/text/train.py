"""The settings, the optimizer, the training step and the validation loss.

All randomness is a function of the seed and the step. So a run that is interrupted and resumed from
its last checkpoint ends with the same bits as an uninterrupted run.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import adam_jax
from examples.shared.command_line import UserError
from examples.studies.text.model import Transformer


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run: everything except the text that its result depends on.

    Attributes:
      steps: of the optimizer.
      batch_size: windows of text in a step.
      context: the most characters that the model sees, and the length of training windows.
      width: features per character inside the model; a multiple of heads.
      layers: blocks of the model.
      heads: of attention, in each block.
      learning_rate: the peak, after the warmup.
      weight_decay: of the matrices; vectors do not decay.
      dtype: of the parameters and of the computation, float32 or bfloat16. The optimizer's moments
        are always float32.
      seed: of the initial parameters, the batches and the samples.
    """

    steps: int = 1000
    batch_size: int = 32
    context: int = 128
    width: int = 128
    layers: int = 4
    heads: int = 4
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    dtype: str = "float32"
    seed: int = 0

    def __post_init__(self):
        if self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of heads {self.heads}")


FAST = Config(steps=300, batch_size=16, context=16, width=64, layers=1, learning_rate=5e-3)


class TrainState(NamedTuple):
    """The variables of training, which are saved."""

    params: Any
    opt_state: Any
    step: jax.Array  # int32, optimizer steps completed


def model(config: Config, vocabulary: int, seed: int | jax.Array) -> Transformer:
    """The model with its initial parameters, for a vocabulary of that size."""
    return Transformer(
        vocabulary,
        config.context,
        config.width,
        config.layers,
        config.heads,
        jnp.dtype(config.dtype),
        nnx.Rngs(seed),
    )


def build(config: Config, vocabulary: str) -> tuple[Any, TrainState]:
    """The model without its parameters, and the state at step 0."""
    graph, params = nnx.split(model(config, len(vocabulary), config.seed))
    return graph, TrainState(params, optimizer(config).init(params), jnp.zeros([], jnp.int32))


def schedule(config: Config) -> optax.Schedule:
    """Linear warmup over a tenth of the steps, then a cosine down to a tenth of the rate."""
    cosine = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=config.steps // 10,
        decay_steps=config.steps,
        end_value=config.learning_rate / 10,
    )
    # With an integer step it mixes integers and floats, which strict dtype promotion refuses.
    return lambda step: cosine(jnp.asarray(step, jnp.float32))


def optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW on clipped gradients; vectors (biases, the scales of LayerNorm) do not decay."""
    adamw = adam_jax.adamw(
        schedule(config), b2=0.99, weight_decay=config.weight_decay, mask=adam_jax.decay_mask
    )
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def cross_entropy(graph: Any, params: Any, windows: jax.Array) -> jax.Array:
    """In nats, float32 [batch, context]: for each character of the windows except the first.

    The windows are int32 [batch, context + 1].
    """
    logits = nnx.merge(graph, params)(windows[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:])


# The optimizer is made inside, from the settings: runs with equal settings compile once.
@functools.partial(jax.jit, static_argnames=("count", "graph", "config"), donate_argnames="state")
def train_steps(
    state: TrainState, text: jax.Array, *, count: int, graph: Any, config: Config
) -> tuple[TrainState, jax.Array]:
    """Takes `count` optimizer steps per dispatch: on a CPU 1.5 times faster than one at a time.

    Args:
      state: is donated.
      text: int32 [characters]; each step draws its windows from it.
      count: optimizer steps.
      graph: the model without its parameters.
      config: the settings.

    Returns:
      The new state, and the loss of each batch, float32 [count].
    """
    key = jax.random.key(config.seed)
    one_step = step_of(optimizer(config), text, graph, config, key)
    return jax.lax.scan(one_step, state, length=count)


def step_of(
    tx: optax.GradientTransformation, text: jax.Array, graph: Any, config: Config, key: jax.Array
) -> Callable[[TrainState, None], tuple[TrainState, jax.Array]]:
    """One step on windows drawn from the key and the step number; also returns the batch's loss."""

    def one_step(state: TrainState, _: None) -> tuple[TrainState, jax.Array]:
        step_key = jax.random.fold_in(key, state.step)
        places = (config.batch_size, 1)
        first = jax.random.randint(step_key, places, 0, len(text) - config.context)
        windows = text[first + jnp.arange(config.context + 1)]
        loss, grads = jax.value_and_grad(
            lambda params: cross_entropy(graph, params, windows).mean()
        )(state.params)
        params, opt_state = adam_jax.step(tx, grads, state.opt_state, state.params)
        return TrainState(params, opt_state, state.step + 1), loss

    return one_step


@functools.partial(jax.jit, static_argnames=("stride", "graph", "config"))
def validate(params: Any, text: jax.Array, *, stride: int, graph: Any, config: Config) -> jax.Array:
    """Mean cross-entropy of a text by the number of characters seen, in nats, float32 [context].

    Entry i is for characters after i + 1 visible characters. The windows begin `stride` characters
    apart; windows that do not fill a batch at the end of the text are dropped.
    """
    windows = (len(text) - 1 - config.context) // stride + 1
    size = min(config.batch_size, windows)
    first = stride * jnp.arange(windows // size * size).reshape(-1, size, 1)
    batches = text[first + jnp.arange(config.context + 1)]
    losses = jax.lax.map(lambda batch: cross_entropy(graph, params, batch).mean(axis=0), batches)
    return losses.mean(axis=0)
