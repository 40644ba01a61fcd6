"""Memory and communication of `adam_jax.sharding`: measured, compiled for 8 H200s, calculated.

python -m benchmarks.scale [--only devices|wire|offload|paper|models]

devices: 8 simulated on this machine; bytes of state on each after three steps, and the largest
difference from the same steps with a replicated state.
wire, offload: compiled for H200s, with the requirements of `benchmarks.gpu` (JAX_CUDA_PJRT).
models: compiled for TPUs (`benchmarks.models`), with the requirement of `benchmarks.tpu`.
paper: calculated, with parameters and gradients of 2 bytes replicated and only the state sharded.

In a ring each device sends (n-1)/n of an array to reduce-scatter or to all-gather it, and twice
that to all-reduce it.
"""

import argparse
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import adam_jax
from adam_jax import sharding
from benchmarks import models
from benchmarks.machine import describe

Row = dict[str, Any]
COUNT = 8
CODES = {"mu_dtype": jnp.int8, "nu_dtype": jnp.int8}
STATES: dict[str, tuple[str, Callable[[], optax.GradientTransformation]]] = {
    "adamw": ("float32", lambda: adam_jax.adamw(1e-3)),
    "adamw, moments of 8 bits": ("float32", lambda: adam_jax.adamw(1e-3, **CODES)),
    "bfloat16, residual of 16 bits, moments of 8": (
        "bfloat16",
        lambda: adam_jax.master_residual(adam_jax.adamw(1e-3, **CODES)),
    ),
}
COLLECTIVE = re.compile(
    r"= (\S+|\(.*?\)) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\("
)
WIDTH = {"f32": 4, "bf16": 2, "s8": 1, "u8": 1, "s16": 2, "s32": 4, "u32": 4}


def shapes(dtype: str, width: int = 1024) -> dict[str, jax.ShapeDtypeStruct]:
    """Parameters of a perceptron of two layers: 8 million at the usual width."""
    sides = {"in": (width, 4 * width), "bias": (4 * width,), "out": (4 * width, width)}
    return {name: jax.ShapeDtypeStruct(side, dtype) for name, side in sides.items()}


def loss(params: Any, x: jax.Array) -> jax.Array:
    """The perceptron's loss on constant data."""
    y = jax.nn.relu(x @ params["in"] + params["bias"]) @ params["out"]
    return jnp.mean(y.astype(jnp.float32) ** 2)


def train_step(tx: optax.GradientTransformation) -> Callable[..., Any]:
    """Parameters and state first, as in the results, so that donated buffers are paired."""

    def step(params: Any, state: Any, x: jax.Array) -> tuple[Any, Any]:
        return adam_jax.step(tx, jax.grad(loss)(params, x), state, params)

    return step


def on_the_wire(collective: str, size: float, devices: int) -> float:
    """Bytes that each device sends around a ring for an array of that many bytes."""
    times = 2 if collective == "all-reduce" else 1
    return times * size * (devices - 1) / devices


def sent(program: str, devices: int) -> dict[str, float]:
    """Bytes that each device sends, by kind of collective, in one call of a compiled program."""
    found: dict[str, float] = {}
    for result, kind in COLLECTIVE.findall(program):
        arrays = re.findall(r"\b([a-z]+\d+)\[([\d,]*)\]", result)
        sizes = [WIDTH[d] * math.prod(map(int, filter(None, s.split(",")))) for d, s in arrays]
        # Start operations also list their operands: use the whole arrays among these and results.
        whole = sum(sizes)
        if kind in ("all-gather", "reduce-scatter"):
            started = len({*sizes}) > 1 and result.startswith("(")
            whole = whole * devices / (devices + 1) if started else whole
            whole *= devices if kind == "reduce-scatter" and not started else 1
        found[kind] = found.get(kind, 0.0) + on_the_wire(kind, whole, devices)
    return found


def devices() -> Iterator[Row]:
    """Bytes on each of 8 simulated devices, and the results of the steps."""
    mesh = jax.make_mesh((COUNT,), ("data",), axis_types=(AxisType.Auto,))
    copied, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    for name, (dtype, build) in STATES.items():
        keys = jax.random.split(jax.random.key(0), 4)
        params = {
            k: (jax.random.normal(key, s.shape) / 32).astype(dtype)
            for key, (k, s) in zip(keys, shapes(dtype, 256).items(), strict=False)
        }
        params = jax.device_put(params, copied)
        x = jax.device_put(jax.random.normal(keys[3], (64, 256)).astype(dtype), split)
        results, sizes = [], []
        for tx in (build(), sharding.shard_state(build(), mesh)):
            p, state = params, jax.device_put(tx.init(params))
            state = jax.tree.map(lambda a: a if a.committed else jax.device_put(a, copied), state)
            step = jax.jit(train_step(tx))
            for _ in range(3):
                p, state = step(p, state, x)
            results.append(np.concatenate([np.ravel(a).astype("f4") for a in jax.tree.leaves(p)]))
            arrays = jax.tree.leaves(state)
            sizes.append(sum(a.addressable_shards[0].data.nbytes for a in arrays))
        yield {
            "state": name,
            "bytes on each, whole": sizes[0],
            "split": sizes[1],
            "share": sizes[1] / sizes[0],
            "largest difference": float(np.abs(results[0] - results[1]).max()),
        }


def wire() -> Iterator[Row]:
    """Bytes that each of 8 H200s sends in a step, from the compiled program."""
    from benchmarks.gpu import h200s

    mesh = Mesh(np.array(h200s(COUNT)), ("data",))
    copied, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    for name, (dtype, build) in STATES.items():
        params = {
            k: jax.ShapeDtypeStruct(s.shape, dtype, sharding=copied)
            for k, s in shapes(dtype).items()
        }
        x = jax.ShapeDtypeStruct((64, 1024), dtype, sharding=split)
        size = sum(p.size for p in params.values())
        state = jax.eval_shape(build().init, params)
        places = sharding.state_shardings(build(), params, mesh)
        cases = {
            "whole": (build(), jax.tree.map(lambda _: copied, state)),
            "split": (sharding.shard_state(build(), mesh), places),
        }
        for case, (tx, places) in cases.items():
            placed = jax.tree.map(
                lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place),
                state,
                places,
            )
            step = jax.jit(train_step(tx), donate_argnums=(0, 1))
            found = sent(step.lower(params, placed, x).compile().as_text() or "", COUNT)
            yield {
                "state": f"{name}, {case}",
                **{f"{kind} B/p": found.get(kind, 0.0) / size for kind in KINDS},
                "together": sum(found.values()) / size,
            }


KINDS = ("all-reduce", "reduce-scatter", "all-gather")


def offload() -> Iterator[Row]:
    """Bytes per parameter on an H200 with the state on the host, from the compiled program."""
    from benchmarks.gpu import h200s

    [device] = h200s()
    on_device = jax.sharding.SingleDeviceSharding(device)
    on_host = on_device.with_memory_kind("pinned_host")
    for leaves in (8, 32):
        params = [jax.ShapeDtypeStruct((1024, 1024), "float32", sharding=on_device)] * leaves
        size = leaves * 1024**2
        for name, (dtype, build) in STATES.items():
            if dtype != "float32":
                continue
            tx = sharding.offload(build())
            state = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct(
                    a.shape, a.dtype, sharding=on_host if a.ndim else on_device
                ),
                jax.eval_shape(build().init, params),
            )

            def step(params: Any, state: Any, grads: Any, tx: Any = tx) -> Any:
                return adam_jax.step(tx, grads, state, params)

            compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
            memory: Any = compiled.memory_analysis()
            yield {
                "state": name,
                "leaves": leaves,
                "on the host B/p": memory.host_argument_size_in_bytes / size,
                "of it not donated": (
                    memory.host_output_size_in_bytes - memory.host_alias_size_in_bytes
                )
                / size,
                "temporaries on the device B/p": memory.temp_size_in_bytes / size,
                "in leaves of float32": memory.temp_size_in_bytes / 4 / 1024**2,
            }


def paper() -> Iterator[Row]:
    """Gigabytes on each device, and sent by each in a step, for large models."""
    bytes_of_state = {"float32 moments and master": 12.0, "8 bits, residual of 8": 3.0625}
    for billions in (7, 70):
        for name, state in bytes_of_state.items():
            for count in (8, 64, 1024):
                weights = gradients = 2.0
                yield {
                    "parameters": f"{billions}e9",
                    "state": name,
                    "devices": count,
                    "GB on each, whole": billions * (weights + gradients + state),
                    "split": billions * (weights + gradients + state / count),
                    "GB sent, all-reduce": billions * on_the_wire("all-reduce", gradients, count),
                    "reduce-scatter + all-gather": billions
                    * (
                        on_the_wire("reduce-scatter", gradients, count)
                        + on_the_wire("all-gather", weights, count)
                    ),
                }


TABLES = {
    "devices": devices,
    "wire": wire,
    "offload": offload,
    "paper": paper,
    "models": models.models,
}


def main() -> None:
    """Prints the tables that this machine can produce."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--only", choices=TABLES)
    args = arguments.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", COUNT)
    print(describe("jax", "jaxlib", "optax"))
    for name, table in TABLES.items():
        if args.only not in (None, name):
            continue
        print(f"\n{name}\n")
        try:
            for i, row in enumerate(table()):
                if i == 0:
                    print(f"| {' | '.join(row)} |\n{'|---' * len(row)}|")
                cells = (f"{x:.3g}" if isinstance(x, float) else str(x) for x in row.values())
                print(f"| {' | '.join(cells)} |", flush=True)
        except ModuleNotFoundError as missing:
            print(f"left out, {missing}")


if __name__ == "__main__":
    main()
