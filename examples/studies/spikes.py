"""Planted spikes of the gradient, and what five guards make of them.

An MLP is trained on digits by AdamW. From step 500 on, gradients are multiplied by 1e2 to 1e6 in
one step, in all leaves or in the last; rise by 5 % per step for 100 steps; are those of wrong
labels, times 100, in one step of 200; or only the loss that is reported is 100 times too large. The
table has the steps until the loss is what it is at step 600 without a spike (the column "none"),
and the share of steps that a guard changes in runs without spikes, for three models.

Writes OUT/table.md, alarms.md and spikes.png.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import adam_jax
from examples.mnist import data
from examples.mnist.models import MODELS
from examples.mnist.preprocessing import normalise
from examples.shared import study, style
from examples.studies import population
from examples.studies.population import Split

BATCH, AT, LATER, SMOOTH, SEEDS = 64, 500, 100, 25, 3


# Rows of the numbers of a step, and steps.
ALL, ONE, LOSS, WRONG = slice(2), slice(1, 2), slice(2, 3), slice(3, 4)
ONCE, RISING, REPEATED = slice(AT, AT + 1), slice(AT, AT + 100), slice(AT, None, 200)
SPIKES: dict[str, list[tuple[slice, slice, Any]]] = {
    "none": [],
    "all x 1e2": [(ALL, ONCE, 1e2)],
    "all x 1e4": [(ALL, ONCE, 1e4)],
    "all x 1e6": [(ALL, ONCE, 1e6)],
    "one leaf x 1e4": [(ONE, ONCE, 1e4)],
    "slow rise": [(ALL, RISING, 1.05 ** np.arange(100))],
    "bad batches": [(ALL, REPEATED, 100), (WRONG, REPEATED, 1)],
    "loss only": [(LOSS, ONCE, 1e2)],
}


def planted(steps: int) -> np.ndarray:
    """Factors of leaves, of the last leaf, of the loss; are labels wrong: [kinds, 4, steps]."""
    rows = np.ones((len(SPIKES), 4, steps), np.float32)
    rows[:, 3] = 0
    for row, changes in zip(rows, SPIKES.values(), strict=True):
        for which, when, factor in changes:
            row[which, when] = factor
    return rows


ADAMW = adam_jax.adamw(1e-3)
GUARDS = {
    "none": ADAMW,
    "clip_by_global_norm(1)": adam_jax.chain(adam_jax.clip_by_global_norm(1.0), ADAMW),
    "skip_nonfinite": adam_jax.skip_nonfinite(ADAMW),
    "clip_update_rms": adam_jax.clip_update_rms(ADAMW),
    "clip_by_history": adam_jax.clip_by_history(ADAMW),
    "clip_by_history(updates=2)": adam_jax.clip_by_history(ADAMW, updates=2.0),
    "clip_by_history(6, sigmas)": adam_jax.clip_by_history(ADAMW, 6.0, sigmas=True),
}


def trained(model: str, guard: str, train: Split, rows: np.ndarray, seed: int) -> study.Result:
    """The loss of each step of each kind of spike, [kinds, steps], and the steps changed."""
    tx, key = GUARDS[guard], jax.random.key(seed)
    graph, params = nnx.split(MODELS[model](nnx.Rngs(seed)))
    order = population.orders(key[None], len(train.labels), BATCH, rows.shape[-1])[0]

    def of_kind(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        def one(carry: Any, now: Any) -> tuple[Any, jax.Array]:
            (params, state), (batch, (first, last, reported, wrong)) = carry, now
            x, y = normalise(train.images[batch]), train.labels[batch]

            def loss_of(params: Any, y: jax.Array) -> jax.Array:
                logits = nnx.merge(graph, params)(x)
                return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

            shifted = jnp.where(wrong > 0, (y + 1) % 10, y)
            loss, grads = loss_of(params, y), jax.grad(loss_of)(params, shifted)
            leaves, tree = jax.tree.flatten(grads)
            grads = tree.unflatten([*(first * g for g in leaves[:-1]), last * leaves[-1]])
            value = {"value": loss * reported} if "skip" in guard else {}
            params, state = adam_jax.step(tx, grads, state, params, **value)
            return (params, state), loss

        (_, state), losses = jax.lax.scan(one, (params, tx.init(params)), (order, tuple(rows)))
        return losses, getattr(state, "total", jnp.zeros([], jnp.int32))

    losses, changed = jax.jit(jax.vmap(of_kind))(jnp.asarray(rows))
    return {"loss": np.asarray(losses), "changed": np.asarray(changed)}


def smoothed(loss: Any) -> np.ndarray:
    """The mean of the last steps, at each step."""
    return np.convolve(np.asarray(loss), np.ones(SMOOTH) / SMOOTH, "valid")


def steps_back(loss: Any, clean: Any) -> float:
    """Steps after the spike until the loss is what it is LATER without one; inf if it is not."""
    after, level = smoothed(loss)[AT + 1 :], smoothed(clean)[AT + LATER]
    below = np.flatnonzero(after <= level)
    return float(below[below >= SMOOTH][0]) if np.any(below >= SMOOTH) else np.inf


def main(argv: list[str] | None = None) -> None:
    """Runs the missing trainings, then writes tables and picture."""
    options = study.Parser("studies.spikes", __doc__, fast=60, full=600).options(argv)
    steps, seeds = (700, 1) if options.fast else (2000, SEEDS)
    train = population.split(data.load(), 1000)[0]
    rows = planted(steps)
    work = study.Study(options.out, {"seed": options.seed, "steps": steps})

    def piece(model: str, guard: str, seed: int) -> study.Piece:
        its = rows if model == "mlp" else rows[:1]
        make = lambda: trained(model, guard, train, its, options.seed + seed)  # noqa: E731
        return study.Piece(f"{model}, {guard}, {seed}", make, 40 if "cnn" in model else len(its))

    models = ["mlp"] if options.fast else ["mlp", "softmax", "small-cnn"]
    counting = [guard for guard in GUARDS if "history" in guard]
    wanted = [("mlp", guard) for guard in GUARDS] + [(m, g) for m in models[1:] for g in counting]
    found = work.run([piece(*its, seed) for its in wanted for seed in range(seeds)])
    table = []
    for guard in GUARDS:
        runs = [found[f"mlp, {guard}, {seed}"]["loss"] for seed in range(seeds)]
        back = [[steps_back(loss, of_seed[0]) for loss in of_seed] for of_seed in runs]
        table.append([guard, *(f"{x:.0f}" for x in np.median(back, axis=0))])
    print(work.table(["guard", *SPIKES], table, "table"))
    shares = []
    for guard in counting:
        row = [sum(found[f"{m}, {guard}, {s}"]["changed"][0] for s in range(seeds)) for m in models]
        shares.append([guard, *(f"{x / steps / seeds:.1e}" for x in row)])
    print(work.table(["guard", *models], shares, "alarms"))
    figure, axes = style.panels(2, 3, height=2.4, sharex=True, sharey=True)
    for k, axis in zip((1, 3, 4, 5, 6, 7), axes, strict=True):
        for i, guard in enumerate(GUARDS):
            curve = smoothed(found[f"mlp, {guard}, 0"]["loss"][k])[AT - 100 :]
            axis.plot(np.arange(len(curve)) - 100, curve, label=guard, **style.line_style(i))
        axis.set(title=list(SPIKES)[k], yscale="log")
    axes[0].legend(fontsize=5)
    style.save(figure, options.out / "spikes.png", "Training loss, steps after the first spike")


if __name__ == "__main__":
    study.command(main)
