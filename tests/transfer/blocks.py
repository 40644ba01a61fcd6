"""A model of blocks, its expected `mup` factors, and steps along gradients that depend on it."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adam_jax
from adam_jax.transfer import mup
from adam_jax.transfer.mup import Factors
from tests.catalogue import Member

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


def gradients(params, t):
    return jax.tree.map(lambda p: 1e-2 * jnp.sin(3 * p + t), params)


def stepped(tx, params, count=4, state=None, start=0):
    state = tx.init(params) if state is None else state
    step = jax.jit(functools.partial(adam_jax.step, tx))
    for t in range(start, start + count):
        params, state = step(gradients(params, t), state, params)
    return params, state


def assert_close(ours, theirs, rtol=1e-6):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=rtol, atol=1e-7
        )


def assert_equal(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


AROUND = {
    "alone": lambda tx: tx,
    "chain, clip": lambda tx: adam_jax.chain(adam_jax.clip_by_global_norm(0.05), tx),
    "optax.chain": lambda tx: optax.chain(optax.scale(2.0), tx),
    "everything": lambda tx: adam_jax.accumulate(
        adam_jax.telemetry(
            adam_jax.skip_nonfinite(
                adam_jax.chain(adam_jax.clip_by_global_norm(0.05), tx, adam_jax.ema_params(0.9))
            ),
            every=1,
        ),
        2,
    ),
}


def schedule(count):
    return 1e-2 * 0.5 ** jnp.asarray(count, jnp.float32)
