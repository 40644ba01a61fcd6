"""Nested wrappers around Adam, each with a plain Python loop around the member as its reference."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adam_jax
from adam_jax import accumulate, adamw, chain, clip_by_global_norm, ema_params, skip_nonfinite

STEPS = 50
DECAY = 0.9


def schedule(count):
    return 1e-2 * 0.97 ** jnp.asarray(count, jnp.float32)


def member(**kwargs):
    mask = {"w": True, "b": False, "deep": {"k": True}}
    return adamw(schedule, weight_decay=1e-2, mask=mask, **kwargs)


def parameters(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"w": (16, 8), "b": (8,), "deep": {"k": (8, 2, 3)}}
    draw = iter(keys)
    return jax.tree.map(
        lambda shape: jax.random.normal(next(draw), shape, jnp.float32).astype(dtype),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def gradients(params, dtype=jnp.float32, seed=1, bad=True):
    """Gradients [STEPS, ...] of each leaf: many magnitudes, some NaN, some infinite."""
    draw = np.random.default_rng(seed)
    size = 10 ** draw.uniform(-2, 1, STEPS)

    def stack(p):
        x = draw.standard_normal((STEPS, *p.shape)) * size.reshape(-1, *[1] * p.ndim)
        return np.asarray(x, np.float32)

    stacked = jax.tree.map(stack, params)
    if bad:
        stacked["b"][[3, 17, 18], 0] = np.nan
        stacked["w"][[9, 33], 2, 1] = [np.inf, -np.inf]
        stacked["w"][40] = np.nan
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), stacked)


def norm(grads):
    return np.sqrt(sum(np.sum(np.asarray(g, np.float64) ** 2) for g in jax.tree.leaves(grads)))


def in_float32(x):
    return np.asarray(x).astype(np.float32)


PLAIN_STEP = jax.jit(lambda grads, state, params: adam_jax.step(member(), grads, state, params))


class Naive:
    """The same wrappers as plain `if`s in float32, around the member alone."""

    def __init__(self, params, every=1, max_norm=None, skips=False, ema=False):
        self.every, self.max_norm, self.skips = every, max_norm, skips
        self.params, self.state = params, member().init(params)
        self.ema = None if not ema else (0, jax.tree.map(in_float32, params))
        self.batch = []

    def step(self, grads, weight=1.0):
        wide = jax.tree.map(in_float32, grads)
        self.batch.append((weight, wide))
        if len(self.batch) < self.every:
            return
        batch, self.batch = self.batch, []
        total = sum(w for w, _ in batch)
        grads = jax.tree.map(np.zeros_like, batch[0][1])
        for w, g in batch:
            if w:
                grads = jax.tree.map(lambda a, x, w=w: a + x * np.float32(w / total), grads, g)
        size = norm(grads)
        if self.skips and not np.isfinite(size):
            return
        if self.max_norm is not None and size > self.max_norm:
            grads = jax.tree.map(lambda g: g * np.float32(self.max_norm / size), grads)
        self.params, self.state = PLAIN_STEP(grads, self.state, self.params)
        if self.ema is not None:
            t, ema = self.ema
            share = (1 - DECAY) / (1 - DECAY ** (t + 1))
            p32 = jax.tree.map(in_float32, self.params)
            share = np.float32(share)
            ema = jax.tree.map(lambda e, p: e * (1 - share) + p * share, ema, p32)
            self.ema = t + 1, ema


CLIP = 2.0
RECIPES = {
    "clip": (lambda: chain(clip_by_global_norm(CLIP), member()), dict(max_norm=CLIP)),
    "skip": (lambda: skip_nonfinite(member()), dict(skips=True)),
    "clip, skip": (
        lambda: skip_nonfinite(chain(clip_by_global_norm(CLIP), member())),
        dict(max_norm=CLIP, skips=True),
    ),
    "accumulate": (lambda: accumulate(member(), 4), dict(every=4)),
    "accumulate, skip": (
        lambda: accumulate(skip_nonfinite(member()), 4),
        dict(every=4, skips=True),
    ),
    "ema": (lambda: chain(member(), ema_params(DECAY)), dict(ema=True)),
    "everything": (
        lambda: accumulate(
            skip_nonfinite(chain(clip_by_global_norm(CLIP), member(), ema_params(DECAY))), 4
        ),
        dict(every=4, max_norm=CLIP, skips=True, ema=True),
    ),
    "optax inside": (
        lambda: accumulate(
            skip_nonfinite(optax.chain(clip_by_global_norm(CLIP), member(), ema_params(DECAY))), 4
        ),
        dict(every=4, max_norm=CLIP, skips=True, ema=True),
    ),
}


def naive(params, stacked, weights=None, **settings):
    run = Naive(params, **settings)
    for i in range(STEPS):
        weight = 1.0 if weights is None else float(weights[i])
        run.step(jax.tree.map(lambda g, i=i: g[i], stacked), weight)
    return run


def applied(params, updates):
    """optax.apply_updates, which does not accept None for an existing leaf."""

    def moved(p, u):
        return p if u is None else optax.apply_updates(p, u)

    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten(map(moved, leaves, treedef.flatten_up_to(updates)))


def stepper(tx, through):
    def step(params, state, grads, **extra):
        if through == "step":
            return adam_jax.step(tx, grads, state, params, **extra)
        updates, state = tx.update(grads, state, params, **extra)
        return applied(params, updates), state

    return step


def scanned(tx, params, stacked, through="step"):
    step = stepper(tx, through)

    @jax.jit
    def run(params, state, stacked):
        return jax.lax.scan(lambda c, g: (step(*c, g), None), (params, state), stacked)[0]

    return run(params, tx.init(params), stacked)


def looped(tx, params, stacked, through="step", **extra):
    step = jax.jit(stepper(tx, through), donate_argnums=(0, 1))
    params = jax.tree.map(jnp.copy, params)
    state = tx.init(params)
    for i in range(STEPS):
        its = {name: x[i] for name, x in extra.items()}
        params, state = step(params, state, jax.tree.map(lambda g, i=i: g[i], stacked), **its)
    return params, state


def assert_close(actual, expected, tolerance=1e-6):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * max(1, np.abs(e).max()))


def average(state):
    return adam_jax.averaged(state)
