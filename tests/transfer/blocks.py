"""A model of blocks, its expected `mup` factors, and steps along gradients that depend on it."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

import adam_jax
from adam_jax.transfer import mup
from adam_jax.transfer.mup import Factors
from tests.catalogue import Member
from tests.catalogue.training import trained

ALPHA = 0.5


def model(width, count, seed=0):
    """Leaves of all roles, inside and outside of `count` blocks."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    block = lambda: {"kernel": draw(width, width), "bias": draw(width)}  # noqa: E731
    return {
        "in": draw(5, width),
        "blocks": [block() for _ in range(count)],
        "out": {"kernel": draw(width, 3), "bias": draw(3)},
    }


BASE, PARAMS = model(4, 1), model(16, 4)
# Width times 4, depth times 4, alpha = 1/2: learning rate, epsilon, weight decay.
FACTORS = {
    "in": Factors(1.0, 1 / 4, 1.0),
    "blocks/0/kernel": Factors(1 / 8, 1 / 8, 4.0),
    "blocks/0/bias": Factors(1 / 2, 1 / 8, 1.0),
    "out/kernel": Factors(1.0, 1 / 4, 1.0),
    "out/bias": Factors(1.0, 1.0, 1.0),
}


def leaf_of(tree, path):
    for key in path.split("/"):
        tree = tree[int(key)] if isinstance(tree, list) else tree[key]
    return tree


def numbers(member, factors, **given):
    """The arguments of a member, multiplied by a leaf's factors."""
    signature = inspect.signature(member.function).parameters
    defaults = {k: p.default for k, p in signature.items() if p.default is not p.empty}
    its = defaults | {"learning_rate": 1e-2} | member.keywords | member.ours | given
    by_name = {
        "learning_rate": factors.learning_rate,
        "eps": factors.eps,
        "eps_hat": factors.eps,
        "eps_root": factors.eps**2,
        "weight_decay": factors.weight_decay if its.get("scale_decay", True) else 1.0,
    }

    def times(x, factor):
        if x is None:
            return None
        return (lambda count: x(count) * factor) if callable(x) else x * factor

    return {k: times(x, by_name[k]) if k in by_name else x for k, x in its.items()}


ADAMW = Member("adamw", "scale_by_adam")
adamw = mup(adam_jax.adamw, BASE, PARAMS, alpha=ALPHA)
LABELS = {
    "in": "in",
    "blocks": [{"kernel": "blocks/0/kernel", "bias": "blocks/0/bias"} for _ in PARAMS["blocks"]],
    "out": {"kernel": "out/kernel", "bias": "out/bias"},
}


def partitioned(member=ADAMW, modify=lambda tx: tx, **given):
    """What `mup` makes of a member, written out with `optax.partition`."""
    txs = {k: modify(member.function(**numbers(member, f, **given))) for k, f in FACTORS.items()}
    return optax.partition(txs, LABELS)


def gradients(params, t):
    return jax.tree.map(lambda p: 1e-2 * jnp.sin(3 * p + t), params)


def stepped(tx, params, count=4, state=None):
    return trained(tx, params, gradients, count, state=state)


assert_close = functools.partial(chex.assert_trees_all_close, rtol=1e-6, atol=1e-7)


def schedule(count):
    return 1e-2 * 0.5 ** jnp.asarray(count, jnp.float32)
