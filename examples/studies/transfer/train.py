"""Trains one model of one size at many learning rates and with several seeds, in one program."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import adam_jax
from adam_jax import transfer
from examples.studies.transfer.models import CONTEXT, Mlp, ResidualMlp, Transformer

Batch = tuple[jax.Array, jax.Array]
"""Inputs and labels."""


TEXTS = ("text", "sphere")
REST = 0.18
"""The learning rate of the leaves off the sphere: the best at the base width, in factors of 2."""


def kernels(params: Any) -> Any:
    """The matrices of the blocks, as a tree of booleans."""

    def chosen(path: Any, p: jax.Array) -> bool:
        return "blocks" in jax.tree_util.keystr(path) and p.ndim > 1

    return jax.tree.map_with_path(chosen, params)


@dataclasses.dataclass(frozen=True)
class Data:
    """The data of a model.

    Attributes:
      inputs: training inputs: digits float32 [count, 784], or one text int32 [characters].
      labels: int32 [count]; for a text the characters themselves.
      held_out: inputs and labels as in a batch.
    """

    inputs: jax.Array
    labels: jax.Array
    held_out: Batch


@dataclasses.dataclass(frozen=True)
class Run:
    """The configuration of one program: everything except the data that its results depend on.

    Attributes:
      model: "mlp" or "text", which grow wider; "sphere", which is "text" with the matrices of its
        blocks on the sphere; "residual", which grows deeper.
      size: its width or depth.
      base_size: that of the small model.
      scaled: muP, or CompleteP for "residual"; else the standard parametrization.
      steps: of the optimizer.
      batch_size: digits, or windows of text.
      factory: makes the optimizer from a learning rate.
      together: the number of runs trained in parallel.
      vocabulary: characters of the text.
    """

    model: str
    size: int
    base_size: int
    scaled: bool
    steps: int
    batch_size: int
    factory: Callable[..., optax.GradientTransformation] = adam_jax.adam
    together: int = 1
    vocabulary: int = 0

    def build(self, size: int, key: jax.Array) -> Any:
        """A model of this size, with the factors of the parametrization."""
        rngs = nnx.Rngs(key)
        base = self.base_size if self.scaled else size
        if self.model == "mlp":
            return Mlp(size, base, rngs)
        if self.model == "residual":
            return ResidualMlp(size, base, rngs)
        return Transformer(self.vocabulary, size, base, rngs)

    def initial(self, key: jax.Array) -> Any:
        """The initial parameters."""
        params = nnx.state(self.build(self.size, key), nnx.Param)
        if not self.scaled:
            return params
        return transfer.mup_init(params, self.base(jax.random.fold_in(key, 1)))

    def base(self, key: jax.Array) -> Any:
        """The parameters of the small model."""
        return nnx.state(self.build(self.base_size, key), nnx.Param)

    def optimizer(self, params: Any, learning_rate: jax.Array) -> optax.GradientTransformation:
        """With a linear warmup over a tenth of the steps, then a linear decay to 0."""

        def shape(count: jax.Array) -> jax.Array:
            done = jnp.asarray(count, jnp.float32) / self.steps
            rising, falling = (done + 1 / self.steps) / 0.1, (1 - done) / 0.9
            return jnp.minimum(rising, falling)

        factory = self.factory
        if self.model == "sphere":
            rest = {"others_learning_rate": lambda count: REST * shape(count), "weight_decay": 0.0}
            factory = functools.partial(adam_jax.adamh, sphere=kernels, **rest)
        if self.scaled:
            base = jax.eval_shape(self.base, jax.random.key(0))
            factory = transfer.mup(factory, base, params)
        return factory(lambda count: learning_rate * shape(count))

    def orders(self, key: jax.Array, count: int) -> jax.Array:
        """Int32 [steps, batch_size]: digits in epochs, or the start positions of text windows."""
        shape = (self.steps, self.batch_size)
        if self.model in TEXTS:
            return jax.random.randint(key, shape, 0, count - CONTEXT)
        epochs = -(-self.steps * self.batch_size // count)
        keys = jax.random.split(key, epochs)
        order = jax.vmap(lambda k: jax.random.permutation(k, count))(keys)
        return order.reshape(-1)[: self.steps * self.batch_size].reshape(shape)

    def batch(self, data: Data, places: jax.Array) -> Batch:
        """The inputs and labels of one step."""
        if self.model in TEXTS:
            windows = data.inputs[places[:, None] + jnp.arange(CONTEXT + 1)]
            return windows[:, :-1], windows[:, 1:]
        return data.inputs[places], data.labels[places]


def losses(
    run: Run, data: Data, rates: Sequence[float], seeds: Sequence[int]
) -> dict[str, np.ndarray]:
    """Held-out loss, and the mean loss over the last tenth of training: [rates, seeds], in nats."""
    grid = np.stack(np.meshgrid(rates, seeds, indexing="ij"), axis=-1).reshape(-1, 2)
    found = _losses(
        jnp.asarray(grid[:, 0], jnp.float32),
        jnp.asarray(grid[:, 1], jnp.int32),
        (data.inputs, data.labels, data.held_out),
        run=run,
    )
    shape = (len(rates), len(seeds))
    return {name: np.asarray(x).reshape(shape) for name, x in found.items()}


@functools.partial(jax.jit, static_argnames="run")
def _losses(rates: jax.Array, seeds: jax.Array, arrays: Any, *, run: Run) -> dict[str, jax.Array]:
    data = Data(*arrays)
    graph = nnx.graphdef(nnx.eval_shape(lambda: run.build(run.size, jax.random.key(0))))

    def loss(params: Any, batch: Batch) -> jax.Array:
        inputs, labels = batch
        logits = nnx.merge(graph, params)(inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def trained(numbers: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
        rate, seed = numbers
        initial_key, order_key = jax.random.split(jax.random.key(seed))
        params = run.initial(initial_key)
        tx = run.optimizer(params, rate)

        def step(carry: Any, places: jax.Array) -> tuple[Any, jax.Array]:
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, run.batch(data, places))
            return adam_jax.step(tx, grads, state, params), value

        orders = run.orders(order_key, len(data.inputs))
        (params, _), values = jax.lax.scan(step, (params, tx.init(params)), orders)
        last = values[-max(1, run.steps // 10) :].mean()
        return {"held_out": loss(params, data.held_out), "training": last}

    return jax.lax.map(trained, (rates, seeds), batch_size=run.together)
