"""A decay of the learning rate, and averages of a run without one, on a small transformer.

Averages are of the last quarter of the steps, or exponential; other runs decay there. Rates are the
best of three on half of the held-out text; losses, of three seeds, are on the other half.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import adam_jax
from adam_jax import ema_params
from examples.shared import study
from examples.studies.text import corpus
from examples.studies.text.compare import DECAY, FAST, SHARED
from examples.studies.text.train import Config, TrainState, model, step_of, validate

RATES, SEEDS = (1e-3, 2e-3, 4e-3), 3
FULL = Config(steps=800, batch_size=16, context=32, width=32, layers=2, heads=2)
DECAYS: dict[str, Any] = {  # By the share of the last quarter that is over.
    "constant": lambda over: 1.0,
    "linear": lambda over: jnp.maximum(1 - over, 0),
    "1 - √": lambda over: 1 - jnp.sqrt(jnp.minimum(over, 1)),
}


def losses(decay: str, config: Config, text: corpus.Corpus) -> study.Result:
    """By average, the losses [rates, seeds] on both halves of the held-out text."""
    last, train = config.steps // 4, jnp.asarray(text.train)
    start, held_out = config.steps - last, jnp.array_split(text.validation, 2)
    averages = {
        "newest": ema_params(0.0),
        "equal weights": ema_params(start=start),
        "emulated 1 - √": ema_params(start=start, emulates=lambda t: DECAYS["1 - √"](t / last)),
        "decay=0.95": ema_params(0.95),
    }

    def run(rate: jax.Array, seed: jax.Array) -> dict[str, list[jax.Array]]:
        def schedule(t: Any) -> Any:
            left = DECAYS[decay](jnp.maximum(t - start, 0) / last)
            return rate * left * jnp.minimum((t + 1) / (config.steps // 10), 1)

        clip, adamw = adam_jax.clip_by_global_norm(1.0), adam_jax.adamw(schedule, **SHARED, **DECAY)
        tx = adam_jax.chain(clip, adamw, *averages.values())
        initial, key = jax.random.split(jax.random.key(seed))
        graph, params = nnx.split(model(config, len(text.vocabulary), initial))
        state = TrainState(params, tx.init(params), jnp.zeros([], jnp.int32))
        state, _ = jax.lax.scan(step_of(tx, train, graph, config, key), state, None, config.steps)
        judge = functools.partial(validate, stride=config.context, graph=graph, config=config)
        found = zip(averages, map(adam_jax.averaged, state.opt_state[2:]), strict=True)
        return {name: [judge(x, part).mean() for part in held_out] for name, x in found}

    runs = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))
    seeds = config.seed + jnp.arange(SEEDS, dtype=jnp.uint32)
    return jax.tree.map(np.asarray, runs(jnp.asarray(RATES), seeds))


def main(argv: list[str] | None = None) -> None:
    """Runs the missing trainings, then writes OUT/table.md and table.csv."""
    options = study.Parser("studies.text.averages", __doc__, fast=25, full=120).options(argv)
    config = dataclasses.replace(FAST if options.fast else FULL, seed=options.seed)
    text, rows = corpus.load(), []
    work = study.Study(options.out, dataclasses.asdict(config) | {"text": text.digest})
    pieces = (study.Piece(n, functools.partial(losses, n, config, text)) for n in DECAYS)
    for decay, found in work.run(pieces).items():
        for name in found if decay == "constant" else ["newest"]:
            best = np.mean(found[name][0], axis=1).argmin()
            x = np.asarray(found[name][1][best])
            loss = f"{x.mean():.3f} ({x.min():.3f} to {x.max():.3f})"
            rows.append([decay, name, RATES[best], loss])
    print(work.table(["learning rate", "parameters", "its peak", "loss"], rows, "table"))


if __name__ == "__main__":
    study.command(main)
