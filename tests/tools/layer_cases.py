"""Steps leaves that hold several layers, and compares them with a separate leaf per layer.

python -m tests.tools.layer_cases      runs every case
"""

import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import adam_jax
from tests.tools import record
from tests.tools.record import WRAPPERS

LAYERS, STEPS = 4, 3
SHAPES = {"bias": (17,), "kernel": (33, 17), "out": (64, 32), "scale": ()}


def separate(seed: int = 0, dtype: Any = jnp.float32) -> Any:
    """A tree with a list of layers, and leaves outside of layers before and after it."""
    draw = np.random.default_rng(seed)

    def array(shape: tuple[int, ...]) -> jax.Array:
        size = 10 ** draw.uniform(-2, 1)
        return jnp.asarray(draw.standard_normal(shape) * size, jnp.float32).astype(dtype)

    blocks = [{name: array(shape) for name, shape in SHAPES.items()} for _ in range(LAYERS)]
    return {"a": array((5,)), "blocks": blocks, "z": array((32, 8))}


def stacked(tree: Any) -> Any:
    return {**tree, "blocks": jax.tree.map(lambda *x: jnp.stack(x), *tree["blocks"])}


def stepped(tx: Any, trees: list[Any]) -> Any:
    step = jax.jit(lambda g, s, p: adam_jax.step(tx, g, s, p))
    params, *gradients = trees
    state = tx.init(params)
    for grads in gradients:
        params, state = step(grads, state, params)
    return params


def differences(tx: Any, dtype: Any = jnp.float32, seed: int = 0) -> dict[str, float]:
    """The largest relative difference of each leaf, where any number differs."""
    trees = [separate(seed + i, dtype) for i in range(STEPS + 1)]
    ours = stacked(stepped(tx, trees))
    theirs = stepped(adam_jax.with_layers(tx, "blocks/.*"), [stacked(tree) for tree in trees])
    found = {}
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.isfinite(a).all(), path
        if (a != b).any():
            most = np.max(np.abs(a - b) / np.maximum(np.abs(a), np.abs(b)))
            found[jax.tree_util.keystr(path)] = float(most)
    return found


def cases() -> Iterator[tuple[str, Callable[[], Any], Any]]:
    """The record's cases and a few more: name, function, and the dtype of the parameters."""
    block_means = functools.partial(adam_jax.adamw, 1e-2, nu_dtype=adam_jax.AdamMini())
    masked = functools.partial(adam_jax.lamb, 1e-2, weight_decay=0.1, mask=adam_jax.decay_mask)
    expressions = {r".*(bias|scale)": {"weight_decay": 0.0}}
    more = {
        "adamw, block means": block_means,
        "lamb masked": masked,
        "recipe(lamb masked)": lambda: WRAPPERS["recipe"](masked()),
        "with_kernel(adamw)": lambda: adam_jax.with_kernel(adam_jax.adamw(1e-2), "xla"),
        "groups(lamb)": lambda: adam_jax.groups(adam_jax.lamb, expressions, learning_rate=1e-2),
    }
    for name, make in (*record.cases(), *more.items()):
        # Optax's parts see whole leaves; "frozen" and the record's groups name its own leaves.
        if name.startswith(("optax", "frozen", "groups(")) and name not in more:
            continue
        low = name.startswith(("master", "stochastic_r", "recipe"))
        yield name, make, jnp.bfloat16 if low else None


NESTED: dict[str, Callable[[Any], Any]] = {
    **{name: WRAPPERS[name] for name in ("chain", "accumulate", "ema", "telemetry")},
    "skip": adam_jax.skip_nonfinite,
    "scale": lambda tx: adam_jax.chain(tx, adam_jax.scale_by_learning_rate(0.5, flip_sign=False)),
}


def nestings(count: int, seed: int = 0) -> Iterator[tuple[str, Any, int]]:
    """Random nestings of up to four wrappers: name, transformation, and the seed of its numbers."""
    draw = random.Random(seed)
    for _ in range(count):
        member = draw.choice(("adamw", "laprop", "lamb", "lion", "adan", "radam"))
        names = draw.choices(sorted(NESTED), k=draw.randint(1, 4))
        tx = getattr(adam_jax, member)(1e-2, weight_decay=0.1, mask=adam_jax.decay_mask)
        if draw.random() < 0.5:
            tx, member = adam_jax.cautious(tx), f"cautious({member})"
        for name in names:
            tx = NESTED[name](tx)
        yield f"{member}, {', '.join(names)}", tx, draw.randrange(100)


if __name__ == "__main__":
    for name, make, dtype in cases():
        try:
            found = differences(make(), dtype or jnp.float32)
        except ValueError as error:  # Not every modifier takes every member.
            found = str(error)
        print(f"{name}: {found or 'the same'}", flush=True)
