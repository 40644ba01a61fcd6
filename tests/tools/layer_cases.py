"""Steps leaves that hold several layers, and compares them with a separate leaf per layer.

python -m tests.tools.layer_cases      runs every case: members x storage x modifiers x wrappers
python -m tests.tools.layer_cases --random N  runs N random nestings of wrappers
"""

import argparse
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import adam_jax
from tests.catalogue import MEMBERS
from tests.tools.record import STORED as FORMATS
from tests.tools.record import WRAPPERS

LAYERS, STEPS = 4, 3
SHAPES = {"bias": (17,), "kernel": (33, 17), "out": (64, 32), "scale": ()}
STORED = FORMATS | {"block means": {"nu": adam_jax.AdamMini()}}
MODIFIERS: dict[str, Callable[[Any], Any]] = {
    "cautious": adam_jax.cautious,
    "cautious_weight_decay": adam_jax.cautious_weight_decay,
    "corrected_weight_decay": lambda tx: adam_jax.corrected_weight_decay(tx, 1e-2),
    "clip_update_rms": adam_jax.clip_update_rms,
    "grams": adam_jax.grams,
    "atan2": adam_jax.atan2,
    "nesterov": adam_jax.nesterov,
    "grokfast": adam_jax.grokfast,
    "with_kernel": lambda tx: adam_jax.with_kernel(tx, "xla"),
    "groups": lambda tx: tx,
}
MODIFIED = ("adamw", "amsgradw", "lamb", "lion", "mars_adamw")
WRAPPED = ("adamw", "lamb")
REFUSES_4_BITS = ("amsgrad", "amsgrad-max_first", "adamax")


def separate(seed: int = 0, dtype: Any = jnp.float32) -> Any:
    """A tree with a list of layers, and leaves outside of layers before and after it."""
    draw = np.random.default_rng(seed)

    def array(shape: tuple[int, ...]) -> jax.Array:
        size = 10 ** draw.uniform(-2, 1)
        return jnp.asarray(draw.standard_normal(shape) * size, jnp.float32).astype(dtype)

    blocks = [{name: array(shape) for name, shape in SHAPES.items()} for _ in range(LAYERS)]
    return {"a": array((5,)), "blocks": blocks, "z": array((32, 8))}


def stacked(tree: Any) -> Any:
    """The same tree with the layers of each kind stacked in one leaf."""
    return {**tree, "blocks": jax.tree.map(lambda *x: jnp.stack(x), *tree["blocks"])}


def stepped(tx: Any, dtype: Any = jnp.float32, seed: int = 0) -> tuple[Any, Any]:
    """The parameters after some steps: layers as leaves, stacked; and a tree of stacked layers."""
    its = adam_jax.with_layers(tx, "blocks/.*")
    step = jax.jit(lambda g, s, p: adam_jax.step(tx, g, s, p))
    step_stacked = jax.jit(lambda g, s, p: adam_jax.step(its, g, s, p))
    params = separate(seed, dtype)
    theirs = stacked(params)
    state, their_state = tx.init(params), its.init(theirs)
    for i in range(STEPS):
        grads = separate(seed + i + 1, dtype)
        params, state = step(grads, state, params)
        theirs, their_state = step_stacked(stacked(grads), their_state, theirs)
    return stacked(params), theirs


def differences(tx: Any, dtype: Any = jnp.float32, seed: int = 0) -> dict[str, float]:
    """The largest relative difference of each leaf, where any number differs."""
    ours, theirs = stepped(tx, dtype, seed)
    found = {}
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.isfinite(a).all(), path
        if (a != b).any():
            most = np.max(np.abs(a - b) / np.maximum(np.abs(a), np.abs(b)))
            found[jax.tree_util.keystr(path)] = float(most)
    return found


def modified(member: str, modifier: str) -> Any:
    """A member with decay and a modifier."""
    factory = functools.partial(getattr(adam_jax, member), weight_decay=0.1)
    if modifier == "groups":
        expressions = {r".*(bias|scale)": {"weight_decay": 0.0}}
        return adam_jax.groups(factory, expressions, learning_rate=1e-2)
    return MODIFIERS[modifier](factory(1e-2, mask=adam_jax.decay_mask))


def cases() -> Iterator[tuple[str, Callable[[], Any], Any]]:
    """The name of each case, the function that makes its transformation, and the params' dtype."""
    for member in MEMBERS:
        for storage, dtypes in STORED.items():
            if storage == "int4 nu" and member.name in REFUSES_4_BITS:
                continue
            stored = member.stored(dtypes.get("mu"), dtypes.get("nu")) if dtypes else {}
            yield f"{member.name}, {storage}", functools.partial(member.alias, 1e-2, **stored), None
    for member in MODIFIED:
        for modifier in MODIFIERS:
            if (member, modifier) in {("lion", "atan2"), ("lion", "nesterov")}:
                continue
            yield f"{member}, {modifier}", functools.partial(modified, member, modifier), None
    for member in WRAPPED:
        for name, wrapper in WRAPPERS.items():
            # Optax's parts see whole leaves, and "frozen" freezes a fixed path.
            if "optax" in name or name == "frozen":
                continue
            make = functools.partial(_wrapped, member, wrapper)
            dtype = jnp.bfloat16 if "master" in name or "kahan" in name or "stoch" in name else None
            yield f"{member}, {name}", make, dtype


NESTED: dict[str, Callable[[Any], Any]] = {
    "accumulate": lambda tx: adam_jax.accumulate(tx, 2),
    "skip": adam_jax.skip_nonfinite,
    "clip": lambda tx: adam_jax.chain(adam_jax.clip_by_global_norm(0.5), tx),
    "ema": lambda tx: adam_jax.chain(tx, adam_jax.ema_params(0.9)),
    "scale": lambda tx: adam_jax.chain(tx, adam_jax.scale_by_learning_rate(0.5, flip_sign=False)),
    "telemetry": lambda tx: adam_jax.telemetry(tx, 2),
    "cautious": lambda tx: adam_jax.cautious(tx),
}


def nestings(count: int, seed: int = 0) -> Iterator[tuple[str, Any, int]]:
    """Random nestings of up to four wrappers: name, transformation, and the seed of its numbers."""
    draw = random.Random(seed)
    for _ in range(count):
        member = draw.choice(("adamw", "lapropw", "lamb", "lion", "adan", "radamw"))
        names = draw.choices(sorted(set(NESTED) - {"cautious"}), k=draw.randint(1, 4))
        names = draw.choice(([], ["cautious"])) + names  # Modifiers are around members.
        tx = getattr(adam_jax, member)(1e-2, weight_decay=0.1, mask=adam_jax.decay_mask)
        for name in names:
            tx = NESTED[name](tx)
        yield f"{member}, {', '.join(names)}", tx, draw.randrange(100)


def _wrapped(member: str, wrapper: Callable[[Any], Any]) -> Any:
    return wrapper(getattr(adam_jax, member)(1e-2, weight_decay=0.1, mask=adam_jax.decay_mask))


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--random", type=int, metavar="N", help="random nestings")
    if number := arguments.parse_args().random:
        for name, tx, seed in nestings(number):
            print(f"{name}: {differences(tx, seed=seed) or 'the same'}", flush=True)
            jax.clear_caches()
    else:
        for name, make, dtype in cases():
            found = differences(make(), dtype or jnp.float32)
            print(f"{name}: {found or 'the same'}", flush=True)
