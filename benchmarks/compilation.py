"""The CPU time to trace, lower and compile an optimizer step on trees with many leaves.

python -m benchmarks.compilation    prints the figures of two trees, and writes those of README
"""

import gc
import random
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import adam_jax
from benchmarks.machine import medians
from benchmarks.step.peers import Step, update, whole
from benchmarks.tables import Row
from examples.pages import replaced

PEERS = {
    "optax.adamw": update(optax.adamw(1e-3)),
    "adam_jax.adamw": update(adam_jax.adamw(1e-3)),
    "adam_jax.adamw; step": whole(adam_jax.adamw(1e-3)),
}
BASE, *OURS = PEERS
INIT = adam_jax.adamw(1e-3).init  # Optax's state is the same.
# The allowed share of Optax's time.
TARGETS = {"trace": None, "lower": None, "trace + lower": 0.25, "compile": None, "all": 0.8}


class Tree(NamedTuple):
    """Parameters of a compiled step; large trees take few rounds."""

    title: str
    params: Any
    rounds: int = 9


def array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def transformer(layers: int, width: int = 64) -> Any:
    """A decoder's parameters, 12 arrays a layer."""

    def dense(inputs: int, outputs: int) -> Any:
        return {"kernel": array(inputs, outputs), "bias": array(outputs)}

    def norm() -> Any:
        return {"scale": array(width), "bias": array(width)}

    def layer() -> Any:
        attention = {"norm": norm(), "qkv": dense(width, 3 * width), "out": dense(width, width)}
        mlp = {"norm": norm(), "up": dense(width, 4 * width), "down": dense(4 * width, width)}
        return {"attention": attention, "mlp": mlp}

    embeddings = {"tokens": array(512, width), "positions": array(128, width)}
    blocks = {f"layer_{i}": layer() for i in range(layers)}
    return {"embed": embeddings, **blocks, "norm": norm(), "head": dense(width, 512)}


def trees(fast: bool) -> list[Tree]:
    many, more, layers = (4, 8, 1) if fast else (500, 2_000, 24)
    return [
        Tree(f"compile, {many:,} leaves of 2,000", [array(2_000)] * many),
        Tree(f"compile, {more:,} leaves of 2,000", [array(2_000)] * more, rounds=5),
        Tree(f"compile, transformer of {layers} layers", transformer(layers)),
    ]


def stages(step: Step, params: Any, compiles: bool) -> dict[str, float]:
    """CPU seconds of each stage, from cleared caches."""
    state = jax.eval_shape(INIT, params)
    jax.clear_caches()
    gc.collect()  # Garbage of the previous peer must not be collected during this one.
    marks = [time.process_time()]
    traced = jax.jit(step, donate_argnums=(0, 1)).trace(params, state, params)
    marks.append(time.process_time())
    lowered = traced.lower()
    marks.append(time.process_time())
    trace, lower = (b - a for a, b in zip(marks, marks[1:], strict=False))
    if not compiles:
        return {"trace": trace, "lower": lower, "trace + lower": trace + lower}
    lowered.compile()
    build = time.process_time() - marks[-1]
    return {"compile": build, "all": trace + lower + build}


def measure(tree: Tree, rounds: int) -> list[Row]:
    """The rows of one tree; the peers alternate as in `interleaved`.

    Tracing has separate rounds: right after a compilation, whose memory is being freed, it takes up
    to half as long again, and not the same for both peers.
    """
    seconds = {stage: {name: [] for name in PEERS} for stage in TARGETS}
    for compiles in (False, True):
        for turn in range(min(rounds, tree.rounds) * (1 if compiles else 3)):
            for name, step in random.Random(turn).sample(list(PEERS.items()), len(PEERS)):
                for stage, value in stages(step, tree.params, compiles).items():
                    seconds[stage][name].append(value)
    rows = []
    for stage, target in TARGETS.items():
        s = medians(seconds[stage])
        for ours in OURS:
            case = stage + ours.removeprefix(OURS[0])
            rows.append(
                Row(tree.title, case, "s", s[ours], BASE, s[BASE], s[ours] / s[BASE], target)
            )
    return rows


def main() -> None:
    """Measures and writes README's row."""
    many, layers = trees(fast=False)[0], 16
    rows = measure(many, many.rounds)
    deep = Tree(f"compile, transformer of {layers} layers", transformer(layers))
    for row in (*rows, *measure(deep, deep.rounds)):
        print(f"{row.table}, {row.case}: {row.median:.3g} s, {row.ratio:.2f} of Optax's")
    found = {row.case: row for row in rows}
    traced, build, ours = (
        found[case] for case in ("trace + lower", "compile", "trace + lower; step")
    )
    both = f"{traced.median:.3f} s + {build.median:.2f} s"
    parts = {
        "compile": f"{both} ({ours.median:.3f} s through `step`)",
        "compile of Optax": f"{traced.base_median:.3f} s + {build.base_median:.2f} s",
    }
    page = Path(__file__).parents[1] / "README.md"
    page.write_text(replaced(page.read_text(), parts))


if __name__ == "__main__":
    main()
