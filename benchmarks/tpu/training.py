"""For `benchmarks.tpu`: the compile time of many leaves, the memory of a training step."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

import adam_jax
from benchmarks.compilation import array
from benchmarks.tpu.cases import EIGHT, Row, transformer
from benchmarks.tpu.machine import compile_for_tpu

GENERATION = "v5e"
LAYERS, BATCH, LENGTH = 24, 4, 256  # Few tokens, because only the optimizer's memory matters.
TARGET = 1.5  # Of Optax's seconds, at most.
SAVED = 5.5  # B/p, at least.
OPTIMIZERS = {
    "optax.adamw": optax.adamw(1e-3),
    "adam_jax.adamw": adam_jax.adamw(1e-3),
    "8-bit moments": adam_jax.adamw(1e-3, **EIGHT),
}


def many_leaves(each: int = 15) -> Any:
    """300 leaves of 20 shapes: matrices, kernels of attention, stacks of filters, vectors."""
    shapes = [(256 * n, 512) for n in range(1, 7)] + [(512, 256 * n) for n in range(3, 7)]
    shapes += [(1024, 8 * n, 64) for n in (1, 2)] + [(8, 64, 1024), (16, 64, 1024)]
    shapes += [(3, 3, 256, 512), (3, 3, 512, 256), (512,), (1024,), (2048,), (4096,)]
    return {f"shape_{i}": [array(*shape) for _ in range(each)] for i, shape in enumerate(shapes)}


def compile_time(params: Any = None, rounds: int = 3) -> list[Row]:
    """Seconds of tracing, lowering and compilation: the minimum of some alternating rounds."""
    params = params or many_leaves()

    def seconds(tx: Any, params: Any) -> tuple[float, float]:
        def step(params: Any, state: Any, grads: Any) -> Any:
            return adam_jax.step(tx, grads, state, params)

        state = jax.eval_shape(tx.init, params)
        jax.clear_caches()
        start, on_cores = time.perf_counter(), time.process_time()
        compile_for_tpu(GENERATION, step, params, state, params, donate=(0, 1))
        return time.perf_counter() - start, time.process_time() - on_cores

    for tx in OPTIMIZERS.values():
        seconds(tx, [array(1024, 1024)])  # Excludes what is loaded on first use.
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in OPTIMIZERS}
    for _ in range(rounds):
        for name, tx in OPTIMIZERS.items():
            took[name].append(seconds(tx, params))
    found: list[Row] = []
    leaves = len(jax.tree.leaves(params))
    print("\n| optimizer | leaves | s | of all cores | of Optax's s | verdict |")
    print("|---" * 6 + "|")
    for name, rows in took.items():
        elapsed, on_cores = (min(column) for column in zip(*rows, strict=True))
        ratio = elapsed / found[0]["s"] if found else 1.0
        verdict = "holds" if ratio <= TARGET else f"{ratio:.2f} > {TARGET}"
        row = {"optimizer": name, "leaves": leaves, "s": elapsed, "of all cores": on_cores}
        found.append(row | {"of Optax's s": ratio, "target": TARGET, "verdict": verdict})
        cells = f"{leaves} | {elapsed:.1f} | {on_cores:.1f} | {ratio:.2f} | {verdict}"
        print(f"| {name} | {cells} |", flush=True)
    return found


def _normed(x: Any, p: Any) -> Any:
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


@jax.checkpoint
def _layer(x: Any, p: Any) -> Any:
    attention, mlp = p["attention"], p["mlp"]
    y = _normed(x, attention["norm"])
    heads = (jnp.einsum("btd,dhk->bthk", y, attention[n]) for n in ("query", "key", "value"))
    read = jax.nn.dot_product_attention(*heads, is_causal=True)
    x = x + jnp.einsum("bthk,hkd->btd", read, attention["out"])
    y = jax.nn.gelu(_normed(x, mlp["norm"]) @ mlp["up"]["kernel"] + mlp["up"]["bias"])
    return x + y @ mlp["down"]["kernel"] + mlp["down"]["bias"]


def loss(params: Any, tokens: Any) -> Any:
    """Loss of the next word; layers are unrolled with separate leaves, and rematerialized.

    Layers share no leaves, as they would under `jax.lax.scan`. So all orientations of the kernels
    occur, and XLA may step a leaf as soon as its gradient is computed.
    """
    x = params["tokens"][tokens[:, :-1]]
    for i in range(sum(name.startswith("layer_") for name in params)):
        x = _layer(x, params[f"layer_{i}"])
    logits = _normed(x, params["norm"]) @ params["tokens"].T
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def training_step(params: Any = None) -> list[Row]:
    """Peak memory by `memory_analysis`, bytes per parameter: arguments, results, temporaries."""
    params = params or transformer(LAYERS)
    size = sum(x.size for x in jax.tree.leaves(params))
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH + 1), jnp.int32)
    found: list[Row] = []
    columns = ("arguments", "results not donated", "temporary", "peak", "saved")
    print(f"\n| optimizer | {' | '.join(columns)} |\n{'|---' * (len(columns) + 1)}|")
    for name, tx in OPTIMIZERS.items():

        def step(params: Any, state: Any, tokens: Any, tx: Any = tx) -> Any:
            value, grads = jax.value_and_grad(loss)(params, tokens)
            return *adam_jax.step(tx, grads, state, params), value

        state = jax.eval_shape(tx.init, params)
        program = compile_for_tpu(GENERATION, step, params, state, tokens, donate=(0, 1))
        memory: Any = program.memory_analysis()
        parts = [
            memory.argument_size_in_bytes,
            memory.output_size_in_bytes - memory.alias_size_in_bytes,
            memory.temp_size_in_bytes,
        ]
        values = [part / size for part in (*parts, sum(parts))]
        values.append(found[0]["peak"] - values[-1] if found else 0.0)
        row: Row = {"optimizer": name, **dict(zip(columns, values, strict=True))}
        if name == "8-bit moments":
            holds = row["saved"] >= SAVED
            row["verdict"] = "holds" if holds else f"saved {row['saved']:.2f} < {SAVED}"
        found.append(row)
        print(f"| {name} | {' | '.join(f'{x:.3f}' for x in values)} |", flush=True)
    print(f"8 bits save {found[-1]['saved']:.2f} B/p of {SAVED} at least: {found[-1]['verdict']}")
    return found
