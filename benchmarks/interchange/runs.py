"""Runs in PyTorch and JAX on the same gradients, one step at a time.

Each has `step(grads)` and `params()`, both in our layout: the path of a leaf to an array.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import adam_jax
from adam_jax import convert

SHAPES = {
    "conv/kernel": (3, 3, 2, 4),
    "conv/bias": (4,),
    "dense/kernel": (64, 80),
    "dense/bias": (80,),
    "scale": (),
}
NAMES = convert.layer("conv", "features.0", (2, 3, 1, 0)) | convert.layer("dense", "classifier")
LAYOUTS = {path: NAMES.get(path, convert.Layout(path)) for path in SHAPES}

Arrays = Mapping[str, np.ndarray]


def start() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=shape) for path, shape in SHAPES.items()}


def gradients(count: int, decades: float) -> list[dict[str, np.ndarray]]:
    """Gradients with a size per parameter, spread over decades, that drifts, so that nu matters."""
    rng, half = np.random.default_rng(1), decades / 2
    sizes = {path: 10.0 ** rng.uniform(-half, half, shape) for path, shape in SHAPES.items()}
    drift = np.exp(rng.normal(size=count).cumsum() / 4)
    return [
        {path: x * drift[t] * (rng.normal(size=SHAPES[path]) + 0.5) for path, x in sizes.items()}
        for t in range(count)
    ]


def nested(arrays: Arrays) -> Any:
    """The nested tree of the paths, for our optimizers."""
    tree: dict[str, Any] = {}
    for path, x in arrays.items():
        *above, last = path.split("/")
        node = tree
        for key in above:
            node = node.setdefault(key, {})
        node[last] = jnp.asarray(x, jnp.result_type(float))
    return tree


def flat(tree: Any) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in leaves}


STEP = jax.jit(
    lambda tx, grads, state, tree: adam_jax.step(tx, grads, state, tree), static_argnums=0
)


class InJax:
    """A run of any Optax transformation; with `accumulate` and the like, steps are micro-steps.

    Attributes:
      every: micro-steps per step, each with the same gradient.
    """

    def __init__(self, tx: Any, arrays: Arrays, state: Any = None, every: int = 1) -> None:
        self.tx, self.tree, self.every = tx, nested(arrays), every
        self.state = tx.init(self.tree) if state is None else state

    def step(self, grads: Arrays) -> None:
        """One optimizer step."""
        for _ in range(self.every):
            self.tree, self.state = STEP(self.tx, nested(grads), self.state, self.tree)

    def params(self) -> dict[str, np.ndarray]:
        """The parameters, in our layout."""
        return flat(self.tree)


class InTorch:
    """A run of an optimizer of PyTorch."""

    def __init__(self, make: Any, arrays: Arrays) -> None:
        import torch  # pyright: ignore[reportMissingImports]

        self.torch = torch
        dtype = torch.float64 if jax.config.jax_enable_x64 else torch.float32  # pyright: ignore
        self.parameters = {
            path: torch.nn.Parameter(torch.tensor(LAYOUTS[path].theirs(np.asarray(x)), dtype=dtype))
            for path, x in arrays.items()
        }
        named = [(LAYOUTS[path].name, p) for path, p in self.parameters.items()]
        self.optimizer, self.order = make(named), [name for name, _ in named]

    def step(self, grads: Arrays) -> None:
        """One optimizer step."""
        for path, p in self.parameters.items():
            x = LAYOUTS[path].theirs(np.asarray(grads[path]))
            p.grad = self.torch.tensor(x, dtype=p.dtype)
        self.optimizer.step()

    def params(self) -> dict[str, np.ndarray]:
        """The parameters, in our layout."""
        return {
            path: LAYOUTS[path].ours(p.detach().numpy(), SHAPES[path])
            for path, p in self.parameters.items()
        }

    def load(self, state_dict: Any) -> None:
        """Continues with another state."""
        tensors = jax.tree.map(self.torch.as_tensor, state_dict["state"])
        self.optimizer.load_state_dict(state_dict | {"state": tensors})


def moved(before: Arrays, after: Arrays) -> float:
    return max(float(np.max(np.abs(after[path] - before[path]))) for path in before)


def apart(
    first: Any, others: list[Any], grads: list[dict[str, np.ndarray]]
) -> list[tuple[float, float]]:
    """The largest distance of other runs from the first.

    Returns:
      For each, a pair: after one step, as a share of the distance moved; and over all steps.
    """
    before, once, distance = first.params(), [], 0.0
    largest = [moved(before, other.params()) for other in others]
    for g in grads:
        for run in (first, *others):
            run.step(g)
        distance = max(distance, moved(before, first.params()))
        now = [moved(first.params(), other.params()) for other in others]
        largest = [max(pair) for pair in zip(largest, now, strict=True)]
        once = once or [x / distance for x in largest]
    assert distance > 0 and np.all(np.isfinite(largest))
    return list(zip(once, [x / distance for x in largest], strict=True))
